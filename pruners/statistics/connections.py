"""Strength of each unit's connections to the outputs of the next layers (NNrelief)."""

import math
from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup
from prunefront.pruners.statistics import Inquiry, Values, images, statistic
from prunefront.pruners.statistics.contributions import matrix, read_transposed
from prunefront.pruners.units.applies import no_consumer
from prunefront.pruners.units.inputs import count_images
from prunefront.pruners.units.view import consumers, per_unit
from prunefront.pruners.units.watch import CONVOLUTIONS, Product, Watch

ELEMENTS = 2**24
"""Largest number of strengths, one per output position, that are held at a time: 128 MiB."""


def not_connected(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns why connections are unknown: no layer reads the group, or a transposed convolution does; else None."""
    return no_consumer(group, graph) or read_transposed(group, graph)


@statistic(
    "connections",
    fields={"connection": not_connected},
    takes="forward",
    cost="one forward pass over at most 1000 images",
    split="whole",
    images=1000,
)
def connections(inquiry: Inquiry) -> Values:
    """Each unit's share of all that reaches an output, per output of its consumers (NNrelief), in [0, 1].

    Strength (Dekhovich et al. 2021, 2109.10795) of the connection from input c to output k: mean_n |w_kc x_nc|. For a
    kernel it is Σ_taps |W[k, c]| ⊙ mean_n |patch_c| at every output position, then the Frobenius norm over positions.
    The bias has the strength |b_k| √positions. A unit with several inputs has the sum of their strengths (own); an
    output that several calls compute has the positions of all of them (own).

    Entries are strengths over the output's total, which includes the bias and the inputs of other groups. A column
    therefore sums to 1 less the share that does not come from these units. A bias that a separate operator adds is not
    seen. An output that nothing reaches has zeros. Columns: outputs, consumer by consumer.

    Raises PrunefrontError where no call takes a consumer's weight or positions differ from batch to batch.
    """
    tensors = inquiry.model.state_dict(keep_vars=True)
    watching = {m.tensor: tensors[m.tensor] for g in inquiry.groups for m in consumers(g)}
    means: dict[str, list[Tensor]] = defaultdict(list)  # means of |x|, one per call
    calls: dict[str, list[tuple[Product, int]]] = {}  # each with its number of output positions
    count = sum(map(images, inquiry.batches))
    for inputs, _ in inquiry.batches:
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        calls = defaultdict(list)

        def see(
            product: Product,
            y: Tensor,
            calls: dict[str, list[tuple[Product, int]]] = calls,
            n: int = count_images(arguments),
        ) -> None:
            number = len(calls[product.name])
            calls[product.name].append((product, product.outputs(y, n).shape[2]))
            added = product.x.abs().double().reshape(n, -1, *product.x.shape[1:]).sum(dim=0) / count
            if number == len(means[product.name]):
                means[product.name].append(torch.zeros_like(added))
            if means[product.name][number].shape != added.shape:
                raise PrunefrontError(
                    f"weight {product.name!r} sees maps of {tuple(means[product.name][number].shape)} and of "
                    f"{tuple(added.shape)}, so their mean over images is unknown; give images of one size"
                )
            means[product.name][number] += added

        with torch.no_grad(), Watch(watching, on_output=see):
            inquiry.model(*arguments)
    found = {}
    for group in inquiry.groups:
        parts = [m for m in consumers(group) if calls.get(m.tensor)]
        if not parts:
            raise PrunefrontError(
                f"no conv, linear or matmul call takes {consumers(group)[0].tensor!r} as its weight, so the "
                f"connections of group {group.name!r} are unknown; choose a criterion that does not need them"
            )
        found[group.name] = torch.cat(
            [per_unit(_shares(calls[m.tensor], means[m.tensor]), m) for m in parts], dim=1
        )
    return {"connection": found}


def _shares(calls: list[tuple[Product, int]], means: list[Tensor]) -> Float[Tensor, "inputs outputs"]:
    """Returns the strengths of a weight's connections over the total of each output, float64 on the CPU."""
    squares = sum(_squares(product, x) for (product, _), x in zip(calls, means, strict=True))
    assert isinstance(squares, Tensor)
    strength = squares.sqrt()
    total = strength.sum(dim=1)
    bias = calls[0][0].options.get("bias")
    if bias is not None:
        total = total + bias.detach().double().abs() * math.sqrt(sum(positions for _, positions in calls))
    return torch.where(total > 0.0, strength.T / total, 0.0 * total).cpu()


def _squares(product: Product, mean: Tensor) -> Float[Tensor, "outputs inputs"]:
    """Returns squared strengths, summed over output positions. mean: |x| over images, [rows per image, …]."""
    weight = product.weight.detach().double().abs()
    if product.func not in CONVOLUTIONS:
        return matrix(product).detach().double()[:, :, 0].square() * mean.reshape(
            -1, mean.shape[-1]
        ).square().sum(dim=0)
    options = {
        name: product.options[name] for name in ("stride", "padding", "dilation") if name in product.options
    }
    outputs, width = weight.shape[:2]
    groups = mean.shape[1] // width
    squares = torch.empty(outputs, width, dtype=torch.float64, device=mean.device)
    for g in range(groups):
        rows = slice(g * outputs // groups, (g + 1) * outputs // groups)
        kernels = weight[rows]
        size = len(mean) * len(kernels) * math.prod(mean.shape[2:])
        chunk = max(1, ELEMENTS // size)
        for first in range(0, width, chunk):
            own = kernels[:, first : first + chunk]  # every channel meets only its own kernels
            each = own.transpose(0, 1).flatten(0, 1).unsqueeze(1)
            x = mean[:, g * width + first : g * width + first + own.shape[1]]
            y = product.func(x, each, None, groups=own.shape[1], **options)
            summed = y.flatten(2).square().sum(dim=(0, 2)).reshape(own.shape[1], -1)
            squares[rows, first : first + own.shape[1]] = summed.T
    return squares
