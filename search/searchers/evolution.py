"""Steady-state NSGA-II (Deb et al. 2002; methods 4.3): one child per ask, so no worker waits for a generation."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunefront.choice import GroupChoice
from prunefront.search.outcomes.dominance import Floats, crowding, dominance, preference, ranks
from prunefront.search.outcomes.front import minimised, violation
from prunefront.search.outcomes.measurement import Measurement, Metric, Outcome, quality_of
from prunefront.search.prediction.sensitivity import Sensitivity
from prunefront.search.searchers.ledger import Ledger
from prunefront.search.searchers.options import option, read_options
from prunefront.search.searchers.searcher import searchers
from prunefront.search.space.budget import fit_budget
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.encoding import Encoding
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import GroupSpace

SUGGESTIONS = 12
"""Number of networks suggested by the probes, from which the search starts."""

LOSS_STRAY = 0.5
"""Log standard deviation of a child's losses of groups around those of the probes."""

STRENGTH_RANGE = 0.1, 4.0
"""Least and greatest mutation strength."""

SOLO_SHARE = 0.5
"""Share of a scout's children that have no other parent."""


@dataclass(frozen=True, slots=True)
class EvolutionOptions:
    """Options of the evolution.

    population: number of survivors. scouts: share of them that may be infeasible once one is feasible.
    startup: candidates asked (seeds count) before the first child.
    tournament: survivors drawn for each parent, of which the best becomes it.
    mutation_rate: expected number of groups whose kept count mutates per child, at strength 1 (1 = the usual 1/G each).
    crossover_rate: share of children with two parents.
    blend: share of groups whose kept counts are blended (SBX) rather than taken from one parent.
    eta_crossover, eta_mutation: distribution indices, larger = closer to the parents.
    probes: most cuts of single groups that are asked first, if costs are known beforehand; the search then starts from
    the networks that they suggest instead of random ones.
    guided: share of children that move MACs from groups where they add least quality to groups where they add most,
    instead of mutating by chance.
    age: tells after which a survivor leaves, as a multiple of the population, unless no other beats it: a lucky
    measurement must not breed for ever.

    The defaults did best over all of benchmarks/multiobjective.py, on seeds below 60; the docs quote other seeds.
    """

    population: int = option(30, 4, 10_000)
    scouts: float = option(0.15, 0.0, 0.9)
    startup: int = option(20, 2, 10_000)
    tournament: int = option(4, 1, 100)
    crossover_rate: float = option(0.9, 0.0, 1.0)
    blend: float = option(1.0, 0.0, 1.0)
    mutation_rate: float = option(2.0, 0.0, 100.0)
    eta_crossover: float = option(10.0, 0.0, 1000.0)
    eta_mutation: float = option(10.0, 0.0, 1000.0)
    probes: int = option(150, 0, 10_000)
    guided: float = option(0.7, 0.0, 1.0)
    age: float = option(3.0, 0.1, 1000.0)


@dataclass(frozen=True, slots=True)
class _Standing:
    """Standing of the population: rank and crowding [n], and the places of its scouts, best first [s]."""

    rank: NDArray[np.int64]
    crowding: Floats
    scouts: NDArray[np.int64]


