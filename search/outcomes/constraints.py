"""Bounds as a user writes them, such as `accuracy >= -1pt`: parsing, checks, and values for a network."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, InvalidOperation
from typing import Literal

from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.measurement import COSTS, NAME, OBJECTIVES, Constraint, Metric
from prunefront.text import did_you_mean

Side = Literal["low", "high"]
Relative = Literal["", "ratio", "points", "difference"]

EXACT = ("macs", "params", "size_bytes")
"""Quantities that follow from a plan alone, the same before training as after it; a size within 1 %."""

POINTS = ("pt", "pts", "pp", "point", "points")

LONGEST = 1000
"""Longest text that is read as a bound, in characters."""
MOST_DIGITS = 400
"""Most digits before or behind the point of a bound: more than any float has, few enough to be written out."""

_COUNTS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}

_SIZES = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KiB": 2**10,
    "MB": 10**6,
    "MiB": 2**20,
    "GB": 10**9,
    "GiB": 2**30,
}
_CENT = Decimal("0.01")

UNITS: Mapping[str, Mapping[str, int | Decimal]] = {
    "accuracy": {"": 1, "%": _CENT, **dict.fromkeys(POINTS, _CENT)},
    "latency_ms": {"": 1, "ms": 1, "us": Decimal("0.001"), "µs": Decimal("0.001"), "s": 1000},
    "latency_ratio": {"": 1, "%": _CENT},
    "size_bytes": _SIZES,
    "macs": _COUNTS,
    "params": _COUNTS,
}
"""Units by quantity: the text behind the number, and how many of the quantity's own unit that is."""

_WRITTEN = {"latency_ms": ("ms",), "size_bytes": ("GB", "MB", "kB", "B"), "macs": ("G", "M", "k", "")}
_WRITTEN["params"] = _WRITTEN["macs"]

_OF_DENSE = "or % of what dense has"
_KNOWN_UNITS = {
    "accuracy": "0.85 or 85% for itself, -1pt for points below dense, or '99% of dense'",
    "latency_ms": f"ms, us, s, {_OF_DENSE}",
    "latency_ratio": "a share of dense, 0.6 or 60%",
    "size_bytes": f"B, kB (1000 bytes), KiB (1024), MB, MiB, GB, GiB, {_OF_DENSE}",
    "macs": f"k, M, G, {_OF_DENSE}",
    "params": f"k, M, G, {_OF_DENSE}",
}

_SLACK = 1e-12
"""Relative slack of a computed limit, so that rounding does not shut out a value that meets the bound exactly."""

_TEXT = re.compile(r"\s*([A-Za-z_]\w*)\s*(<=|>=|=<|=>|==|<|>|=)?\s*(.*?)\s*", re.DOTALL)
_NUMBER = re.compile(r"([+-]?)(\d[\d_]*(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*(.*)", re.DOTALL)
_EXACTLY = Context(prec=60)


class ConstraintError(PrunefrontError):
    """A bound that cannot be read, does not fit its quantity, or contradicts another one."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A lower or upper bound on a measured quantity; the value itself is allowed.

    value: in the quantity's own unit. With `relative`, "ratio" multiplies the dense network's value, "difference" is
    added to it, and "points" is a share that is added to it. A name that no study knows by itself is that of a task's
    metric, which `check_metrics` holds the bound to. Raises ConstraintError for a value, a side or a reference that
    the quantity cannot have.
    """

    name: str
    side: Side
    value: float
    relative: Relative = ""

    def __post_init__(self) -> None:
        _check_name(self.name, f"{self.name} {_sign(self.side)} {self.value:g}", any_metric=True)
        if fault := _fault(self.name, self.side, self.value, self.relative):
            raise ConstraintError(f"{self.name} {_sign(self.side)} {self.value:g}: {fault}")

    @property
    def measured(self) -> str:
        """The name of the measured value that is compared.

        A latency relative to the dense network is a quantity of its own, measured in pairs
        (docs/decisions/0004-latency.md).
        """
        return "latency_ratio" if self.name == "latency_ms" and self.relative else self.name

    def limit(self, dense: Mapping[str, float]) -> float:
        """Returns the bound on `measured`.

        dense: values of the dense network. Raises ConstraintError if one is missing.
        """
        if not self.relative or self.measured == "latency_ratio":
            return self.value
        if self.name not in dense:
            raise ConstraintError(
                f"'{self}' is relative to the dense network, whose {self.name} is not known"
            )
        value = dense[self.name] * self.value if self.relative == "ratio" else dense[self.name] + self.value
        return value + (_SLACK if self.side == "high" else -_SLACK) * abs(value)

    def at(self, value: float, dense: Mapping[str, float]) -> "Bound":
        """Returns this bound, moved so that `value` of `measured` just meets it.

        It has three digits, rounded outwards.
        """
        moved = value
        if self.relative and self.measured == self.name:
            moved = value / dense[self.name] if self.relative == "ratio" else value - dense[self.name]
        rounding = ROUND_CEILING if self.side == "high" else ROUND_FLOOR
        return replace(self, value=float(Context(prec=3, rounding=rounding).create_decimal(repr(moved))))

    def __str__(self) -> str:
        """Writes the bound as in a study file; `parse` reads the same bound from it."""
        return f"{self.name} {_sign(self.side)} {self._amount()}"

    def _amount(self) -> str:
        value = Decimal(repr(self.value))
        if self.relative == "difference":
            return _plain(value, "+")
        if self.name not in UNITS and not self.relative:
            return _plain(value) + (" absolute" if value < 0 else "")
        if self.relative == "points":
            return f"{_plain(value * 100, '+')}pt"
        if self.relative == "ratio":
            return f"{_plain(value * 100)}%{'' if self.name in COSTS else ' of dense'}"
        if self.name == "accuracy":
            return f"{_plain(value * 100)}%" if value >= Decimal("0.01") else _plain(value)
        units = _WRITTEN.get(self.name, ("",))
        unit = next((u for u in units if value >= UNITS[self.name][u]), units[-1])
        return f"{_plain(value / UNITS[self.name][unit])}{unit}"


