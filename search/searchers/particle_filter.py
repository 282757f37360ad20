"""Asynchronous particle filter over connectivity patterns (Anwar et al.; methods 4.1 and 4.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunefront.choice import pattern
from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.front import violation
from prunefront.search.outcomes.measurement import Measurement, Outcome, quality_of
from prunefront.search.prediction.sensitivity import Sensitivity
from prunefront.search.searchers.ledger import Ledger
from prunefront.search.searchers.options import option, read_options
from prunefront.search.searchers.searcher import searchers
from prunefront.search.space.budget import fit_budget
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.heuristics import van_der_corput
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import GroupSpace

Masks = dict[str, NDArray[np.bool_]]
"""Mask of the units that stay, by group name."""

GOLDEN = 0.6180339887498949
"""Golden ratio less 1: the fractional parts of its multiples never come near each other."""

HALF_WIDTH = 1.96
"""Half a 95 % interval, in standard errors."""


@dataclass(frozen=True, slots=True)
class ParticleFilterOptions:
    """Options of the particle filter.

    particles: size of the pool, N. generations: outcomes per stage over N.
    stages: number of budgets, evenly spaced from kept_first to kept_last (first-order shares of MACs that stay).
    crossover: share of children with two parents.
    swap_first, swap_last: share of a group's units that are swapped, annealed within a stage.
    shift: share of children that move one step of budget between two groups.
    spread: temperature τ of the score-guided draws.
    probes: most cuts of single groups that are asked first, if units have scores; they show how to share out a budget
    among the groups.
    stray: standard deviation of each group's log price in a particle's own sharing out of the budget.
    """

    particles: int = option(12, 4, 10_000)
    generations: int = option(1, 1, 1000)
    stages: int = option(10, 1, 100)
    kept_first: float = option(0.85, 0.01, 1.0)
    kept_last: float = option(0.25, 0.01, 1.0)
    crossover: float = option(0.3, 0.0, 1.0)
    swap_first: float = option(0.10, 0.0, 1.0)
    swap_last: float = option(0.02, 0.0, 1.0)
    shift: float = option(0.2, 0.0, 1.0)
    spread: float = option(0.1, 0.0, 100.0)
    probes: int = option(60, 0, 10_000)
    stray: float = option(0.4, 0.0, 10.0)


@dataclass(frozen=True, slots=True)
class Particle:
    """A scored pattern. error: less is better, plus the violation of constraints. se: standard error of the quality."""

    stage: int
    error: float
    se: float


@searchers.register("particle_filter")
class ParticleFilter:
    """Asynchronous particle filter: patterns of kept units, one budget of MACs per stage, weighted by their error.

    If units have scores, each group is probed first (`prediction.sensitivity`), and a budget is then shared out where
    it costs least. One pattern of best-scored units per stage is asked before the stages begin, so that every budget
    has its first point early.

    Stage 0 begins with N proposals: half score-guided (top-k of log(score) + τ·Gumbel), a quarter from a seed, a
    quarter uniform. A later stage begins with the shrunk and perturbed survivors of the stage before, drawn by
    systematic resampling, and its best one unperturbed. All other proposals are children of particles drawn by weight
    exp(-error/T). `advance_stage` comes after generations·N tells, or 2N without a better one.

    Departures from methods 4.2, with reasons:
    - It never retrains. The caller owns training and the validation set; the error is the caller's measurement at the
      stage's budget.
    - It has no clock. Nothing is reissued; a tell that never comes is merely missing.
    - The pools of two stages are separate, because errors at different budgets do not compare.
    - After the last stage it starts over, since a front needs every budget. Each stage then goes on from the best N of
      earlier sweeps at its budget, a little lower each time, so that the front fills between the stages.
    - Bits and granularity stay at the group's first option; for a layer, at the first one that can leave so much.

    Only the metric steers, or the first objective that is maximised; costs come in through the budgets.
    """

    def __init__(self, problem: Problem, *, seed: int, **options: Any) -> None:
        self.options = read_options(ParticleFilterOptions, options, "particle_filter")
        metric = quality_of(problem.objectives)
        goals = [metric] if metric else [o for o in problem.objectives if o.direction == "max"]
        if not goals:
            raise PrunefrontError(
                "searcher 'particle_filter' needs a metric or an objective to maximise; the study has only "
                f"{', '.join(o.name for o in problem.objectives)}: add a metric or take 'evolution'"
            )
        self._goal = goals[0].name
        self._sign = 1.0 if goals[0].direction == "max" else -1.0
        self._ledger = Ledger(problem, seed)
        scored = all(
            any(g.name in problem.scores.get(c, {}) for c in g.criteria)
            for g in problem.space.groups
            if g.ranked
        )
        probes = self.options.probes if scored and problem.scores and metric else 0
        self._sensitivity = Sensitivity(problem, probes)
        self._scouts = 0  # number asked so far
        self.stage = 0
        self._stage_tells = 0  # tells of this stage
        self._unchanged = 0  # tells since this stage's best improved
        self._resamplings = 0  # systematic resamplings, between stages and within
        self._pool: list[str] = []
        self._previous: list[str] = []
        self._parents: list[str] = []  # to be shrunk to this stage's budget, one per ask
        self._stages: dict[str, int] = {}  # stage of every proposal but the seeds
        self._archive: dict[str, Particle] = {}
        self._weights_cache: tuple[tuple[str, ...], NDArray[np.float64]] = ((), np.empty(0))

    @property
    def budget(self) -> float:
        """Share of first-order MACs that this stage's particles may keep."""
        return self._budget(self.stage)

    def ask(self) -> Candidate:
        ledger = self._ledger
        first = ledger.next_seed() or self._sensitivity.next(ledger.is_new)
        if first is not None:
            ledger.book(first)
            return first
        stage = self.stage
        if self._scouts < self.options.stages and self._losses is not None:
            stage = van_der_corput(self.options.stages)[self._scouts]
            scout = self._scout(stage)
            self._scouts += 1
            if ledger.is_new(scout):
                ledger.book(scout)
                self._stages.setdefault(scout.key(), stage)
                return scout
        candidate = ledger.propose(self._draw)
        self._stages.setdefault(candidate.key(), self.stage)
        return candidate

    @property
    def _losses(self) -> dict[str, NDArray[np.float64]] | None:
        """Expected loss at each of a group's kept counts, by group name; None before the probes are told."""
        table = self._sensitivity.losses(self._ledger.told)
        return None if table is None else self._sensitivity.losses_by_keep(table)

    def _scout(self, stage: int) -> Candidate:
        """Returns the best-scored units at a stage's budget, which is shared out where it is expected to cost least."""
        space, calm = self._ledger.problem.space, np.random.default_rng([self._ledger.seed, stage, 3, 3])
        keeps = fit_budget(
            space, {g.name: g.units for g in space.groups}, self._budget(stage), calm, self._losses, 0.0
        )
        masks = {}
        for g in space.groups:
            known = [c for c in g.criteria if g.name in self._ledger.problem.scores.get(c, {})]
            score = self._ledger.problem.scores[known[0]][g.name] if known else np.zeros(g.units)
            masks[g.name] = top_mask(score, keeps[g.name])
        return self._candidate(masks)

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        if not self._ledger.record(candidate, outcome):
            return
        key = candidate.key()
        stage = self._stages.get(key)
        if isinstance(outcome, Measurement) and stage is not None:
            broken = violation(outcome, self._ledger.problem.constraints)
            noise = outcome.noise.get(self._goal, 0.0) / HALF_WIDTH
            self._archive[key] = Particle(stage, 1.0 - self._sign * outcome[self._goal] + broken, noise)
        if stage == self.stage:
            self._insert(key)
        elif stage == self.stage - 1 and key in self._archive and self._is_late_winner(key):
            self._parents.append(key)

    def figures(self) -> dict[str, float]:
        """Returns figures of the stage and its pool.

        Stage: number, budget (share of first-order MACs), tells, resamplings so far. Pool: size and, unless it is
        empty, effective sample size and temperature (in units of the error).
        """
        found = {
            "stage": float(self.stage),
            "budget": self.budget,
            "stage_told": float(self._stage_tells),
            "pool": float(len(self._pool)),
            "resamplings": float(self._resamplings),
        }
        if self._pool:
            errors = np.array([self._archive[key].error for key in self._pool])
            found["effective_sample_size"] = effective_size(self._weights(self._pool))
            found["temperature"] = temperature(errors, self._archive[self._best(self._pool)].se)
        return found

    def advance_stage(self) -> None:
        """Goes on to the next budget; survivors of the present pool become its first parents."""
        n = self.options.particles
        self.stage += 1
        level = [k for k, p in self._archive.items() if self._level(p.stage) == self._level(self.stage)]
        earlier = sorted(level, key=lambda k: (self._archive[k].error, k))[:n]
        self._previous, self._stage_tells, self._unchanged = [*self._pool, *earlier], 0, 0
        if len(earlier) > 1:
            self._previous = earlier
        self._pool, self._parents = [], []
        if self._previous:
            u = float(np.random.default_rng([self._ledger.seed, self.stage, 1, 1]).random())
            drawn = systematic_resample(self._weights(self._previous), n, u)
            self._resamplings += 1
            self._parents = [self._best(self._previous), *(self._previous[i] for i in drawn)][:n]

    def _level(self, stage: int) -> int:
        return stage % self.options.stages

    def _budget(self, stage: int) -> float:
        o = self.options
        level = float(np.linspace(o.kept_first, o.kept_last, o.stages)[self._level(stage)])
        step = (o.kept_first - o.kept_last) / o.stages
        return level - step * (stage // o.stages * GOLDEN % 1.0)

    def _is_late_winner(self, key: str) -> bool:
        errors = sorted(self._archive[k].error for k in self._previous)
        return not errors or self._archive[key].error <= errors[max(0, len(errors) // 5 - 1)]

    def _insert(self, key: str) -> None:
        n = self.options.particles
        self._stage_tells += 1
        self._unchanged += 1
        if key in self._archive:
            before = self._archive[self._best(self._pool)].error if self._pool else np.inf
            if self._archive[key].error < before:
                self._unchanged = 0
            self._pool.append(key)
            rng = np.random.default_rng([self._ledger.seed, len(self._ledger.told), 2, 2])
            if len(self._pool) > n:
                self._delete_one(rng)
            if self._stage_tells % max(1, n // 4) == 0:
                weights = self._weights(self._pool)
                if effective_size(weights) < len(weights) / 3:
                    best = self._best(self._pool)
                    drawn = systematic_resample(weights, len(weights), float(rng.random()))
                    self._resamplings += 1
                    pool = [self._pool[i] for i in drawn]
                    self._pool = pool if best in pool else [best, *pool[1:]]
        if self._stage_tells >= self.options.generations * n or self._unchanged >= 2 * n:
            self.advance_stage()

    def _delete_one(self, rng: np.random.Generator) -> None:
        """Drops a particle drawn ∝ 1/max(w, 1/(10N)), never the best."""
        rate = 1.0 / np.maximum(self._weights(self._pool), 1.0 / (10 * self.options.particles))
        rate[self._pool.index(self._best(self._pool))] = 0.0
        del self._pool[int(rng.choice(len(rate), p=rate / rate.sum()))]

    def _best(self, keys: Sequence[str]) -> str:
        return min(keys, key=lambda k: (self._archive[k].error, k))

    def _weights(self, keys: Sequence[str]) -> NDArray[np.float64]:
        drawn = tuple(keys)
        if (
            self._weights_cache[0] != drawn
        ):  # the same particles have the same weights, as particles never change
            errors = np.array([self._archive[k].error for k in keys])
            least = self._archive[self._best(keys)].se
            self._weights_cache = (drawn, tempered_weights(errors, temperature(errors, least)))
        return self._weights_cache[1]

    def _draw(self, rng: np.random.Generator) -> Candidate:
        parent = ""
        if self._parents:
            key = parent = self._parents.pop(0)
            child = self._masks(key, rng)
            # a late winner may be the only measured particle of its stage
            mates = self._previous or [key]
            if key != self._best(mates):
                child = self._perturb(child, mates, rng)
        elif len(set(self._pool)) < 2 or (self.stage == 0 and self._stage_tells < self.options.particles):
            child = self._bootstrap(rng)
        else:
            parent = self._pick(self._pool, rng)
            child = self._perturb(self._masks(parent, rng), self._pool, rng)
        return self._candidate(self._fit(child, rng), parent)

    def _pick(self, keys: Sequence[str], rng: np.random.Generator) -> str:
        return keys[int(rng.choice(len(keys), p=self._weights(keys)))]

    def _bootstrap(self, rng: np.random.Generator) -> Masks:
        space = self._ledger.problem.space
        kind = rng.random()
        known = [c for c in self._ledger.problem.seeds if self._has_known_pattern(c)]
        if kind < 0.25 and known:
            chosen = known[int(rng.integers(len(known)))]
            return self._candidate_masks(chosen, rng)
        keeps = space.keeps(space.sample(rng))
        masks = {}
        for g in space.groups:
            priority = rng.random(g.units) if kind < 0.5 else self._priority(g, rng)
            masks[g.name] = top_mask(priority, keeps[g.name])
        return masks

    def _priority(self, group: GroupSpace, rng: np.random.Generator) -> NDArray[np.float64]:
        """Returns log(score) + τ·Gumbel per unit, by a criterion drawn among scored ones; noise if there is none."""
        noise = rng.gumbel(size=group.units)
        scored = [c for c in group.criteria if group.name in self._ledger.problem.scores.get(c, {})]
        if not scored:
            return noise
        score = self._ledger.problem.scores[scored[int(rng.integers(len(scored)))]][group.name]
        # scores may be negative (a negated statistic) and their scale is arbitrary, so take shares of the largest
        low, high = float(score.min()), float(score.max())
        share = (score - min(low, 0.0)) / max(high - min(low, 0.0), 1e-300)
        return np.log(np.maximum(share, 1e-6)) + self.options.spread * noise

    def _perturb(self, child: Masks, mates: Sequence[str], rng: np.random.Generator) -> Masks:
        space = self._ledger.problem.space
        if rng.random() < self.options.crossover:
            mate = self._masks(self._pick(mates, rng), rng)
            child = {name: mate[name] if rng.random() < 0.5 else mask for name, mask in child.items()}
        done = min(1.0, self._stage_tells / (self.options.generations * self.options.particles))
        rate = self.options.swap_first + done * (self.options.swap_last - self.options.swap_first)
        child = swap(child, rate, rng, {g.name: self._priority(g, rng) for g in space.groups})
        if rng.random() < self.options.shift:
            giver, taker = (space.groups[int(i)] for i in rng.permutation(len(space.groups))[[0, -1]])
            places = {g.name: g.keeps.index(int(child[g.name].sum())) for g in (giver, taker)}
            if giver is not taker and places[giver.name] > 0 and places[taker.name] < len(taker.keeps) - 1:
                for g, step in ((giver, -1), (taker, 1)):
                    keep = g.keeps[places[g.name] + step]
                    child[g.name] = resize(child[g.name], keep, self._priority(g, rng))
        return child

    def _fit(self, masks: Masks, rng: np.random.Generator) -> Masks:
        """Returns the masks at this stage's budget: units of least priority go, or those of highest priority return."""
        space = self._ledger.problem.space
        before = {name: int(mask.sum()) for name, mask in masks.items()}
        keeps = fit_budget(space, before, self.budget, rng, self._losses, self.options.stray)
        return {
            g.name: masks[g.name]
            if keeps[g.name] == before[g.name]
            else resize(masks[g.name], keeps[g.name], self._priority(g, rng))
            for g in space.groups
        }

    def _candidate(self, masks: Masks, parent: str = "") -> Candidate:
        choices = {}
        for g in self._ledger.problem.space.groups:
            units = [int(u) for u in np.flatnonzero(masks[g.name])]
            choices[g.name] = g.choose(len(units), pattern=pattern(units))
        return Candidate(choices, "particle_filter", parent)

    def _masks(self, key: str, rng: np.random.Generator) -> Masks:
        return self._candidate_masks(self._ledger.asked[key], rng)

    def _has_known_pattern(self, candidate: Candidate) -> bool:
        """Returns True if the candidate's pattern follows from the known scores."""
        scores = self._ledger.problem.scores
        ranked = {g.name for g in self._ledger.problem.space.groups if g.ranked}
        return all(
            c.keep is not None or c.ratio == 0 or name not in ranked or name in scores.get(c.criterion, {})
            for name, c in candidate.choices.items()
        )

    def _candidate_masks(self, candidate: Candidate, rng: np.random.Generator) -> Masks:
        """Returns a candidate's masks: its explicit pattern, or the best-scored units as `plan.decide` takes them."""
        masks = {}
        keeps = self._ledger.problem.space.keeps(candidate)
        for g in self._ledger.problem.space.groups:
            choice = candidate.choices[g.name]
            explicit = choice.kept_units()
            if explicit is not None:
                masks[g.name] = np.isin(np.arange(g.units), explicit)
            elif choice.ratio == 0:
                masks[g.name] = np.ones(g.units, dtype=np.bool_)
            elif not g.ranked:  # only the number of kept units counts
                masks[g.name] = np.arange(g.units) < keeps[g.name]
            else:
                masks[g.name] = top_mask(self._ledger.problem.scores[choice.criterion][g.name], keeps[g.name])
        return masks


def top_mask(priority: NDArray[np.float64], keep: int) -> NDArray[np.bool_]:
    """Returns a mask [units] of the `keep` highest priorities, ties by index."""
    mask = np.zeros(len(priority), dtype=np.bool_)
    mask[np.argsort(-priority, kind="stable")[:keep]] = True
    return mask


def resize(mask: NDArray[np.bool_], keep: int, priority: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns the mask with `keep` units: kept ones of least priority go, or dropped ones of highest return."""
    # ranks are below len(mask), so the mask decides first, then the rank
    rank = np.argsort(np.argsort(priority, kind="stable"), kind="stable").astype(np.float64)
    return top_mask(rank + len(mask) * mask, keep)


def swap(
    masks: Masks, rate: float, rng: np.random.Generator, priority: Mapping[str, NDArray[np.float64]]
) -> Masks:
    """Returns masks with about `rate` of each group's kept units exchanged for dropped ones, one in all at least.

    Kept units of least priority are exchanged for dropped ones of highest priority. Counts stay as they are.
    """
    swapped = {name: mask.copy() for name, mask in masks.items()}
    room = {name: int(min(mask.sum(), (~mask).sum())) for name, mask in masks.items()}
    counts = {name: int(rng.binomial(most, rate)) for name, most in room.items()}
    able = [name for name, most in room.items() if most > 0]
    if able and not any(counts.values()):
        counts[able[int(rng.integers(len(able)))]] = 1
    for name, count in counts.items():
        if count:
            order = np.argsort(priority[name], kind="stable")
            swapped[name][[u for u in order if masks[name][u]][:count]] = False
            swapped[name][[u for u in order[::-1] if not masks[name][u]][:count]] = True
    return swapped


def tempered_weights(errors: NDArray[np.float64], at: float) -> NDArray[np.float64]:
    """Returns weights [n] ∝ exp(-(error - least error)/T), summing to 1. Equal errors give equal weights."""
    raw = np.exp(-(errors - errors.min()) / max(at, 1e-12))
    return np.asarray(raw / raw.sum())


def effective_size(weights: NDArray[np.float64]) -> float:
    """Returns the effective sample size 1/Σ w², between 1 and n."""
    return float(1.0 / np.square(weights).sum())


def temperature(errors: NDArray[np.float64], least: float) -> float:
    """Returns the temperature T at which half of the particles count, ESS(T) = n/2, by bisection.

    T is never below `least`, the standard error: differences inside the noise must not steer. (Weights ∝ a share would
    be nearly flat.) ESS grows with T; `least` is returned if even T → 0 leaves more than n/2, with many equal bests.
    """
    goal = len(errors) / 2
    low = max(least, 1e-12)
    if effective_size(tempered_weights(errors, low)) >= goal:
        return low
    high = max(float(np.ptp(errors)), low)
    while effective_size(tempered_weights(errors, high)) < goal:
        high *= 2
    for _ in range(60):
        middle = float(np.sqrt(low * high))  # geometric, as errors may differ by powers of ten
        if effective_size(tempered_weights(errors, middle)) < goal:
            low = middle
        else:
            high = middle
    return high


def systematic_resample(weights: NDArray[np.float64], n: int, u: float) -> list[int]:
    """Returns n ascending indices; i comes ⌊n·w_i⌋ or ⌈n·w_i⌉ times, on average n·w_i for u uniform in [0, 1)."""
    edges = np.cumsum(weights)
    edges /= edges[-1]
    places = (u + np.arange(n)) / n
    return [int(i) for i in np.minimum(np.searchsorted(edges, places, side="right"), len(weights) - 1)]
