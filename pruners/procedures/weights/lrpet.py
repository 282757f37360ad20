"""Convolutions that training keeps near low rank (Guo et al. 2022, 2204.05566)."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph, TensorSlice
from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.hook import Hook, Progress
from prunefront.pruners.procedures.masking import recalibrate_norms
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.statistics import Inputs
from prunefront.pruners.units.masks import owner, weights

LOG = logging.getLogger(__name__)
EPSILON = 1e-5
"""Number added to a² where the scaling by a is undone."""


@dataclass(frozen=True, slots=True)
class Part:
    """A convolution to project. rank: the largest to leave. norm: prefix of its own norm's tensors; None = unknown."""

    weight: str
    rank: int
    norm: str | None


def transfer_energy(matrix: Tensor, rank: int) -> Tensor:
    """Returns the matrix at a rank, with the energy of its smaller singular values moved to the larger ones.

    s_{≤r} ← s_{≤r} · √(Σ s² / Σ_{≤r} s²), so that the Frobenius norm stays.
    """
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    head = s[:rank]
    energy = head.square().sum()
    if energy > 0:
        head = head * (s.square().sum() / energy).sqrt()
    low: Tensor = (u[:, :rank] * head) @ v[:rank]
    return low


def project_weight(weight: Tensor, rank: int, scale: Tensor | None = None) -> Tensor:
    """Returns the weight [C_out, C_in, …] at a rank, with the energy moved in the space of the norm's output.

    scale: a = γ / √(σ² + ε) of the norm that follows, [C_out]; None = ones. Rows are scaled by a before and by a / (a²
    + 1e-5) after, which leaves the rank.
    """
    a = torch.ones(len(weight)) if scale is None else scale
    a = a.to(weight.device, torch.float64)[:, None]
    low = transfer_energy(a * weight.detach().double().flatten(1), rank)
    back = torch.ones_like(a) if scale is None else a / (a.square() + EPSILON)
    return (back * low).reshape(weight.shape).to(weight.dtype)


