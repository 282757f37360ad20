"""Choice of the cheaply scored candidates that deserve training."""

from collections.abc import Mapping, Sequence

import numpy as np

from prunefront.search.outcomes.front import violation
from prunefront.search.outcomes.measurement import ACCURACY, Constraint, Measurement, Metric


def promote(
    scored: Mapping[str, Measurement],
    count: int,
    *,
    cost: str = "macs",
    chance: float | None = 0.0,
    metric: Metric = ACCURACY,
    constraints: Sequence[Constraint] = (),
) -> list[str]:
    """Returns at most `count` keys, spread evenly over the logarithm of the cost, the best first in each part.

    An untrained score ranks networks of the same cost, but says little about networks of different cost: the smaller
    ones recover more. So candidates compete only within their part of the cost axis. Candidates that are not
    better than `chance` beyond their noise come last (None = not known). Candidates outside a constraint are left out,
    but the bound on the metric is not applied, as training may still improve it.

    scored: key -> measurement with the metric and `cost`. constraints: the caller leaves out those on values that are
    known only after training. Deterministic: ties fall to the lower cost, then the key. Raises PrunefrontError if a
    bounded value was not measured.
    """
    if count < 1:
        return []
    exact = [c for c in constraints if c.name != metric.name]
    feasible = {key: m for key, m in scored.items() if violation(m, exact) == 0.0}
    able = [k for k, m in feasible.items() if chance is None or _margin(m, metric, chance) > 0]
    hopeless = sorted(set(feasible) - set(able), key=lambda k: (-feasible[k][cost], k))
    return [*_spread(able, feasible, count, cost, metric), *hopeless][:count]


def _margin(m: Measurement, metric: Metric, chance: float) -> float:
    """Returns how much better than chance a measurement is, beyond its noise."""
    return metric.sign * (m[metric.name] - chance) - m.noise.get(metric.name, 0.0)


def _spread(
    keys: Sequence[str], scored: Mapping[str, Measurement], count: int, cost: str, metric: Metric
) -> list[str]:
    """Returns keys round by round: in each round, the best remaining candidate of each part of the cost axis."""
    if not keys:
        return []
    costs = np.log([max(scored[k][cost], 1.0) for k in keys])
    width = (costs.max() - costs.min()) / count or 1.0
    parts: dict[int, list[str]] = {}
    for key, value in zip(keys, costs, strict=True):
        parts.setdefault(min(int((value - costs.min()) / width), count - 1), []).append(key)
    for part in parts.values():
        part.sort(key=lambda k: (-metric.sign * scored[k][metric.name], scored[k][cost], k))
    chosen: list[str] = []
    while len(chosen) < min(count, len(keys)):
        for index in sorted(parts, reverse=True):
            if parts[index]:
                chosen.append(parts[index].pop(0))
    return chosen[:count]
