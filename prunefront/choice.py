"""Choices of a candidate for channel groups, stacks of blocks and layers. Plain data: names and numbers, no torch."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prunefront.errors import RatioError


@dataclass(frozen=True, slots=True)
class GroupChoice:
    """Pruning of one channel group, stack of blocks or layer, as a candidate asks for it.

    criterion: name of the criterion that ranks the units. granularity: what a unit is. ratio: fraction of units
    *dropped*, 0 = dense; within a layer, of the weights that the channels leave it. bits: bit width of a layer's
    weights. keep: None, or the explicit connectivity pattern of a group or stack. The pattern is a hexadecimal bit
    mask, bit u = 1 when unit u stays. It overrides the ranking, and `ratio` must agree with it.
    """

    criterion: str
    ratio: float = 0.0
    granularity: str = "channel"
    bits: int = 32
    keep: str | None = None

    def __post_init__(self) -> None:
        # six digits distinguish any two unit counts and survive a round trip through JSON; + 0.0 turns -0.0 into 0.0
        if not isinstance(self.ratio, int | float):
            raise TypeError(f"ratio of a choice must be a number, got {self.ratio!r:.40}")
        ratio = round(self.ratio, 6) + 0.0
        if not 0.0 <= ratio < 1.0:
            raise RatioError(f"ratio must be in [0, 1), got {self.ratio}")
        object.__setattr__(self, "ratio", ratio)
        if not 1 <= self.bits <= 32:
            raise RatioError(f"bits must be in [1, 32], got {self.bits}")
        if self.keep is not None and not re.fullmatch("[0-9a-f]+", self.keep):
            raise RatioError(f"a pattern is a hexadecimal bit mask such as 'f3', got {self.keep!r:.40}")

    def kept_units(self) -> tuple[int, ...] | None:
        """Returns the unit indices of the explicit pattern, ascending; None when the criterion decides."""
        if self.keep is None:
            return None
        bits = f"{int(self.keep, 16):b}"
        return tuple(u for u, bit in enumerate(reversed(bits)) if bit == "1")

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict. It leaves out fields at their default, so that equal choices have equal text."""
        data: dict[str, Any] = {"criterion": self.criterion, "ratio": self.ratio}
        if self.granularity != "channel":
            data["granularity"] = self.granularity
        if self.bits != 32:
            data["bits"] = self.bits
        if self.keep is not None:
            data["keep"] = self.keep
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "GroupChoice":
        """Reads untrusted data. Raises TypeError for anything that `to_json` does not make."""
        data = dict(data)
        if isinstance(bits := data.get("bits", 32), bool) or not isinstance(bits, int):
            raise TypeError("bits of a choice must be an integer")
        if not isinstance(data.get("keep"), str | None):
            raise TypeError("a pattern must be text")
        choice = cls(**data)
        if not isinstance(choice.criterion, str) or not isinstance(choice.granularity, str):
            raise TypeError("criterion and granularity of a choice must be text")
        return choice


def pattern(units: "tuple[int, ...] | list[int]") -> str:
    """Returns the hexadecimal bit mask of kept unit indices, the form that `GroupChoice.keep` takes."""
    return format(sum(1 << int(u) for u in units), "x")


@dataclass(frozen=True, slots=True)
class Quantisation:
    """Quantisation of weights and activations, for a whole network. The bit width of weights is each layer's own.

    quantiser: name of the weights' quantiser. per_channel: one scale for each output channel, or one for the tensor.
    activations: input quantiser of the layers with quantised weights, "none" leaves their inputs in float.
    activation_bits: bit width of these inputs.
    """

    quantiser: str = "fixed_point"
    per_channel: bool = True
    activations: str = "none"
    activation_bits: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.activation_bits <= 32:
            raise RatioError(f"activation_bits must be in [1, 32], got {self.activation_bits}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Quantisation":
        """Reads untrusted data. Raises TypeError for anything that `to_json` does not make."""
        data = dict(data)
        if type(data.get("activation_bits", 8)) is not int:
            raise TypeError("activation_bits must be an integer")
        quantisation = cls(**data)
        texts, flag = (quantisation.quantiser, quantisation.activations), quantisation.per_channel
        if not all(isinstance(t, str) for t in texts) or type(flag) is not bool:
            raise TypeError("names of quantisers must be text, and per_channel a flag")
        return quantisation
