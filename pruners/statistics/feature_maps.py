"""Fall of the nuclear norm of a layer's maps without each unit's map (CHIP)."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import TensorSlice
from prunefront.pruners.statistics import Inquiry, Values, statistic
from prunefront.pruners.units.applies import several_writers
from prunefront.pruners.units.inputs import count_images
from prunefront.pruners.units.view import consumers
from prunefront.pruners.units.watch import CONVOLUTIONS, TRANSPOSED, Product, Watch

ELEMENTS = 2**24
"""Largest number of elements in the matrices whose eigenvalues are taken at a time: 128 MiB."""


@statistic(
    "feature_maps",
    fields={"nuclear_drop": several_writers},
    takes="forward",
    cost="an eigenvalue problem per unit and image, at most 128: the most expensive one without gradients",
    images=128,
)
def feature_maps(inquiry: Inquiry) -> Values:
    """Fall of the feature maps' nuclear norm when a unit's map is zeroed, image by image (CHIP).

    CI_i = ‖A‖_* − ‖A with row i set to 0‖_* (Sui et al. 2021, 2110.13981). A: [channels, space], one image's maps as a
    consumer sees them, so after norm and activation. All rows of a unit with several channels are zeroed together.
    Where a linear layer reads flattened maps, the neighbouring columns of a channel are its row (own). Over several
    consumers or calls the mean is taken (own). Raises PrunefrontError where no call takes a consumer's weight.
    """
    tensors = inquiry.model.state_dict(keep_vars=True)
    watching = {m.tensor: tensors[m.tensor] for g in inquiry.groups for m in consumers(g)}
    readers = [(g.name, m) for g in inquiry.groups for m in consumers(g)]
    columns: dict[str, list[Tensor]] = defaultdict(list)
    for inputs, _ in inquiry.batches:
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        drops: dict[str, list[Tensor]] = defaultdict(list)

        def see(
            product: Product, drops: dict[str, list[Tensor]] = drops, images: int = count_images(arguments)
        ) -> None:
            for name, part in readers:
                if part.tensor == product.name:
                    maps, rows = _maps(product, part, images)
                    drops[name].append(torch.stack([nuclear_drops(a, rows) for a in maps], dim=1))

        with torch.no_grad(), Watch(watching, see):
            inquiry.model(*arguments)
        for group in inquiry.groups:
            if not drops[group.name]:
                raise PrunefrontError(
                    f"no conv, linear or matmul call takes {consumers(group)[0].tensor!r} as its weight, so the "
                    f"maps of group {group.name!r} are unknown; choose a criterion that does not need them"
                )
            columns[group.name].append(torch.stack(drops[group.name]).mean(dim=0))
    return {"nuclear_drop": {name: torch.cat(parts, dim=1) for name, parts in columns.items()}}


def nuclear_drops(
    maps: Float[Tensor, "channels space"], rows: Sequence[Sequence[int]]
) -> Float[Tensor, " units"]:
    """Returns ‖A‖_* − ‖A without rows[u]‖_* for every unit u, float64 on the CPU.

    ‖A‖_* = Σ √eig(AAᵀ), or of AᵀA where that is smaller; eigenvalues that rounding makes negative count as zero.
    """
    a = maps.to(torch.float64)
    channels, space = a.shape
    tall = space < channels
    gram = a.T @ a if tall else a @ a.T
    whole = _root_sum(gram)
    chunk = max(1, ELEMENTS // gram.numel())
    falls = []
    for first in range(0, len(rows), chunk):
        some = rows[first : first + chunk]
        without = gram.expand(len(some), -1, -1).clone()
        for matrix, going in zip(without, some, strict=True):
            if tall:
                matrix -= a[list(going)].T @ a[list(going)]
            else:
                matrix[list(going)] = 0.0
                matrix[:, list(going)] = 0.0
        falls.append(whole - _root_sum(without))
    return torch.cat(falls).clamp(min=0.0).cpu()


def _root_sum(gram: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    if not gram.isfinite().all():  # torch's own error would not name its source
        return gram.sum(dim=(-2, -1)) * torch.nan
    total: Tensor = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt().sum(dim=-1)
    return total


def _maps(
    product: Product, part: TensorSlice, images: int
) -> tuple[Float[Tensor, "images channels space"], list[list[int]]]:
    """Returns every image's maps, and the rows that each unit has in them."""
    x = product.x
    width = product.inputs(images).shape[1]  # raises where rows cannot be assigned to images
    if product.func in CONVOLUTIONS or product.func in TRANSPOSED:
        maps = x.reshape(images, -1, x.shape[1], *x.shape[2:]).transpose(1, 2).flatten(2)
        # position i of the weight's axis meets channel i of every conv group
        rows = [
            [first + i for i in positions for first in range(0, x.shape[1], width)]
            for positions in part.index
        ]
        return maps, rows
    length = _columns_per_channel(part, width)
    maps = x.reshape(images, -1, width // length, length).transpose(1, 2).flatten(2)
    return maps, [sorted({i // length for i in positions}) for positions in part.index]


def _columns_per_channel(part: TensorSlice, width: int) -> int:
    """Returns how many neighbouring columns each channel of a flattened map has; 1 where units are not laid out so."""
    length = len(part.index[0])
    aligned = width % length == 0 and all(
        len(positions) == length
        and positions[0] % length == 0
        and list(positions) == list(range(positions[0], positions[0] + length))
        for positions in part.index
    )
    return length if aligned else 1
