"""Quantisers: from weights to codes of a few bits, and back. All modules of this folder are imported here.

A code c in [0, 2^bits) stands for the integer z = levels(bits)[c] and the number z · scale, plus an offset if there is
one. Quantisers differ in these integers, in the fit of the scale, in the code that a weight gets, and in the gradient
through the rounding.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.registry import Registry, summary_of

Fit = Callable[[Tensor, int, bool], tuple[Tensor, Tensor | None]]
"""(weight, bits, per_channel) -> float32 scale, above 0, and offset: [1, 1, …] or [C_out, 1, …], as many axes as the
weight. Pure, and the same for the same weight."""

Codes = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]
"""(weight, scale, offset, bits) -> int64 codes of the weight's shape. Decoded weights have the same codes again."""

Compand = Callable[[Tensor, Tensor, int], Tensor]
"""(weight, scale, bits) -> the tensor that is coded in the weight's place."""

Gradient = Callable[[Tensor, Tensor, int, Tensor], Tensor]
"""(weight, scale, bits, ∂L/∂ its quantised form) -> the gradient that the float weight is trained with."""

Every = Literal["epoch", "step"]
"""Period after which training fits the scale again."""


@dataclass(frozen=True, slots=True)
class Quantiser:
    """A way to store weights in few bits.

    bits: the bit widths that it takes. levels: bits -> the integers that codes 0, 1, … stand for. offset: whether there
    is an offset besides the scale. constrain: applied to the float weights after each step of training. every: period
    after which training fits the scale again. table: whether the scale is a codebook, float32 [2^bits], with the number
    that each code stands for; levels are the codes then. choose: advice on when to choose it, in a few words. paper:
    authors, year and arXiv number. summary: one line, for lists.
    """

    name: str
    bits: range
    levels: Callable[[int], range]
    fit: Fit
    codes: Codes
    compand: Compand
    gradient: Gradient
    constrain: Callable[[Tensor], Tensor]
    every: Every
    offset: bool
    summary: str
    choose: str = ""
    paper: str = ""
    table: bool = False

    @property
    def keeps_zero(self) -> bool:
        """True if a weight of exactly zero stays zero. If not, pruned weights would come back."""
        return self.table or (not self.offset and all(0 in self.levels(bits) for bits in self.bits))

    def check(self, bits: int, weight: str, *, zeros: bool = False) -> None:
        """Raises PrunefrontError for a bit width that the quantiser does not take.

        zeros: whether zeros of the weight must stay; it raises likewise if there is no level for them.
        """
        if bits not in self.bits:
            least, most = self.bits[0], self.bits[-1]
            takes = f"{least} to {most}" if most > least else f"{least}"
            raise PrunefrontError(
                f"weight {weight!r} cannot have {bits} bits from quantiser {self.name!r}, which takes {takes}; "
                "ask for that, or for 32, which is float"
            )
        if zeros and not self.keeps_zero:
            able = ", ".join(name for name in quantisers if quantisers[name].keeps_zero)
            raise PrunefrontError(
                f"weight {weight!r} has zeros that must stay, and quantiser {self.name!r} has no level there; "
                f"these have: {able}"
            )

    def scale_shape(self, shape: tuple[int, ...], per_channel: bool, bits: int) -> tuple[int, ...]:
        """Returns the shape of the scale, and of the offset, for a weight of this shape."""
        if self.table:
            return (1 << bits,)
        return (shape[0] if per_channel else 1, *[1] * (len(shape) - 1))

    def quantised(self, weight: Tensor, scale: Tensor, offset: Tensor | None, bits: int) -> Tensor:
        """Returns the weight on its levels, float32 of its shape."""
        codes = self.codes(self.compand(weight, scale, bits), scale, offset, bits)
        return self.decoded(codes, scale, offset, bits)

    def decoded(self, codes: Tensor, scale: Tensor, offset: Tensor | None, bits: int) -> Tensor:
        """Returns the numbers that codes in [0, 2^bits) stand for, float32, bit for bit the same on any machine."""
        return scale.float()[codes] if self.table else decode(codes, scale, offset, self.levels(bits))


quantisers: Registry[Quantiser] = Registry("quantiser")


def decode(codes: Tensor, scale: Tensor, offset: Tensor | None, levels: range) -> Tensor:
    """Returns levels[code] · scale, rounded to float32, + offset, rounded; any IEEE machine gives the same bits.

    codes: integers in [0, len(levels)). scale, offset: float32 that broadcast to them. Levels are below 2^24, so that
    float32 holds them exactly.
    """
    integers = codes * levels.step + levels.start
    values = integers.to(torch.float32) * scale
    return values if offset is None else values + offset


def scale_axes(weight: Tensor, per_channel: bool) -> tuple[int, ...]:
    """Returns the axes that one scale spans: all, or all but that of the outputs."""
    return tuple(range(int(per_channel), weight.ndim))


def axes_of_scale(weight: Tensor, scale: Tensor) -> tuple[int, ...]:
    """Returns the axes that one of these scales spans, as `scale_axes`."""
    return scale_axes(weight, scale.shape[0] > 1)


def positive_scale(scale: Tensor) -> Tensor:
    """Returns the scale as float32, with 1 for zero, the scale of a weight of zeros or one too small for float32."""
    single = scale.to(torch.float32)
    return torch.where(single > 0, single, 1.0)


def nearest_codes(weight: Tensor, scale: Tensor, offset: Tensor | None, levels: range) -> Tensor:
    """Returns codes of the nearest levels; half way, the upper one."""
    place = weight.double() if offset is None else weight.double() - offset.double()
    codes = ((place / scale.double() - levels.start) / levels.step + 0.5).floor()
    return codes.clamp(0, len(levels) - 1).long()


def sign_codes(weight: Tensor) -> Tensor:
    """Returns codes of one bit: 1 from zero up, 0 below."""
    return (weight >= 0).long()


def no_constraint(weight: Tensor) -> Tensor:
    """Returns the float weights as they are."""
    return weight


def no_companding(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Returns the weight as it is."""
    return weight


def straight_through(weight: Tensor, scale: Tensor, bits: int, gradient: Tensor) -> Tensor:
    """Returns the gradient as it is (Bengio et al. 2013, 1308.3432)."""
    return gradient


def quantiser(
    name: str,
    *,
    bits: range,
    levels: Callable[[int], range],
    codes: Codes,
    compand: Compand = no_companding,
    gradient: Gradient = straight_through,
    constrain: Callable[[Tensor], Tensor] = no_constraint,
    every: Every = "step",
    offset: bool = False,
    table: bool = False,
    choose: str = "",
    paper: str = "",
) -> Callable[[Fit], Quantiser]:
    """Returns a decorator that registers a quantiser by the function that fits its scale; arguments as in `Quantiser`.

    Raises ValueError for a name already taken, or a function without a docstring, whose first line is the summary.
    """

    def file(fit: Fit) -> Quantiser:
        summary = summary_of(fit, "quantiser", name)
        entry = Quantiser(
            name,
            bits,
            levels,
            fit,
            codes,
            compand,
            gradient,
            constrain,
            every,
            offset,
            summary,
            choose,
            paper,
            table,
        )
        return quantisers.register(name)(entry)

    return file


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
