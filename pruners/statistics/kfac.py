"""Spectral radii of Kronecker-factored Fisher blocks, and their fall without a unit (after 2111.08577)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, TensorSlice
from prunefront.pruners.statistics import Inquiry, Values, statistic
from prunefront.pruners.statistics.logits import check_seen, draw_classes, logits_of
from prunefront.pruners.units.applies import no_producer
from prunefront.pruners.units.inputs import count_images
from prunefront.pruners.units.view import consumers, owners, producers
from prunefront.pruners.units.watch import CONVOLUTIONS, Outputs, Product, Watch

LARGEST = 4608
"""Largest number of rows of a factor: 512 channels × 9 places of a kernel, 170 MB."""

ELEMENTS = 2**27
"""Largest number of values held in factors at a time, 1 GiB; layers beyond that take another pass over the data."""

STEPS = 48
"""Number of products with a matrix to find its largest eigenvalue."""

HELD = 2**25
"""Largest number of values held in iterates at a time, 256 MB."""

FLOOR = 1e-12
"""Smallest fraction of itself to which a radius counts as having fallen."""

Factor = Float[Tensor, "blocks n n"]


def no_radius(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns why the group has no radius: nothing produces it, or a layer's factor would be too large."""
    for part in (*producers(group, graph.shapes), *consumers(group)):
        for side in (_inputs(graph.shapes[part.tensor]), graph.shapes[part.tensor][0]):
            if side > LARGEST:
                return f"has a layer, {part.tensor!r}, with a factor of {side} rows, too large: at most {LARGEST}"
    return no_producer(group, graph)


@dataclass(slots=True)
class Factors:
    """Sums for one layer, float64 on the CPU. inputs: A, if a group is read by it. outputs: G, if it produces one."""

    inputs: Factor | None = None
    outputs: Factor | None = None


@statistic(
    "kfac",
    fields={"radius_drop": no_radius},
    takes="gradients",
    cost="forward and backward on 512 images, and a Lanczos iteration per unit and layer (ResNet-20: 10 s)",
    split="whole",
    images=512,
)
def kfac(inquiry: Inquiry) -> Values:
    """Fall of Σ log ρ, over the layers that produce or read a unit, when the unit goes.

    The Fisher block of layer l is taken as A ⊗ G. A = E[ā āᵀ] of its inputs (with a 1 where it has a bias; for a
    convolution over patches). G = E[δ δᵀ] of the gradients of log p at its outputs, over images and places, with one
    label per image drawn from the model. ρ_l = λmax(A) · λmax(G). A unit takes rows and columns from G of the layers
    that produce it and from A of those that read it. In A these are all places of the kernel of its channel. The rule
    is own, after Ebrahimi & Klabjan 2021, 2111.08577.

    In a grouped convolution A and G have a block for each conv group. The largest λmax of these counts, so ρ_l is an
    upper bound. A transposed convolution is taken over channels without patches. λmax is the best Rayleigh quotient in
    48 steps of power iteration (Lanczos), a lower bound. Where a layer's λmax is zero nothing falls; no fall is larger
    than log 1e12. Raises PrunefrontError where the output is not one row of logits per image.
    """
    shapes = inquiry.graph.shapes
    made = {g.name: producers(g, shapes) for g in inquiry.groups}
    read = {g.name: consumers(g) for g in inquiry.groups}
    drops = {g.name: torch.zeros(g.units, dtype=torch.float64) for g in inquiry.groups}
    makers = {m.tensor for parts in made.values() for m in parts}
    readers = {m.tensor for parts in read.values() for m in parts}
    for layers in _portions(sorted(makers | readers), shapes):
        factors = _factors(inquiry, layers, makers, readers)
        for parts in (made, read):
            here = {name: [m for m in members if m.tensor in layers] for name, members in parts.items()}
            check_seen(inquiry.groups, here, set(factors))
        for group in inquiry.groups:
            for part in made[group.name]:
                if part.tensor in factors and (g := factors[part.tensor].outputs) is not None:
                    drops[group.name] += _part_falls(g, part, 1)
            for part in read[group.name]:
                if part.tensor in factors and (a := factors[part.tensor].inputs) is not None:
                    drops[group.name] += _part_falls(a, part, _places(shapes[part.tensor], part))
    return {"radius_drop": drops}


