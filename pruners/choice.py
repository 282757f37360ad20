"""What a candidate asks for one channel group. Plain data: names and numbers, no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pruners.errors import RatioError


@dataclass(frozen=True, slots=True)
class GroupChoice:
    """How one channel group shall be pruned.

    criterion: which criterion ranks the units. granularity: what a unit is. ratio: fraction of units *dropped*,
    0 = dense. bits: word length of the weights. keep: None, or an explicit connectivity pattern as a hexadecimal
    bit mask, bit u = 1 when unit u stays; it then overrides the ranking, and `ratio` must agree with it.
    """

    criterion: str
    ratio: float = 0.0
    granularity: str = "channel"
    bits: int = 32
    keep: str | None = None

    def __post_init__(self) -> None:
        # six digits tell any two unit counts apart, and survive a round trip through JSON as text; + 0.0: no "-0.0"
        ratio = round(self.ratio, 6) + 0.0
        if not 0.0 <= ratio < 1.0:
            raise RatioError(f"ratio must be in [0, 1), got {self.ratio}")
        object.__setattr__(self, "ratio", ratio)
        if not 1 <= self.bits <= 32:
            raise RatioError(f"bits must be in [1, 32], got {self.bits}")
        if self.keep is not None and not re.fullmatch("[0-9a-f]+", self.keep):
            raise RatioError(f"a pattern is a hexadecimal bit mask such as 'f3', got {self.keep!r:.40}")

    def kept_units(self) -> tuple[int, ...] | None:
        """Unit indices of the explicit pattern, ascending; None when the criterion decides."""
        if self.keep is None:
            return None
        mask = int(self.keep, 16)
        return tuple(u for u in range(mask.bit_length()) if mask >> u & 1)

    def to_json(self) -> dict[str, Any]:
        """Plain dict; fields at their default are left out, so equal choices have equal text."""
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
        return cls(**data)


def pattern(units: "tuple[int, ...] | list[int]") -> str:
    """Hexadecimal bit mask of the given kept unit indices, the form that `GroupChoice.keep` takes."""
    return format(sum(1 << int(u) for u in units), "x")
