"""The outcome of a candidate: measured numbers with their noise, or a failure with its reason."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prunefront.errors import PrunefrontError
from prunefront.text import one_line

Direction = Literal["max", "min"]


@dataclass(frozen=True, slots=True)
class Objective:
    """A measured quantity and the direction in which it is better, e.g. ("accuracy", "max", "")."""

    name: str
    direction: Direction
    unit: str = ""


Scale = Literal["share", "positive", "real"]
"""Meaning of a metric's differences: points of a share, factors of a positive number, or as they are."""


@dataclass(frozen=True, slots=True)
class Metric(Objective):
    """An objective that a task judges networks by, e.g. ("miou", "max"), and that training can improve.

    chance: value of a network that has learned nothing; None = not known. scale: `share` lies from 0 to 1, `positive`
    above 0, `real` anywhere.
    """

    chance: float | None = None
    scale: Scale = "real"

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name in COSTS:
            raise PrunefrontError(
                f"a metric cannot be called {self.name!r:.60}; use lower-case letters, digits and _, and none of "
                f"{', '.join(COSTS)}"
            )
        if self.direction not in ("max", "min") or self.scale not in ("share", "positive", "real"):
            raise PrunefrontError(
                f"metric {self.name!r} has direction {self.direction!r:.20} and scale {self.scale!r:.20}; directions: "
                "max, min; scales: share, positive, real"
            )
        if self.chance is not None and not math.isfinite(self.chance):
            raise PrunefrontError(
                f"the chance level of metric {self.name!r} must be finite, got {self.chance}"
            )

    @property
    def sign(self) -> float:
        """1 where more is better, -1 where less is."""
        return 1.0 if self.direction == "max" else -1.0


NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
"""Names that a metric may have: they become columns, keys and words of bounds."""

COSTS: Mapping[str, Objective] = {
    o.name: o
    for o in (
        Objective("latency_ms", "min", "ms"),
        Objective("latency_ratio", "min", "of dense"),
        Objective("size_bytes", "min", "bytes"),
        Objective("macs", "min", "MACs"),
        Objective("params", "min"),
    )
}
"""Costs of a network, whatever its task."""

ACCURACY = Metric("accuracy", "max", scale="share")
"""The metric of a study that names no task."""

OBJECTIVES: Mapping[str, Objective] = {ACCURACY.name: ACCURACY, **COSTS}
"""Every quantity that a study without a task of its own can search for."""


def metrics_in(values: Iterable[str]) -> list[str]:
    """Returns the names among measured values that are a task's metrics, in their order."""
    return [name for name in values if name not in COSTS and not name.startswith("predicted_")]


def quality_of(objectives: Sequence[Objective]) -> Metric | None:
    """Returns the metric among objectives, None where there is none."""
    return next((o for o in objectives if isinstance(o, Metric)), None)


@dataclass(frozen=True, slots=True)
class Constraint:
    """A bound on a measured value: feasible when low <= value <= high."""

    name: str
    low: float = -math.inf
    high: float = math.inf

    def violation(self, value: float) -> float:
        """Returns how far the value is outside the bound, relative to it; 0 if inside."""
        over = max(self.low - value, value - self.high, 0.0)
        bound = self.low if value < self.low else self.high
        return over / abs(bound) if over > 0 and bound != 0 else over


class NotFinite(PrunefrontError, ValueError):
    """Raised for a measured value that is NaN or infinite: it is reported as a Failure, not as a Measurement."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Finite values by name, and the half-width of each one's 95 % interval (absent = exact). Raises NotFinite."""

    values: Mapping[str, float]
    noise: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (*self.values.items(), *self.noise.items()):
            if not math.isfinite(value):
                raise NotFinite(f"{name} must be finite, got {value}: tell a Failure instead")

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def to_json(self) -> dict[str, Any]:
        return {"values": dict(self.values), "noise": dict(self.noise)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Measurement":
        """Reads the JSON of `to_json`, perhaps from elsewhere.

        Raises TypeError, KeyError or NotFinite for other data.
        """
        values, noise = dict(data["values"]), dict(data["noise"])
        for name, value in (*values.items(), *noise.items()):
            if not isinstance(name, str) or type(value) not in (int, float):
                raise TypeError(f"{name!r:.40} is measured as {value!r:.40}, which is no number")
        return cls(values, noise)


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why a measurement is missing.

    kind: `diverged`, `out_of_memory`, `crashed`, `error` …; reason: one line.
    """

    kind: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"failure": self.kind, "reason": self.reason}


Outcome = Measurement | Failure


def outcome_from_json(data: Mapping[str, Any]) -> Outcome:
    """Reads the JSON of a Measurement or a Failure. Raises as `Measurement.from_json`."""
    if "failure" in data:
        kind, reason = data["failure"], data["reason"]
        if not isinstance(kind, str) or not isinstance(reason, str):
            raise TypeError("kind and reason of a failure must be text")
        return Failure(one_line(kind, 40), one_line(reason, 500))
    return Measurement.from_json(data)
