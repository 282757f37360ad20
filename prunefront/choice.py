"""Choices of a candidate for channel groups, stacks of blocks and layers: names and numbers, no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunefront.errors import RatioError


@dataclass(frozen=True, slots=True)
class GroupChoice:
    """Request of how to prune one channel group, stack of blocks or layer.

    criterion: ranks the units. granularity: says what a unit is. ratio: fraction of units *dropped*, 0 = dense;
    within a layer, of the weights that the channels leave it. bits: bit width of a layer's weights. keep: None, or an
    explicit connectivity pattern of a group or stack as a hexadecimal bit mask, bit u = 1 when unit u stays. A
    pattern overrides the ranking, and `ratio` must agree with it.
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
        """Returns a plain dict. Fields at their default are left out, so equal choices have equal text."""
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
        """Reads what `to_json` makes. Raises TypeError for anything else, as it may come from elsewhere."""
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
    """Returns the hexadecimal bit mask of the given kept unit indices, the form that `GroupChoice.keep` takes."""
    return format(sum(1 << int(u) for u in units), "x")


@dataclass(frozen=True, slots=True)
class Words:
    """How words shorter than 32 bits become numbers, for a whole network.

    quantiser: of weights. per_channel: one scale for each output channel, or one for the tensor. activations: what
    quantises the inputs of layers whose weights have short words, "none" leaves them; activation_bits: its word length.
    """

    quantiser: str = "fixed_point"
    per_channel: bool = True
    activations: str = "none"
    activation_bits: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.activation_bits <= 32:
            raise RatioError(f"activation_bits must be in [1, 32], got {self.activation_bits}")

    def to_json(self) -> dict[str, Any]:
        return {
            "quantiser": self.quantiser,
            "per_channel": self.per_channel,
            "activations": self.activations,
            "activation_bits": self.activation_bits,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Words":
        """Raises TypeError for anything but what `to_json` makes, as it may come from elsewhere."""
        data = dict(data)
        if type(data.get("activation_bits", 8)) is not int:
            raise TypeError("activation_bits must be an integer")
        words = cls(**data)
        texts, flag = (words.quantiser, words.activations), words.per_channel
        if not all(isinstance(t, str) for t in texts) or type(flag) is not bool:
            raise TypeError("words must be text and a flag")
        return words