def parse(text: str, *, any_metric: bool = False) -> Bound:
    """Returns the bound that a text such as `latency_ms <= 60%` states; docs/constraints.md describes the language.

    any_metric: a name that no study knows by itself may be that of a task's metric (`check_metrics`).

    Raises ConstraintError, one line that says what to write instead.
    """
    if len(text) > LONGEST:
        raise ConstraintError(f"a bound has at most {LONGEST} characters, not {len(text)} as {text!r:.40}")
    shown = " ".join(text.split())
    found = _TEXT.fullmatch(text.replace("≤", "<=").replace("≥", ">=").replace("−", "-"))
    if found is None or not found[2] or not found[3]:
        raise ConstraintError(
            f"{shown!r} is no bound; write NAME <= VALUE or NAME >= VALUE, as 'macs <= 50%'"
        )
    name, sign, amount = found.groups()
    _check_name(name, shown, any_metric=any_metric)
    if sign not in ("<=", ">="):
        likely = "<=" if "<" in sign else ">=" if ">" in sign else "<= or >="
        raise ConstraintError(f"{shown!r}: write {likely}; a bound includes its own value")
    number = _NUMBER.fullmatch(amount)
    if number is None:
        raise ConstraintError(
            f"{shown!r}: {amount!r} is no number with a unit; write it as in '{_example(name)}'"
        )
    value, unit = _decimal(number[1] + number[2]), " ".join(number[3].split())
    if value is None:
        raise ConstraintError(f"{shown!r}: a bound is a finite number")
    side: Side = "low" if sign == ">=" else "high"
    try:
        amount_read, relative = _read(name, value, unit, signed=bool(number[1]))
    except ValueError as fault:
        if did_you_mean(name, OBJECTIVES):  # more likely a slip than a metric
            _check_name(name, shown)
        raise ConstraintError(f"{shown!r}: {fault}") from None
    if fault_found := _fault(name, side, amount_read, relative):
        raise ConstraintError(f"{shown!r}: {fault_found}")
    return Bound(name, side, amount_read, relative)


def _decimal(text: str) -> Decimal | None:
    """Reads a number. Returns None for one far beyond every float, which would be slow to calculate with."""
    try:
        value = Decimal(text.replace("_", ""))
    except InvalidOperation:
        return None
    if value == 0:
        return Decimal(0)
    return value if abs(value.adjusted()) < MOST_DIGITS else None