@searchers.register("evolution")
class Evolution:
    """Steady-state NSGA-II: seeds, random candidates until `startup` were asked, then children of the survivors.

    The genome is, for each group, the index of its kept count in `keeps`, criterion, granularity and bits. A seed's
    explicit pattern is inherited until its group changes. The best `population` survive a tell, by constrained,
    noise-aware non-dominated rank and then crowding; old ones leave (Real et al. 2019). Each candidate has a mutation
    strength, which scales how many groups change and how far. Its children inherit it with a log-normal change
    (Schwefel 1981). Failures never become parents.

    Once a survivor is feasible, a few infeasible ones stay as *scouts*, the best by objectives and violation together
    (Ray et al. 2009, infeasibility-driven evolution). Scouts lead to parts of the front that bounds cut off from the
    rest, and to its edges from outside.

    A child's `parent` is the one that it has more choices of, the mother if both.
    """

    def __init__(self, problem: Problem, *, seed: int, **options: Any) -> None:
        self.options = read_options(EvolutionOptions, options, "evolution")
        self._ledger = Ledger(problem, seed)
        self._groups = {g.name: g for g in problem.space.groups}
        self._population: list[str] = []
        # of the population: values, noise, violation
        self._rows: dict[str, tuple[Floats, Floats, float]] = {}
        self._standing: _Standing | None = None  # cached until the next tell
        self._metric = quality_of(problem.objectives)
        scored = self._metric is not None and problem.costs is not None
        self._sensitivity = Sensitivity(problem, self.options.probes if scored else 0)
        self._strength: dict[str, float] = {}  # of every child, as a factor of the mutation rate
        self._born: dict[str, int] = {}  # of the population: number of tells at its own tell
        self._suggested_networks: tuple[Candidate, ...] | None = None

    def ask(self) -> Candidate:
        ledger = self._ledger
        probe = ledger.next_seed() or self._sensitivity.next(ledger.is_new)
        if probe is not None:
            ledger.book(probe)
            return probe
        suggested = next((c for c in self._suggestions() if ledger.is_new(c)), None)
        if suggested is not None:
            ledger.book(suggested)
            return suggested
        return ledger.propose(self._draw, ledger.problem.space.sample)

    def _suggestions(self) -> tuple[Candidate, ...]:
        """Returns networks along the front of the probes' additive model, once the probes are told."""
        table = self._sensitivity.losses(self._ledger.told)
        if table is None or self._ledger.problem.costs is None:
            return ()
        if self._suggested_networks is None:
            self._suggested_networks = self._sensitivity.suggestions(table, self._ledger.problem, SUGGESTIONS)
        return self._suggested_networks

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        if not self._ledger.record(candidate, outcome):
            return
        known = self._breeding_measurement(candidate, outcome)
        if known is None:
            return
        self._add(candidate.key(), known)
        self._born[candidate.key()] = len(self._ledger.told)
        if len(self._population) > self.options.population:
            self._remove(self._population[self._leaver()])

    def _breeding_measurement(self, candidate: Candidate, outcome: Outcome) -> Measurement | None:
        """Returns the measurement to breed from, or None.

        A candidate that was refused as over budget has its known costs, so that children come nearer to the bounds
        until some are within. Other failures have none.
        """
        if isinstance(outcome, Measurement):
            return outcome
        problem = self._ledger.problem
        if outcome.kind != "over_budget" or problem.costs is None:
            return None
        costs = problem.costs(self._encoding, self._encoding.encode(candidate)[None])
        values = {name: float(value[0]) for name, value in costs.items()}
        broken = violation(Measurement(values), [c for c in problem.constraints if c.name in values])
        needed = {o.name for o in problem.objectives} | {c.name for c in problem.constraints}
        unknown = needed - values.keys()
        if broken == 0 or self._metric is None or unknown - {self._metric.name}:
            return None
        return Measurement({self._metric.name: self._worst(self._metric)} | values)

    def _worst(self, metric: Metric) -> float:
        """Returns a value of the metric that no network does worse than: at chance, else the worst that was told."""
        if metric.scale == "share" or metric.chance is not None:
            end = 0.0 if metric.direction == "max" else 1.0
            return end if metric.chance is None else metric.chance
        told = [o[metric.name] for o in self._ledger.told.values() if isinstance(o, Measurement)]
        return metric.sign * min((metric.sign * value for value in told), default=0.0)

    @cached_property
    def _encoding(self) -> Encoding:
        return Encoding(self._ledger.problem.space)

    def _leaver(self) -> int:
        """Returns the place of the one that leaves.

        It is the worst scout if there are too many; else the oldest of those that are too old and beaten; else the
        worst. Ranks put all feasible ones before the scouts, so scouts leave only for better scouts.
        """
        standing = self._current_standing()
        if len(standing.scouts) > self.options.scouts * self.options.population:
            return int(standing.scouts[-1])
        others = np.setdiff1d(np.arange(len(self._population)), standing.scouts)
        rank, crowded = standing.rank[others], standing.crowding[others]
        too_old = len(self._ledger.told) - self.options.age * self.options.population
        born = np.array([self._born[self._population[i]] for i in others])
        old = np.flatnonzero((rank > 0) & (born < too_old))
        if len(old):
            return int(others[old[born[old].argmin()]])
        return int(others[np.lexsort((others, -crowded, rank))[-1]])

    def _current_standing(self) -> _Standing:
        if self._standing is None:
            values, noise, broken = self._table()
            rank = ranks(dominance(values, noise, broken))
            scouts = np.flatnonzero(broken > 0)
            if len(scouts) == len(broken):  # before any is feasible, the least violation leads there
                scouts = scouts[:0]
            else:
                scouts = scouts[preference(np.column_stack([values, broken])[scouts])]
            self._standing = _Standing(rank, crowding(values, rank), scouts)
        return self._standing

    def _remove(self, key: str) -> None:
        self._population.remove(key)
        del self._rows[key], self._born[key]
        self._standing = None

    def figures(self) -> dict[str, float]:
        """Returns the survivors' number, mean mutation strength, and mean and greatest age in tells."""
        if not self._population:
            return {"population": 0.0}
        ages = [len(self._ledger.told) - self._born[key] for key in self._population]
        return {
            "population": float(len(self._population)),
            "mutation_strength": float(np.mean([self._strength.get(key, 1.0) for key in self._population])),
            "age_mean": float(np.mean(ages)),
            "age_max": float(max(ages)),
        }

    def _add(self, key: str, measurement: Measurement) -> None:
        problem = self._ledger.problem
        values, noise = minimised(measurement, problem.objectives)
        self._population.append(key)
        self._rows[key] = values, noise, violation(measurement, problem.constraints)
        self._standing = None

    def _table(self) -> tuple[Floats, Floats, Floats]:
        """Returns values [n, m], noise [n, m] and violations [n] of the population."""
        values, noise, broken = zip(*(self._rows[key] for key in self._population), strict=True)
        return np.stack(values), np.stack(noise), np.array(broken)

    def _draw(self, rng: np.random.Generator) -> Candidate:
        known = self._sensitivity.losses(self._ledger.told)
        started = known is not None or len(self._ledger.asked) >= self.options.startup
        if not started or len(self._population) < 2:
            return self._ledger.problem.space.sample(rng)
        mother, father = self._parents(rng)
        strength = self._strength.get(mother.key(), 1.0) * float(np.exp(0.3 * rng.standard_normal()))
        strength = min(max(strength, STRENGTH_RANGE[0]), STRENGTH_RANGE[1])
        choices = {
            name: self._cross(rng, group, mother.choices[name], father.choices[name])
            for name, group in self._groups.items()
        }
        if known is not None and rng.random() < self.options.guided:
            choices = self._move_macs(rng, choices, self._sensitivity.losses_by_keep(known), strength)
        else:
            chance = min(1.0, strength * self.options.mutation_rate / len(self._groups))
            choices = {
                name: self._mutate(rng, self._groups[name], choice, chance, strength)
                for name, choice in choices.items()
            }
        parent = max(mother, father, key=lambda p: sum(choices[n] == c for n, c in p.choices.items()))
        child = Candidate(choices, "evolution", parent.key())
        self._strength[child.key()] = round(strength, 6)
        return child

    def _move_macs(
        self,
        rng: np.random.Generator,
        choices: Mapping[str, GroupChoice],
        losses: Mapping[str, NDArray[np.float64]],
        strength: float,
    ) -> dict[str, GroupChoice]:
        """Returns choices with a few per cent of the MACs moved from the groups that need them least to those that do
        most.

        Criteria, granularities and bit widths stay.
        """
        space = self._ledger.problem.space
        keeps = {name: round(self._groups[name].units * (1.0 - c.ratio)) for name, c in choices.items()}
        share = space.kept_macs(keeps)
        quantum = 0.05 * strength * float(rng.random())
        less = fit_budget(space, keeps, share * (1.0 - quantum), rng, losses, LOSS_STRAY)
        back = share * (1.0 + 0.03 * strength * float(rng.standard_normal()))
        more = fit_budget(space, less, back, rng, losses, LOSS_STRAY)
        return {
            name: c
            if more[name] == keeps[name]
            else _choose(self._groups[name], _index_of(self._groups[name], more[name]), c)
            for name, c in choices.items()
        }

    def _parents(self, rng: np.random.Generator) -> tuple[Candidate, Candidate]:
        """Returns mother and father, often the same. Scouts are mothers as often as their share of the population."""
        standing = self._current_standing()
        mother, father = (self._tournament(rng, standing) for _ in range(2))
        if rng.random() >= self.options.crossover_rate:
            father = mother
        if len(standing.scouts) and rng.random() < self.options.scouts:
            mother = self._at(standing.scouts[rng.integers(len(standing.scouts), size=2).min()])
            if rng.random() < SOLO_SHARE:
                father = mother
        return mother, father

    def _tournament(self, rng: np.random.Generator, standing: _Standing) -> Candidate:
        size = min(self.options.tournament, len(self._population))
        drawn = rng.choice(len(self._population), size=size, replace=False).tolist()
        return self._at(min(drawn, key=lambda i: (standing.rank[i], -standing.crowding[i])))

    def _at(self, place: int) -> Candidate:
        return self._ledger.asked[self._population[place]]

    def _cross(
        self, rng: np.random.Generator, group: GroupSpace, a: GroupChoice, b: GroupChoice
    ) -> GroupChoice:
        """Returns a simulated binary crossover of the kept-count index (Deb & Agrawal 1995), or one parent's whole
        choice.
        """
        first, second = (a, b) if rng.random() < 0.5 else (b, a)
        if rng.random() >= self.options.blend:
            return first
        x, y = _index(group, first), _index(group, second)
        u, power = rng.random(), 1.0 / (self.options.eta_crossover + 1.0)
        beta = (2 * u) ** power if u <= 0.5 else (1.0 / (2 * (1 - u))) ** power
        child = _clip(group, round(0.5 * ((1 + beta) * x + (1 - beta) * y)))
        return first if child == x else _choose(group, child, first)

    def _mutate(
        self,
        rng: np.random.Generator,
        group: GroupSpace,
        choice: GroupChoice,
        chance: float,
        strength: float,
    ) -> GroupChoice:
        """Returns a mutated choice: polynomial mutation of the kept-count index, uniform mutation of each name.

        Every gene mutates independently. The index moves further the greater the strength.
        """
        hits = rng.random(4) < chance
        if hits[0] and len(group.keeps) > 1:
            u, power = rng.random(), 1.0 / (self.options.eta_mutation / strength + 1.0)
            delta = (2 * u) ** power - 1 if u < 0.5 else 1 - (2 * (1 - u)) ** power
            x, top = _index(group, choice), len(group.keeps) - 1
            step = round(delta * top) or (
                1 if delta > 0 else -1
            )  # on a short grid most steps would round to 0
            # the ends are often right, so a step that overshoots stops there; only from an end does it turn back
            if _clip(group, x + step) == x:
                step = -step
            choice = _choose(group, _clip(group, x + step), choice)
        keep = group.keeps[_index(group, choice)]
        genes: dict[str, Any] = {
            "criterion": choice.criterion,
            "granularity": choice.granularity,
            "bits": choice.bits,
        }
        changed = False
        for hit, (gene, options) in zip(
            hits[1:],
            (("criterion", group.criteria), ("granularity", group.granularities), ("bits", group.bits)),
            strict=True,
        ):
            others = [o for o in options if o != genes[gene]]
            if hit and others:
                genes[gene] = others[rng.integers(len(others))]
                changed = True
        if not changed:
            return choice
        return group.choose(keep, **genes)


def _index(group: GroupSpace, choice: GroupChoice) -> int:
    return group.keeps.index(round(group.units * (1.0 - choice.ratio)))


def _index_of(group: GroupSpace, keep: int) -> int:
    return group.keeps.index(keep)


def _clip(group: GroupSpace, index: int) -> int:
    return min(max(index, 0), len(group.keeps) - 1)


def _choose(group: GroupSpace, index: int, like: GroupChoice) -> GroupChoice:
    return group.choose(group.keeps[index], like.criterion, like.granularity, like.bits)
