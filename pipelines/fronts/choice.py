"""Chooses one network of a front: the best within bounds, or the one with a given key."""

from collections.abc import Mapping, Sequence

from prunefront.pipelines.fronts.row import FrontError, FrontRow
from prunefront.search.outcomes.measurement import COSTS
from prunefront.text import did_you_mean

COLUMNS = (*COSTS, "latency_ratio_high", "epochs")
"""Fields of a row that can be bounded, whatever its metric."""


def best_row(rows: Sequence[FrontRow], under: Mapping[str, float], by: str | None = None) -> FrontRow:
    """Returns the row that is best in the objective `by` (None = the metric) among those with `row[name] <=
    bound` for every bound.

    Raises FrontError for a column or an objective that there is not, and where no row is within the bounds; it then
    names the smallest values possible, and the nearest row.
    """
    metric = rows[0].metric
    for name in under:
        _check_name(name, (metric.name, f"{metric.name}_low", f"{metric.name}_high", *COLUMNS), "column")
    by = metric.name if by is None else by
    _check_name(by, (metric.name, *COSTS), "objective")
    fit = [row for row in rows if _fits(row, under)]
    if not fit:
        raise FrontError(_explain(rows, under))
    sign = -metric.sign if by == metric.name else 1.0
    return min(fit, key=lambda row: (sign * _value(row, by), row.latency_ms, row.size_bytes, row.key))


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
