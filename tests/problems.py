"""Analytic problems whose fronts are known, and a loop that drives any searcher with several candidates in flight."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunefront.search.outcomes.front import ParetoFront, reference_point
from prunefront.search.outcomes.measurement import (
    ACCURACY,
    OBJECTIVES,
    Constraint,
    Measurement,
    Metric,
    Outcome,
    quality_of,
)
from prunefront.search.searchers.searcher import Searcher
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.costs import CostModel
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import GroupSpace, SearchSpace


@dataclass(frozen=True, slots=True)
class Separable:
    """Accuracy falls by each group's own convex loss, MACs fall linearly; every unit costs the same.

    Loss of group g: sensitivity[g] · dropped share² · penalty of the criterion (1 or 1.5; which criterion is the
    right one alternates between groups). Convex and equally priced, so the greedy by marginal loss gives the whole
    front.
    """

    problem: Problem
    sensitivity: NDArray[np.float64]

    def _measured(self, loss: float, macs: float) -> Measurement:
        """The measurement at a loss of accuracy, in the problem's own metric."""
        metric = quality_of(self.problem.objectives)
        assert metric is not None
        accuracy = max(0.0, 0.95 - loss)
        value = {"share": accuracy, "positive": 0.05 + 3.0 * loss, "real": 20.0 * accuracy - 30.0}[
            metric.scale
        ]
        return Measurement({metric.name: value, "macs": macs})

    def measure(self, candidate: Candidate) -> Measurement:
        keeps = self.problem.space.keeps(candidate)
        loss = 0.0
        for i, g in enumerate(self.problem.space.groups):
            loss += self._loss(i, keeps[g.name], candidate.choices[g.name].criterion)
        return self._measured(loss, float(sum(keeps.values())))

    def front(self) -> list[Measurement]:
        """All non-dominated measurements, dense first."""
        groups = self.problem.space.groups
        keeps = [g.units for g in groups]
        right = [("l1", "taylor")[i % 2] for i in range(len(groups))]
        points = []
        while True:
            loss = sum(self._loss(i, k, right[i]) for i, k in enumerate(keeps))
            points.append(self._measured(loss, float(sum(keeps))))
            able = [i for i, g in enumerate(groups) if keeps[i] > g.keeps[0]]
            if not able:
                return points
            step = {
                i: self._loss(i, keeps[i] - 1, right[i]) - self._loss(i, keeps[i], right[i]) for i in able
            }
            keeps[min(step, key=lambda i: step[i])] -= 1

    def _loss(self, i: int, keep: int, criterion: str) -> float:
        g = self.problem.space.groups[i]
        penalty = 1.0 if criterion == ("l1", "taylor")[i % 2] else 1.5
        return float(self.sensitivity[i] * penalty * (1.0 - keep / g.units) ** 2)


def separable(
    groups: int = 8,
    units: int = 16,
    seed: int = 0,
    seeds: int = 0,
    constraints: tuple[Constraint, ...] = (),
    least: int = 2,
    priced: bool = True,
    scored: bool = False,
    metric: Metric = ACCURACY,
) -> Separable:
    """A `Separable` problem; sensitivities sum to 0.9. seeds: how many uniform ratios it starts from, after dense.

    priced: whether costs are known beforehand. scored: whether units have scores. metric: what the loss is seen as.
    """
    space = SearchSpace(
        tuple(
            GroupSpace(f"g{i}", units, tuple(range(least, units + 1)), ("l1", "taylor"), unit_macs=1.0)
            for i in range(groups)
        )
    )
    weights = np.random.default_rng([seed, 99]).lognormal(sigma=1.2, size=groups)
    ratios = np.linspace(0.2, 0.7, seeds)
    start = [
        Candidate(
            {g.name: g.choose(g.nearest(g.units * (1 - r)), "l1") for g in space.groups}, f"uniform {r}"
        )
        for r in ratios
    ]
    shares = np.hstack([np.zeros((groups, 1)), np.eye(groups)])
    rest = np.zeros_like(shares)
    rest[:, 0] = 1.0
    costs = CostModel(
        shares, rest, np.zeros((groups, groups)), {"macs": np.full(groups, float(units))}, frozenset()
    )
    problem = Problem(
        space,
        (metric, OBJECTIVES["macs"]),
        constraints,
        (space.dense(), *start) if seeds else (),
        scores={"l1": {g.name: np.arange(float(units)) for g in space.groups}} if scored else {},
        costs=costs if priced else None,
    )
    return Separable(problem, 0.9 * weights / weights.sum())