def _read(name: str, value: Decimal, unit: str, *, signed: bool) -> tuple[float, Relative]:
    """Returns the bound's value and what it is relative to. Raises ValueError that says what to write instead."""
    if name not in UNITS:
        return _read_metric(value, unit, signed=signed)
    of_dense = unit.endswith("of dense")
    unit = unit.removesuffix("of dense").rstrip()
    if of_dense and unit in ("", "%"):
        return float(value / 100 if unit else value), "" if name == "latency_ratio" else "ratio"
    if of_dense:
        raise ValueError(f"write a share of dense as 60%, without {unit!r}")
    if unit == "%" and name not in ("accuracy", "latency_ratio"):
        if value < 0:
            raise ValueError(f"for {_plain(-value)} % less than dense write {_plain(100 + value)}%")
        return float(value / 100), "ratio"
    if unit not in UNITS[name]:
        raise ValueError(_unit_fault(name, unit))
    if unit in POINTS:
        if not signed:
            raise ValueError(
                f"write -{value}pt for points below the dense network, or {value}% for the accuracy itself"
            )
        return float(value / 100), "points"
    if name == "accuracy":
        _check_share(value, unit, signed=signed)
    return float(_EXACTLY.multiply(value, Decimal(UNITS[name][unit]))), ""


def _read_metric(value: Decimal, unit: str, *, signed: bool) -> tuple[float, Relative]:
    """Returns value and reference of a bound on a task's metric, whose scale is not known here."""
    if unit == "absolute":
        return float(value), ""
    if unit in POINTS:
        if not signed:
            raise ValueError(f"write -{value}pt or +{value}pt for points beside the dense network")
        return float(value / 100), "points"
    if unit == "%" and signed:
        return float(1 + value / 100), "ratio"
    if unit in ("x", "×"):
        return float(value), "ratio"
    if unit in ("% of dense", "of dense"):
        return float(value / 100 if unit[0] == "%" else value), "ratio"
    if unit == "%":
        raise ValueError(
            f"write {_plain(value / 100)} for the value itself, or {value}% of dense; +2% is 2 % more than dense"
        )
    if unit:
        raise ValueError(
            f"there is no unit {unit!r} of a task's metric; it takes 0.8 for itself, and beside the dense network -1pt "
            "(of a share), +0.3, +2%, 1.05x or '98% of dense'"
        )
    return float(value), "difference" if signed else ""


def check_metrics(bounds: Sequence[Bound], metrics: Sequence[Metric]) -> None:
    """Raises ConstraintError for a bound that names neither a cost nor one of the task's metrics, or that its metric
    cannot have: on the side where more quality is forbidden, or in words of another scale."""
    known = {m.name: m for m in metrics}
    for bound in bounds:
        if bound.name in COSTS:
            continue
        if bound.name not in known:
            names = [*known, *COSTS]
            raise ConstraintError(
                f"'{bound}': no quantity is called {bound.name!r}; "
                f"{did_you_mean(bound.name, names)}known: {', '.join(names)}"
            )
        metric = known[bound.name]
        if bound.side != ("low" if metric.direction == "max" else "high"):
            better, sign = ("more", ">=") if metric.direction == "max" else ("less", "<=")
            raise ConstraintError(
                f"'{bound}' contradicts the metric, of which {better} is better: write {metric.name} {sign} …"
            )
        if bound.relative == "points" and metric.scale != "share":
            raise ConstraintError(
                f"'{bound}': points are of a share, which {metric.name} is not; write +0.3 or 1.05x"
            )
        if bound.relative == "ratio" and metric.scale == "real":
            raise ConstraintError(
                f"'{bound}': {metric.name} may be zero or negative, so that a share of dense means nothing; write +0.3 "
                "for a difference"
            )
        if not bound.relative and metric.scale == "share" and not 0 <= bound.value <= 1:
            raise ConstraintError(
                f"'{bound}': {metric.name} is a share from 0 to 1; -1pt is relative to dense"
            )


def _check_share(value: Decimal, unit: str, *, signed: bool) -> None:
    """Raises ValueError for an accuracy that could be a share, a percentage or a difference."""
    if signed:
        points = _plain(value if unit else value * 100, "+")
        raise ValueError(
            f"write {points}pt for points beside the dense network, or a share of its own as '99% of dense'"
        )
    if not unit and value >= 1:
        points = f", or -{value}pt for points below the dense network" if value < 50 else ""
        raise ValueError(f"an accuracy is a share from 0 to 1; write {value}% for the percentage{points}")
    if unit and 0 < value < 1:
        raise ValueError(
            f"write {value} or {_plain(value * 100)}% for the accuracy itself, -{value}pt for points below the dense "
            "network"
        )


def _unit_fault(name: str, unit: str) -> str:
    known = _KNOWN_UNITS[name]
    if any(unit in units for units in UNITS.values()):
        return f"{name} has no unit {unit!r}; it takes {known}"
    near = did_you_mean(unit, filter(None, UNITS[name]))
    return f"there is no unit {unit!r}; {near}{name} takes {known}"


def _example(name: str) -> str:
    return {"accuracy": "accuracy >= -1pt", "size_bytes": "size_bytes <= 250kB"}.get(name, f"{name} <= 60%")


