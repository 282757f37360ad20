"""Chooses one network of a front: the best within bounds, or the one with a given key."""

from collections.abc import Mapping, Sequence

from prunefront.pipelines.fronts.row import FrontError, FrontRow
from prunefront.search.outcomes.constraints import Bound, check_metrics, describe_violations, parse, resolve
from prunefront.search.outcomes.measurement import COSTS, Constraint
from prunefront.text import did_you_mean

COLUMNS = (*COSTS, "latency_ratio_high", "epochs")
"""Fields of a row that can be bounded, whatever its metric."""


def best_row(
    rows: Sequence[FrontRow],
    under: Mapping[str, float],
    by: str | None = None,
    require: Sequence[str] = (),
) -> FrontRow:
    """Returns the row that is best in the objective `by` (None = the metric) among those with `row[name] <=
    bound` for every bound, and that meet every requirement.

    require: bounds as a study file writes them, such as `accuracy >= -1pt`; what is relative is so to the dense row.
    Raises FrontError for a column or an objective that there is not, and where no row is within the bounds; it then
    names the smallest values possible, and the nearest row. Raises ConstraintError for text that is no bound.
    """
    metric = rows[0].metric
    for name in under:
        _check_name(name, (metric.name, f"{metric.name}_low", f"{metric.name}_high", *COLUMNS), "column")
    by = metric.name if by is None else by
    _check_name(by, (metric.name, *COSTS), "objective")
    required = required_of(rows, require)
    met = [row for row in rows if not broken_by(row, required)]
    if not met:
        least = min(rows, key=lambda row: (_violation(row, required), row.latency_ms, row.key))
        raise FrontError(
            f"no network of the front meets {', '.join(require)}; the nearest is {least.key}: "
            f"{broken_by(least, required)}"
        )
    fit = [row for row in met if _fits(row, under)]
    if not fit:
        raise FrontError(
            _explain(met, under) + (f" (of those that meet {', '.join(require)})" if require else "")
        )
    sign = -metric.sign if by == metric.name else 1.0
    return min(fit, key=lambda row: (sign * _value(row, by), row.latency_ms, row.size_bytes, row.key))


def required_of(rows: Sequence[FrontRow], texts: Sequence[str]) -> tuple[Constraint, ...]:
    """Returns bounds as limits on the values of this front's networks. Raises ConstraintError, FrontError."""
    bounds = [parse(text, any_metric=True) for text in texts]
    check_metrics(bounds, [rows[0].metric])
    dense = next((row for row in rows if row.is_dense), None)
    if dense is None and (relative := [b for b in bounds if needs_dense(b)]):
        raise FrontError(f"'{relative[0]}' is relative to the dense network, which is not among the rows")
    return resolve(bounds, {} if dense is None else values_of(dense))


def needs_dense(bound: Bound) -> bool:
    """Tells whether a bound follows from the dense network's value."""
    return bool(bound.relative) and bound.measured != "latency_ratio"


def values_of(row: FrontRow) -> dict[str, float]:
    """Returns what can be bounded of a row, by name."""
    return {name: _value(row, name) for name in (row.metric.name, *COSTS)}


def broken_by(row: FrontRow, limits: Sequence[Constraint]) -> str:
    """Describes the limits that a row does not keep; "" where it keeps all."""
    return describe_violations(values_of(row), limits)


def knee(rows: Sequence[FrontRow], cost: str) -> FrontRow | None:
    """Returns the row at the knee of quality over a cost: the largest gain in quality for its share of the cost.

    Both are scaled to 0 … 1 between the cheapest and the best of the networks that no other beats in the two, and the
    knee is where quality less cost is largest (Satopää et al. 2011, "Finding a Kneedle in a Haystack", for discrete
    points). Controls have no part in it. None where there are fewer than three such networks.
    """
    corner: list[FrontRow] = []
    for row in sorted(rows, key=lambda row: (_value(row, cost), -row.metric.sign * row.quality, row.key)):
        if not row.control and (not corner or row.metric.sign * (row.quality - corner[-1].quality) > 0):
            corner.append(row)
    if len(corner) < 3:
        return None
    low, high = corner[0], corner[-1]
    rise, run = high.quality - low.quality, _value(high, cost) - _value(low, cost)

    def bend(row: FrontRow) -> float:
        return (row.quality - low.quality) / rise - (_value(row, cost) - _value(low, cost)) / run

    return max(corner, key=bend)


def named(rows: Sequence[FrontRow], cost: str) -> dict[str, FrontRow]:
    """Returns the rows that have names: `best` in quality, `fastest`, and the `knee` over a cost, where there is one.

    Controls have no part in it: they are what networks are compared with.
    """
    found = [row for row in rows if not row.control] or rows
    at = knee(found, cost)
    return {
        "best": best_row(found, {}),
        "fastest": best_row(found, {}, "latency_ms"),
        **({} if at is None else {"knee": at}),
    }


def alike(row: FrontRow, rows: Sequence[FrontRow]) -> list[FrontRow]:
    """Returns the other rows, controls apart, whose 95 % interval of the quality overlaps that of this row."""
    return [
        other
        for other in rows
        if other.key != row.key
        and not other.control
        and other.quality_low <= row.quality_high
        and row.quality_low <= other.quality_high
    ]


def find_row(rows: Sequence[FrontRow], key: str) -> FrontRow:
    """Returns the row with this key, else the only one whose key begins with it. Raises FrontError for none or many."""
    # `dense` names the dense network, although `dense-finetuned` begins like it
    found = [r for r in rows if r.key == key] or [r for r in rows if r.key.startswith(key)]
    if len(found) != 1:
        raise FrontError(
            f"{len(found)} rows of the front have a key that begins with {key!r}; keys: "
            f"{', '.join(r.key for r in rows)}"
        )
    return found[0]


def _value(row: FrontRow, name: str) -> float:
    value: float = getattr(row, name.replace(row.metric.name, "quality") if name not in COLUMNS else name)
    return value


def _violation(row: FrontRow, limits: Sequence[Constraint]) -> float:
    values = values_of(row)
    return sum(limit.violation(values[limit.name]) for limit in limits)


def _fits(row: FrontRow, under: Mapping[str, float]) -> bool:
    return all(_value(row, name) <= bound for name, bound in under.items())


def _check_name(name: str, known: Sequence[str], kind: str) -> None:
    if name not in known:
        near = did_you_mean(name, known)
        raise FrontError(f"the front has no {kind} {name!r}; {near}known: {', '.join(known)}")


def _explain(rows: Sequence[FrontRow], under: Mapping[str, float]) -> str:
    """Returns why no row fits. Bounds may be possible one by one and not together, so each minimum is given the others.

    The nearest row is the one whose largest excess over a bound is the smallest, relative to that bound.
    """
    smallest = []
    for name, bound in under.items():
        others = [r for r in rows if _fits(r, {n: b for n, b in under.items() if n != name})]
        given = " possible" + " with the other bounds" * (len(under) > 1) if others else ""
        value = min(_value(r, name) for r in others or rows)
        smallest.append(f"the smallest {name}{given} is {value:g} (asked: {bound:g})")

    def excess(row: FrontRow) -> float:
        return max((_value(row, name) - bound) / (abs(bound) or 1.0) for name, bound in under.items())

    near = min(rows, key=lambda row: (excess(row), row.latency_ms, row.key))
    values = ", ".join(f"{name} {_value(near, name):g}" for name in under)
    return f"no network of the front is within the bounds: {'; '.join(smallest)}; the nearest is {near.key}: {values}"
