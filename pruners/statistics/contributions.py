"""Each unit's part in sampled outputs of the layers that read it (ThiNet; channel pruning by LASSO)."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup
from prunefront.pruners.statistics import Inquiry, Values, statistic
from prunefront.pruners.units import applies
from prunefront.pruners.units.inputs import tensors_in
from prunefront.pruners.units.view import consumers, per_unit
from prunefront.pruners.units.watch import CONVOLUTIONS, PRODUCTS, TRANSPOSED, Product, Watch

POSITIONS = 10
"""Number of sampled output positions per image and call, as in both papers."""


def read_transposed(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns that a transposed convolution reads the channels, so that patches have no fixed size; else None."""
    wrong = [m.tensor for m in consumers(group) if m.dim == 0 and len(graph.shapes[m.tensor]) > 2]
    return f"is read by the transposed convolution {wrong[0]!r}" if wrong else None


def not_interior(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns why the channels are not a single layer's, or are read in patches of no fixed size; None otherwise."""
    return applies.several_writers(group, graph) or read_transposed(group, graph)


@statistic(
    "contributions",
    fields={"contribution": not_interior},
    takes="reconstruction",
    cost="one forward pass over at most 1000 images",
    images=1000,
)
def contributions(inquiry: Inquiry) -> Values:
    """Every unit's part in sampled outputs of its consumers, bias left out.

    Columns: image by image, for each call of each consumer, `POSITIONS` pairs of an output position and an output
    channel j (Luo et al. 2017, 1707.06342, sec. 3.2). Entry: Σ W[j, c, taps] · patch over the unit's positions c on the
    weight's consuming axis. Over all units (and positions that belong to no unit) a column sums to the consumer's
    output without bias.

    Pairs are drawn, with repetition, from (seed, bytes of the image, weight's name, number of the call). They do not
    depend on how images fall into batches. Raises PrunefrontError where no call takes a consumer's weight.
    """
    tensors = inquiry.model.state_dict(keep_vars=True)
    watching = {m.tensor: tensors[m.tensor] for g in inquiry.groups for m in consumers(g)}
    columns: dict[str, list[Tensor]] = defaultdict(list)
    for inputs, _ in inquiry.batches:
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        digests = image_digests(arguments)
        parts: dict[str, list[Tensor]] = defaultdict(list)

        def see(
            product: Product,
            y: Tensor,
            digests: Sequence[int] = digests,
            parts: dict[str, list[Tensor]] = parts,
        ) -> None:
            key = (inquiry.seed, product.name, len(parts[product.name]))
            parts[product.name].append(_sampled_parts(product, y, digests, key))

        with torch.no_grad(), Watch(watching, on_output=see):
            inquiry.model(*arguments)
        for group in inquiry.groups:
            read = [per_unit(call, m) for m in consumers(group) for call in parts[m.tensor]]
            if not read:
                raise PrunefrontError(
                    f"no conv, linear or matmul call takes {consumers(group)[0].tensor!r} as its weight, so the "
                    f"contributions of group {group.name!r} are unknown; choose a criterion that does not need them"
                )
            columns[group.name].append(torch.cat(read, dim=2).flatten(1))
    return {"contribution": {name: torch.cat(parts, dim=1) for name, parts in columns.items()}}


def _sampled_parts(
    product: Product, y: Tensor, digests: Sequence[int], key: tuple[int, str, int]
) -> Float[Tensor, "positions images samples"]:
    """Returns the part of every position of the weight's consuming axis in the sampled outputs, float64 on the CPU."""
    images, count, weight = len(digests), output_positions(product, y, len(digests)), matrix(product)
    drawn = [_generator(digest, key) for digest in digests]
    site = torch.from_numpy(np.stack([g.integers(count, size=POSITIONS) for g in drawn])).to(y.device)
    channel = torch.from_numpy(np.stack([g.integers(len(weight), size=POSITIONS) for g in drawn])).to(
        y.device
    )
    image = torch.arange(images, device=y.device).repeat_interleave(POSITIONS)
    seen = patches(product, y, images, image, site.flatten())
    j = channel.flatten()
    own = seen[torch.arange(len(j), device=y.device), j * seen.shape[1] // len(weight)]  # j's conv group
    parts = (own.double() * weight[j].double()).sum(dim=2)
    return parts.reshape(images, POSITIONS, -1).permute(2, 0, 1).cpu()


def image_digests(arguments: Sequence[Tensor]) -> list[int]:
    """Returns a number for each image that depends on its bytes alone, over all of the model's inputs."""
    held = [tensor.detach().cpu().contiguous() for tensor in tensors_in(arguments)]
    found = []
    for i in range(len(held[0])):
        digest = hashlib.blake2b(digest_size=8)
        for tensor in held:
            digest.update(tensor[i].reshape(-1).view(torch.uint8).numpy().tobytes())
        found.append(int.from_bytes(digest.digest(), "big"))
    return found


def choose_positions(
    digests: Sequence[int], count: int, key: tuple[int, str, int], most: int | None = None
) -> Int[Tensor, "images chosen"]:
    """Returns `most` different ones of `count` output positions for each image; all if there are no more.

    most: None = `POSITIONS`.
    """
    most = POSITIONS if most is None else most
    if count <= most:
        return torch.arange(count).expand(len(digests), count)
    drawn = [_generator(digest, key).choice(count, most, replace=False) for digest in digests]
    return torch.from_numpy(np.stack(drawn))


def _generator(digest: int, key: tuple[int, str, int]) -> np.random.Generator:
    seed, name, call = key
    where = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return np.random.default_rng([seed, digest, where, call])


def matrix(product: Product) -> Float[Tensor, "outputs inputs taps"]:
    """Returns the weight of a conv (of one conv group's inputs), linear or matmul, arranged by its outputs."""
    if product.func in CONVOLUTIONS:
        return product.weight.flatten(2)
    return (product.weight if product.func is F.linear else product.weight.T).unsqueeze(2)


def output_positions(product: Product, y: Tensor, images: int) -> int:
    """Returns how many output positions of a conv, linear or matmul each image has; y: its output.

    Raises PrunefrontError where the rows of y cannot be assigned to images.
    """
    places = product.outputs(y, images).shape[2]
    # a transposed convolution's outputs have those of its conv groups side by side
    return places // product.options.get("groups", 1) if product.func in TRANSPOSED else places


def patches(
    product: Product, y: Tensor, images: int, image: Int[Tensor, " rows"], site: Int[Tensor, " rows"]
) -> Float[Tensor, "rows convgroups inputs taps"]:
    """Returns the inputs from which an output position is computed: output j = Σ matrix[j] · patch of j's conv group.

    y: the product's output. site: an index in [0, `output_positions`), where an image's own calls come one after the
    other. A tap of a transposed convolution that meets no input at a position has a zero there.
    """
    if product.func in PRODUCTS:
        x = product.x.reshape(images, -1, product.x.shape[-1])
        return x[image, site][:, None, :, None]
    space = y.shape[2:]
    per_row = math.prod(space)
    row = image * (len(y) // images) + torch.div(site, per_row, rounding_mode="floor")
    kernel = product.weight.shape[2:]
    rank = len(kernel)
    stride, dilation = (_each(product.options.get(name, 1), rank) for name in ("stride", "dilation"))
    if (
        transposed := product.func in TRANSPOSED
    ):  # a convolution over the spread input, its kernel turned round
        padded, stride = _spread(product, kernel, stride, dilation), (1,) * rank
        inputs = product.weight.shape[0] // product.options.get("groups", 1)
    else:
        padded = F.pad(product.x, _padding(product.options.get("padding", 0), kernel, dilation))
        inputs = product.weight.shape[1]
    steps = [1] * rank  # distance, in the flattened padded input, of one step along each axis
    for axis in range(rank - 2, -1, -1):
        steps[axis] = steps[axis + 1] * padded.shape[axis + 3]
    outputs = torch.unravel_index(site % per_row, space)
    corner = sum((o * (s * step) for o, s, step in zip(outputs, stride, steps, strict=True)), 0 * site)
    taps = torch.zeros(1, dtype=torch.int64, device=site.device)
    for size, spread, step in zip(kernel, dilation, steps, strict=True):
        along = torch.arange(size, device=site.device) * (spread * step)
        taps = (taps[:, None] + along).flatten()
    if transposed:
        taps = taps.flip(0)
    found = padded.flatten(2)[row[:, None], :, corner[:, None] + taps]  # [rows, taps, channels]
    return found.transpose(1, 2).reshape(len(found), -1, inputs, found.shape[1])


def _spread(
    product: Product, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Float[Tensor, "rows channels ..."]:
    """Returns the input of a transposed convolution with stride - 1 zeros between its elements, and its border."""
    x, rank = product.x, len(kernel)
    padding, more = (_each(product.options.get(name, 0), rank) for name in ("padding", "output_padding"))
    size = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *size)
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
    before = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    pairs = [(b, b + m) for b, m in zip(before, more, strict=True)]
    return F.pad(spread, [n for pair in reversed(pairs) for n in pair])


def _each(option: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """Returns a conv option for every axis."""
    given = (option,) if isinstance(option, int) else tuple(option)
    return given * rank if len(given) == 1 else given


def _padding(option: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Returns what `F.pad` takes, last axis first; `same` puts an odd zero behind, as torch does."""
    if option == "valid":
        pairs = [(0, 0) for _ in kernel]
    elif option == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pairs = [(t // 2, t - t // 2) for t in total]
    else:
        assert not isinstance(option, str)
        pairs = [(p, p) for p in _each(option, len(kernel))]
    return [size for pair in reversed(pairs) for size in pair]