def _check_name(name: str, shown: str, *, any_metric: bool = False) -> None:
    if name not in OBJECTIVES and not (any_metric and NAME.fullmatch(name)):
        raise ConstraintError(
            f"{shown!r}: no quantity is called {name!r}; {did_you_mean(name, OBJECTIVES)}known: "
            f"{', '.join(OBJECTIVES)}"
        )


def _fault(name: str, side: Side, value: float, relative: Relative) -> str | None:
    """Returns the reason why a bound cannot be, however it was written, or None."""
    if not math.isfinite(value):
        return "a bound is a finite number"
    if name not in UNITS:
        if relative == "ratio":
            return None if 0 < value <= 10 else "a factor of dense is above 0 and at most 10"
        if relative == "points":
            return None if -1 < value < 1 else "points are of a share, and fewer than 100"
        return None
    if name == "accuracy" and side == "high":
        return "accuracy is bounded from below: write accuracy >= …"
    if name.startswith("latency") and side == "low":
        return f"latency is bounded from above: write {name} <= …"
    if relative == "points":
        return None if name == "accuracy" and -1 < value < 1 else "points are of accuracy, and fewer than 100"
    if relative == "ratio" or name == "latency_ratio":
        return (
            None
            if 0 < value <= 10
            else "a share of dense is above 0 and at most 10; 60% or 0.6 of dense, say"
        )
    if name == "accuracy":
        return None if 0 <= value <= 1 else "an accuracy is a share from 0 to 1, that is 0% to 100%"
    if name in EXACT and value < 1:
        return f"a count below one is impossible; for half of dense write {name} {_sign(side)} 50%"
    return None if value > 0 else "a bound is above 0"


def check_compatible(bounds: Sequence[Bound]) -> None:
    """Raises ConstraintError if no value can meet two of the bounds, whatever the dense network is.

    `resolve` finds the contradictions that depend on the dense network.
    """
    for low in bounds:
        for high in bounds:
            sides = (low.name, low.relative, low.side) == (
                high.name,
                high.relative,
                "low",
            ) and high.side == "high"
            if sides and low.value > high.value:
                raise _contradiction(low, high)


def _contradiction(low: Bound, high: Bound) -> ConstraintError:
    return ConstraintError(
        f"'{low}' and '{high}' contradict each other: nothing is above the one and below the other"
    )


def resolve(
    bounds: Sequence[Bound], dense: Mapping[str, float], known: Collection[str] | None = None
) -> tuple[Constraint, ...]:
    """Returns one constraint for each measured value that is bounded: the tightest of its bounds on each side.

    dense: values of the dense network, measured as those that will be compared. known: the values that a stage has;
    bounds on other values are left out. None = all. Raises ConstraintError for bounds that contradict each other for
    this network, and for a relative bound whose dense value is missing.
    """
    lows: dict[str, tuple[float, Bound]] = {}
    highs: dict[str, tuple[float, Bound]] = {}
    for bound in bounds:
        if known is not None and bound.measured not in known:
            continue
        limit, sides = bound.limit(dense), lows if bound.side == "low" else highs
        tightest = sides.get(bound.measured, (limit, bound))[0]
        if (limit >= tightest) if bound.side == "low" else (limit <= tightest):
            sides[bound.measured] = limit, bound
    for name in lows.keys() & highs.keys():
        if lows[name][0] > highs[name][0]:
            raise _contradiction(lows[name][1], highs[name][1])
    return tuple(
        Constraint(
            name,
            low=lows[name][0] if name in lows else -math.inf,
            high=highs[name][0] if name in highs else math.inf,
        )
        for name in dict.fromkeys(b.measured for b in bounds)
        if name in lows or name in highs
    )


def describe_violations(values: Mapping[str, float], constraints: Sequence[Constraint]) -> str:
    """Describes each broken constraint by its value and its limit; "" if none is broken."""
    found = []
    for c in constraints:
        value = values[c.name]
        if c.violation(value) > 0:
            limit = f">= {_short(c.name, c.low)}" if value < c.low else f"<= {_short(c.name, c.high)}"
            found.append(f"{c.name} {_short(c.name, value)} ({limit} was asked)")
    return ", ".join(found)


def _short(name: str, value: float) -> str:
    return f"{value:,.0f}" if name in EXACT else f"{value:.4g}"


def _sign(side: Side) -> str:
    return ">=" if side == "low" else "<="


def _plain(value: Decimal, sign: str = "") -> str:
    return format(value.normalize(_EXACTLY), f"{sign}f")