def log_falls(factor: Factor, rows: Bool[Tensor, "units blocks n"]) -> Float[Tensor, " units"]:
    """Returns log λmax of a block-diagonal matrix ≥ 0, minus that without each unit's rows and columns; ≥ 0."""
    before = _largest(factor, torch.ones(1, *factor.shape[:2], dtype=torch.bool)).max()
    if not before > 0.0:
        return torch.zeros(len(rows), dtype=factor.dtype)
    at_once = max(1, HELD // (STEPS * factor.shape[0] * factor.shape[1]))
    after = torch.cat([_largest(factor, ~some) for some in torch.split(rows, at_once)])
    return -(after / before).clamp(min=FLOOR, max=1.0).log()


def _largest(factor: Factor, kept: Bool[Tensor, "units blocks n"]) -> Float[Tensor, " units"]:
    """Returns λmax of the matrix on the kept rows and columns only, by Lanczos' method for all units side by side.

    The iterates are those of power iteration from one random vector. The best vector among all their combinations is
    taken, not the last of them; this is exact after n steps.
    """
    blocks, n, _ = factor.shape
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(blocks, n, 1, generator=generator, dtype=factor.dtype)
    among = kept.permute(1, 2, 0)  # [blocks, n, units]: one product of matrices per step
    exhausted = 1e-12 * factor.diagonal(dim1=1, dim2=2).amax()
    vector = noise * among
    basis = vector.new_zeros(blocks, len(kept), 0, n)
    diagonal, beside = [], []
    for _ in range(min(STEPS, n)):
        length = vector.norm(dim=1, keepdim=True)
        vector = (vector / length).where(
            length > exhausted, 0.0
        )  # a zero vector only adds eigenvalues of zero
        basis = torch.cat([basis, vector.mT[:, :, None]], dim=2)
        image = (factor @ vector) * among
        diagonal.append((vector * image).sum(dim=1))
        beside.append(length[:, 0].where(length[:, 0] > exhausted, 0.0))
        for _ in range(2):  # two passes are enough against rounding
            along = basis @ image.mT[..., None]
            image = image - (basis.mT @ along)[..., 0].mT
        vector = image
    small = torch.diag_embed(torch.stack(diagonal, dim=2))
    if len(diagonal) > 1:
        off = torch.diag_embed(torch.stack(beside[1:], dim=2), offset=1)
        small = small + off + off.mT
    ritz: Tensor = torch.linalg.eigvalsh(small)
    return ritz.amax(dim=(0, 2))


def _part_falls(factor: Factor, part: TensorSlice, places: int) -> Float[Tensor, " units"]:
    """Returns `log_falls` for a slice's units. places: neighbouring rows of the factor per position of the axis."""
    blocks, n, _ = factor.shape
    rows = torch.zeros(len(part.index), blocks * n, dtype=torch.bool)
    position, unit = owners(part)
    if part.role == "in":  # position i is channel i of every conv group
        inside = (position[:, None] * places + torch.arange(places)).flatten()
        rows.view(-1, blocks, n)[unit.repeat_interleave(places), :, inside] = True
    else:
        rows[unit, position] = True
    return log_falls(factor, rows.view(-1, blocks, n))


def _places(shape: tuple[int, ...], part: TensorSlice) -> int:
    """Returns the rows of A for one input channel: the kernel's places, but 1 in a transposed convolution (dim 0)."""
    return math.prod(shape[2:]) if part.dim == 1 else 1


def _inputs(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:])


def _portions(layers: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[set[str]]:
    """Yields the layers in portions whose factors fit into memory."""
    portion: set[str] = set()
    held = 0
    for name in layers:
        size = _inputs(shapes[name]) ** 2 + shapes[name][0] ** 2
        if portion and held + size > ELEMENTS:
            yield portion
            portion, held = set(), 0
        portion.add(name)
        held += size
    if portion:
        yield portion


def _factors(inquiry: Inquiry, layers: set[str], makers: set[str], readers: set[str]) -> dict[str, Factors]:
    """Returns the sums over all images and places of ā āᵀ and δ δᵀ, for the layers that were called."""
    tensors = inquiry.model.state_dict(keep_vars=True)
    found: dict[str, Factors] = {}
    for inputs, _ in inquiry.batches:
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        n = count_images(arguments)
        outputs = Outputs()
        with torch.enable_grad():
            with Watch({name: tensors[name] for name in layers}, on_output=outputs):
                result = inquiry.model(*arguments)
            scores = logits_of(result, n)
            # log p of a drawn label: its gradient at the logits is e_k - p
            likelihood = (scores * draw_classes(scores.detach(), inputs, inquiry.seed, 1)[0]).sum()
        for (product, _), slope in zip(outputs.calls, outputs.slopes(likelihood), strict=True):
            layer = found.setdefault(product.name, Factors())
            if product.name in readers:
                layer.inputs = _add_gram(layer.inputs, _patches(product, n))
            if product.name in makers and slope is not None:
                layer.outputs = _add_gram(
                    layer.outputs, _blocks(product.outputs(slope, n), _conv_groups(product))
                )
    return found


def _add_gram(total: Factor | None, rows: Float[Tensor, "blocks n samples"]) -> Factor:
    gram = torch.stack([(block @ block.T) for block in rows]).to("cpu", torch.float64)
    return gram if total is None else total + gram


def _conv_groups(product: Product) -> int:
    return int(product.options.get("groups", 1)) if product.func in CONVOLUTIONS else 1


def _blocks(values: Float[Tensor, "images n space"], groups: int) -> Float[Tensor, "blocks n samples"]:
    images, n, space = values.shape
    return values.reshape(images, groups, n // groups, space).permute(1, 2, 0, 3).flatten(2)


def _patches(product: Product, images: int) -> Float[Tensor, "blocks n samples"]:
    """Returns the vectors that the weight's flattened rows multiply, and a 1 where there is a bias."""
    x = product.x.detach()
    if product.func in CONVOLUTIONS:
        kernel = product.weight.shape[2:]
        # each place of the kernel picks its pixel, for each channel alone: unfolding in any number of dimensions
        picks = torch.eye(math.prod(kernel), dtype=x.dtype, device=x.device).view(-1, 1, *kernel)
        channels = x.shape[-len(kernel) - 1]
        options = {k: v for k, v in product.options.items() if k in ("stride", "padding", "dilation")}
        picked = product.func(x, picks.repeat(channels, *[1] * (picks.ndim - 1)), groups=channels, **options)
        rows = _blocks(picked.reshape(images, channels * math.prod(kernel), -1), _conv_groups(product))
    else:
        rows = _blocks(product.inputs(images).detach(), 1)
    if product.options.get("bias") is not None:
        rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    return rows
