"""Element by element comparison of the outputs of a cut and a masked network, which huge constants do not blind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Verdict = Literal["same", "different", "unseen"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Largest difference that is still rounding.

    change: as a share of what other weights change nearby. floor: as a share of what they change in most places of the
    tensor. value: as a share of the value itself. seen: a place would show
    an error where the last is below this share of what other weights change there.
    """

    change: float
    floor: float
    value: float
    seen: float = 1e-2


FIRST_LOOK = Bounds(3e-5, 0.0, 1e-5)
"""Bounds of float32 where float64 has the last word: what is above them is only in doubt."""
FLOAT32 = Bounds(1e-3, 1e-4, 1e-5)
FLOAT64 = Bounds(1e-6, 1e-9, 1e-13)
NARROW = Bounds(0.2, 0.1, 0.02, 0.5)
"""Bounds of float16 and bfloat16, for a network that runs in nothing else."""

_NEIGHBOURS = 8
"""Least number of values in a row along an axis, or across it, for a scale of its own."""


def compare(
    made: Sequence[Tensor], true: Sequence[Tensor], other: Sequence[Tensor], bounds: Bounds
) -> Verdict:
    """Compares outputs of a cut network with those of the masked one; shapes are the same.

    other: outputs of the network with other weights. A place that differs between them shows what the network computes;
    the size of the difference there is the scale that an error is held against, not the value itself, since a constant
    like -1e9 dwarfs every error. "unseen": there is no error, and no place that would show one.
    """
    seen = False
    for mine, right, rest in zip(made, true, other, strict=True):
        if not _real(right):
            continue
        verdict = _compare_one(_double(mine), _double(right), _double(rest), bounds)
        if verdict == "different":
            return verdict
        seen = seen or verdict == "same"
    return "same" if seen else "unseen"


def _compare_one(mine: Tensor, true: Tensor, other: Tensor, bounds: Bounds) -> Verdict:
    finite = true.isfinite()
    if not torch.equal(mine.isfinite(), finite) or not _same_class(mine[~finite], true[~finite]):
        return "different"
    zero = torch.zeros((), dtype=true.dtype, device=true.device)
    both = finite & other.isfinite() if other.shape == true.shape else torch.zeros_like(finite)
    change = torch.where(both, (true - other).abs(), zero) if bool(both.any()) else zero.expand(true.shape)
    error = torch.where(finite, (mine - true).abs(), zero)
    size = torch.where(finite, true.abs(), zero)
    scale, whole = _scales(change)
    rounding = bounds.value * size
    if bool((error > bounds.change * scale + bounds.floor * whole + rounding).any()):
        return "different"
    visible = (change > 0) & (rounding <= bounds.seen * scale)
    return "same" if bool(visible.any()) else "unseen"


def _same_class(left: Tensor, right: Tensor) -> bool:
    """Says whether places that are not finite are the same infinities and the same not-a-numbers."""
    return torch.equal(left.nan_to_num(0.0, 1.0, -1.0), right.nan_to_num(0.0, 1.0, -1.0))


def _scales(change: Tensor) -> tuple[Tensor, float]:
    """Returns the size of the change near each place, and that of the whole tensor; 0 where nothing changes.

    It is a median, which a few huge values do not move, over the places that change at all: of the whole, or of the row
    along any axis if that is smaller, since an output may hold pixels beside probabilities.
    """
    positive = change[change > 0]
    if not positive.numel():
        return change, 0.0
    whole = positive.median()
    scale = whole.expand(change.shape)
    for axis, size in enumerate(change.shape):
        rows = change.movedim(axis, 0).reshape(size, -1)
        if size > 1 and rows.shape[1] >= _NEIGHBOURS:
            near = torch.where(rows > 0, rows, torch.nan).nanmedian(1).values
            view = [1] * change.dim()
            view[axis] = size
            scale = torch.minimum(scale, torch.where(near.isnan(), whole, near).view(view))
    return scale, float(whole)


def _real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _double(tensor: Tensor) -> Tensor:
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return values.detach().double().cpu()