@dataclass(frozen=True, slots=True)
class Planted:
    """A hidden critical set: the error is the share of it removed, seen through `images` validation images."""

    problem: Problem
    critical: dict[str, NDArray[np.bool_]]
    images: int

    def kept(self, candidate: Candidate) -> float:
        """Share of the critical set that the candidate's explicit patterns keep."""
        total = sum(int(mask.sum()) for mask in self.critical.values())
        kept = 0
        for name, mask in self.critical.items():
            units = candidate.choices[name].kept_units()
            kept += int(mask.sum() if units is None else mask[list(units)].sum())
        return kept / total

    def measure(self, candidate: Candidate, rng: np.random.Generator) -> Measurement:
        error = rng.binomial(self.images, 1.0 - self.kept(candidate)) / self.images
        se = float(np.sqrt(max(error * (1 - error), 1e-4) / self.images))
        macs = float(sum(self.problem.space.keeps(candidate).values()))
        return Measurement({"accuracy": 1.0 - error, "macs": macs}, {"accuracy": 1.96 * se})


def planted(groups: int = 4, units: int = 16, share: float = 0.25, seed: int = 0) -> Planted:
    """A `Planted` problem: `share` of all units, drawn at random, are critical."""
    space = SearchSpace(
        tuple(
            GroupSpace(f"g{i}", units, tuple(range(1, units + 1)), ("l1",), unit_macs=1.0)
            for i in range(groups)
        )
    )
    rng = np.random.default_rng([seed, 98])
    flat = np.zeros(groups * units, dtype=np.bool_)
    flat[rng.choice(flat.size, size=int(share * flat.size), replace=False)] = True
    critical = {f"g{i}": flat[i * units : (i + 1) * units] for i in range(groups)}
    return Planted(Problem(space, (OBJECTIVES["accuracy"], OBJECTIVES["macs"])), critical, 2000)


def drive(
    searcher: Searcher,
    measure: Callable[[Candidate], Outcome],
    evaluations: int,
    *,
    parallel: int = 1,
    rng: np.random.Generator | None = None,
) -> list[tuple[Candidate, Outcome]]:
    """What was told, in order: `evaluations` outcomes with `parallel` candidates in flight, ended in random order.

    A candidate measured before is told its first outcome at once, as a study does.
    """
    order = rng if rng is not None else np.random.default_rng(0)
    known: dict[str, Outcome] = {}
    flying: list[Candidate] = []
    told: list[tuple[Candidate, Outcome]] = []
    while len(told) < evaluations:
        while len(flying) < parallel and (candidate := searcher.ask()) is not None:
            flying.append(candidate)
        candidate = flying.pop(int(order.integers(len(flying))))
        outcome = known.setdefault(candidate.key(), measure(candidate))
        searcher.tell(candidate, outcome)
        told.append((candidate, outcome))
    return told


def hypervolume(problem: Separable, told: Iterable[tuple[Candidate, Outcome]]) -> float:
    """Hypervolume of what was told, as a share of the best thinkable, against the dense model's reference point."""
    objectives = problem.problem.objectives
    front = ParetoFront(objectives, problem.problem.constraints)
    for candidate, outcome in told:
        if isinstance(outcome, Measurement):
            front.add(candidate.key(), outcome)
    dense = problem.measure(problem.problem.space.dense())
    return front.relative_hypervolume(reference_point(objectives, dense))