def factorise(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns weights [r, C_in, …] and [C_out, r, 1, …] of two convolutions that equal one of this rank.

    The first takes the stride, padding and dilation, the second is 1 × 1 and takes the bias; each has √s.
    """
    u, s, v = torch.linalg.svd(weight.detach().double().flatten(1), full_matrices=False)
    root = s[:rank].sqrt()
    first = (root[:, None] * v[:rank]).reshape(rank, *weight.shape[1:])
    second = (u[:, :rank] * root).reshape(len(weight), rank, *[1] * (weight.ndim - 2))
    return first.to(weight.dtype), second.to(weight.dtype)


def own_norm(
    model: nn.Module, graph: ChannelGraph, weight: str, seen: Mapping[str, str] | None = None
) -> str | None:
    """Returns the prefix of the batch norm that follows a convolution; None where it cannot be determined.

    It is in the weight's channel group, on the same positions, and holds running statistics. Where other weights
    produce the group too, or it has other norms, as on a residual stream, `seen` decides: see `following_norms`.
    """
    for group in graph.groups:
        made = {m.tensor: m for m in group.members if m.role == "out" and len(graph.shapes[m.tensor]) > 1}
        if weight not in made:
            continue
        parts: dict[str, list[TensorSlice]] = {}
        for member in group.members:
            if member.role == "norm":
                parts.setdefault(member.tensor.rpartition(".")[0], []).append(member)
        fitting = {
            prefix
            for prefix, held in parts.items()
            if all(_lines_up(made[weight], part, graph) for part in held)
            and _scale(model, prefix) is not None
        }
        if len(made) == 1 and len(parts) == 1:
            return next(iter(fitting), None)
        prefix = (seen or {}).get(weight)
        return prefix if prefix in fitting else None
    return None


@torch.no_grad()
def following_norms(model: nn.Module, inputs: Inputs) -> dict[str, str]:
    """Returns weight of a convolution -> prefix of the only batch norm whose input is that convolution's output.

    Observed in one forward pass in eval mode; the model stays as it is.
    """
    made: list[tuple[Tensor, str]] = []  # holds the tensors, so that no new one reuses the identity of one
    read: dict[str, set[str]] = {}

    def after(name: str) -> Callable[..., None]:
        return lambda module, args, output: made.append((output, f"{name}.weight"))

    def before(name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            for output, weight in made:
                if args and args[0] is output:
                    read.setdefault(weight, set()).add(name)

        return look

    hooks = [
        module.register_forward_hook(after(name))
        if isinstance(module, nn.modules.conv._ConvNd)
        else module.register_forward_pre_hook(before(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm)
    ]
    try:
        model.eval()(*inputs) if isinstance(inputs, tuple) else model.eval()(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {weight: next(iter(norms)) for weight, norms in read.items() if len(norms) == 1}


def _lines_up(made: TensorSlice, norm: TensorSlice, graph: ChannelGraph) -> bool:
    return (
        made.index == norm.index
        and graph.shapes[made.tensor][made.dim] == graph.shapes[norm.tensor][norm.dim]
    )


def _scale(model: nn.Module, prefix: str) -> Tensor | None:
    """Returns a = γ / √(σ² + ε) of a batch norm; None for any other module."""
    norm = model.get_submodule(prefix)
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_var is None:
        return None
    a = (norm.running_var + norm.eps).rsqrt()
    return a * norm.weight if norm.affine else a


def find_parts(
    model: nn.Module, graph: ChannelGraph, ratio: float, seen: Mapping[str, str] | None = None
) -> list[Part]:
    """Returns the convolutions to project, rank r = ⌊n (1 − ratio)⌋ with n = min(C_out, C_in · k²).

    seen: from `following_norms`. Own: only where two convolutions are cheaper than the one, r < C_out C_in k² / (C_out
    + C_in k²), and r ≥ 1. Grouped and transposed convolutions, and those without a module, are left as they are.
    """
    found = []
    for name, weight in weights(model, graph).items():
        module = owner(model, name)
        plain = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1
        if not plain or module.weight is not weight:
            continue
        high, wide = weight.flatten(1).shape
        rank = math.floor(min(high, wide) * (1.0 - ratio) + 1e-9)
        if rank >= 1 and rank * (high + wide) < high * wide:
            found.append(Part(name, rank, own_norm(model, graph, name, seen)))
    return found


@torch.no_grad()
def project(model: nn.Module, parts: list[Part]) -> None:
    """Brings the convolutions to their ranks, in place."""
    tensors = dict(model.named_parameters())
    for part in parts:
        weight = tensors[part.weight]
        scale = None if part.norm is None else _scale(model, part.norm)
        weight.copy_(project_weight(weight, part.rank, scale))


class Project(Hook):
    """Projects at the end of every epoch."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts

    def after_step(self, run: Progress) -> None:
        if (run.step + 1) % run.per_epoch == 0:
            project(run.model, self.parts)


@procedure(
    "lrpet",
    over="weights",
    choose="low rank instead of, or in addition to, fewer channels",
    paper="Guo et al. 2022, 2204.05566",
)
def lrpet(run: Run, ratio: float = 0.5) -> Iterator[Phase]:
    """Cuts to the plan, then projects each convolution to a low rank at the end of every epoch of training.

    ratio: p of r = ⌊n (1 − p)⌋, n = min(C_out, C_in · k²). The projection is of diag(a) · W with a = γ / √(σ² + ε) of
    the convolution's own norm. Own: on a residual stream that several convolutions write, a forward pass of a
    calibration batch shows which norm belongs to which convolution. Where it does not, a ≡ 1, and the log says so. The
    weights keep their shape: `factorise` gives the two smaller convolutions.
    """
    if not 0.0 <= ratio < 1.0:
        raise PrunefrontError(f"option 'ratio' of procedure 'lrpet' must be in [0, 1), not {ratio}")
    run.cut()
    seen = following_norms(run.model, run.calibration[0][0]) if run.calibration else None
    found = find_parts(run.model, run.graph, ratio, seen)
    if not found:
        LOG.warning("no convolution is cheaper as two at ratio %s: lrpet projects nothing", ratio)
    lone = [part.weight for part in found if part.norm is None]
    if lone:
        LOG.info("lrpet projects these without a batch norm of their own: %s", ", ".join(lone))
    yield Phase(run.steps_left, hooks=(Project(found),))
    project(run.model, found)
    recalibrate_norms(run)
