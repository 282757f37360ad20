"""Quantisers: how a weight becomes codes of a few bits, and what these stand for. Modules here are found by themselves.

A code c in [0, 2^bits) stands for the integer z = levels(bits)[c] and the number z · scale, plus an offset where there
is one. What differs between quantisers is which integers there are, how the scale is found, which code a weight takes,
and how training goes on through the rounding.
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
"""(weight, scale, offset, bits) -> int64 codes of the weight's shape; those of decoded weights are what was decoded."""

Compand = Callable[[Tensor, Tensor, int], Tensor]
"""(weight, scale, bits) -> what is coded in the weight's place."""

Gradient = Callable[[Tensor, Tensor, int, Tensor], Tensor]
"""(weight, scale, bits, ∂L/∂ its quantised form) -> what is taken for ∂L/∂weight."""

Every = Literal["epoch", "step"]


@dataclass(frozen=True, slots=True)
class Quantiser:
    """A way to store weights in few bits.

    bits: the word lengths that it takes. levels: bits -> the integers that codes 0, 1, … stand for. offset: whether
    there is one besides the scale. kept: what float weights are kept at after each step of training. every: how often
    the scale is fitted anew in training. table: whether the scale is a codebook, float32 [2^bits], with the number that
    each code stands for; levels are the codes then. choose: when, in a few words. paper: authors, year and arXiv
    number. summary: one line, for lists.
    """

    name: str
    bits: range
    levels: Callable[[int], range]
    fit: Fit
    codes: Codes
    compand: Compand
    gradient: Gradient
    kept: Callable[[Tensor], Tensor]
    every: Every
    offset: bool
    summary: str
    choose: str = ""
    paper: str = ""
    table: bool = False

    @property
    def keeps_zero(self) -> bool:
        """Whether a weight of exactly zero stays so. Without it, pruned weights would come back."""
        return self.table or (not self.offset and all(0 in self.levels(bits) for bits in self.bits))

    def check(self, bits: int, weight: str, *, zeros: bool = False) -> None:
        """Raises PrunefrontError for a word length that it does not take.

        zeros: whether those of the weight must stay; raises likewise where there is no level for them.
        """
        if bits not in self.bits:
            least, most = self.bits[0], self.bits[-1]
            takes = f"lengths from {least} to {most}" if most > least else f"the length {least}"
            raise PrunefrontError(
                f"weight {weight!r} cannot have words of {bits} bits from quantiser {self.name!r}, which takes "
                f"{takes}; ask for that, or for 32, which is float"
            )
        if zeros and not self.keeps_zero:
            able = ", ".join(name for name in quantisers if quantisers[name].keeps_zero)
            raise PrunefrontError(
                f"weight {weight!r} has zeros that must stay, and quantiser {self.name!r} has no level there; "
                f"these have: {able}"
            )

    def scale_shape(self, shape: tuple[int, ...], per_channel: bool, bits: int) -> tuple[int, ...]:
        """The shape of the scale, and of the offset, for a weight of this shape."""
        if self.table:
            return (1 << bits,)
        return (shape[0] if per_channel else 1, *[1] * (len(shape) - 1))

    def quantised(self, weight: Tensor, scale: Tensor, offset: Tensor | None, bits: int) -> Tensor:
        """float32 of the weight's shape: what its codes stand for."""
        codes = self.codes(self.compand(weight, scale, bits), scale, offset, bits)
        return self.decoded(codes, scale, offset, bits)

    def decoded(self, codes: Tensor, scale: Tensor, offset: Tensor | None, bits: int) -> Tensor:
        """float32: what codes in [0, 2^bits) stand for, the same bits on any machine."""
        return scale.float()[codes] if self.table else decode(codes, scale, offset, self.levels(bits))


quantisers: Registry[Quantiser] = Registry("quantiser")


def decode(codes: Tensor, scale: Tensor, offset: Tensor | None, levels: range) -> Tensor:
    """float32: levels[code] · scale, rounded, then + offset, rounded; any IEEE machine gives the same bits.

    codes: integers in [0, len(levels)). scale, offset: float32 that broadcast to them. Levels are below 2^24, so that
    float32 holds them exactly.
    """
    integers = codes * levels.step + levels.start
    values = integers.to(torch.float32) * scale
    return values if offset is None else values + offset


def axes(weight: Tensor, per_channel: bool) -> tuple[int, ...]:
    """What one scale spans: all axes, or all but that of the outputs."""
    return tuple(range(int(per_channel), weight.ndim))


def spanned(weight: Tensor, scale: Tensor) -> tuple[int, ...]:
    """The axes that one of these scales spans, as `axes` has them."""
    return axes(weight, scale.shape[0] > 1)


def usable(scale: Tensor) -> Tensor:
    """The scale as float32, with 1 in place of zero: what a weight of zeros has, and one too small for float32."""
    single = scale.to(torch.float32)
    return torch.where(single > 0, single, 1.0)


def nearest(weight: Tensor, scale: Tensor, offset: Tensor | None, levels: range) -> Tensor:
    """Codes of the levels that are nearest; half way, the upper one."""
    place = weight.double() if offset is None else weight.double() - offset.double()
    codes = ((place / scale.double() - levels.start) / levels.step + 0.5).floor()
    return codes.clamp(0, len(levels) - 1).long()


def sign(weight: Tensor) -> Tensor:
    """Codes of one bit: 1 from zero up, 0 below."""
    return (weight >= 0).long()


def unchanged(weight: Tensor) -> Tensor:
    """What a quantiser keeps float weights at that does not touch them."""
    return weight


def itself(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The weight: what is coded where nothing is companded."""
    return weight


def straight_through(weight: Tensor, scale: Tensor, bits: int, gradient: Tensor) -> Tensor:
    """The gradient as it is (Bengio et al. 2013, 1308.3432)."""
    return gradient


def quantiser(
    name: str,
    *,
    bits: range,
    levels: Callable[[int], range],
    codes: Codes,
    compand: Compand = itself,
    gradient: Gradient = straight_through,
    kept: Callable[[Tensor], Tensor] = unchanged,
    every: Every = "step",
    offset: bool = False,
    table: bool = False,
    choose: str = "",
    paper: str = "",
) -> Callable[[Fit], Quantiser]:
    """Decorator that registers a quantiser by the function that fits its scale; arguments as in `Quantiser`.

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
            kept,
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
