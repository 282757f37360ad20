"""A portfolio of searchers, which share the budget by their gains for the front."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.front import ParetoFront, reference_point
from prunefront.search.outcomes.measurement import Measurement, Outcome
from prunefront.search.searchers.evolution import Evolution
from prunefront.search.searchers.ledger import TRIES, Ledger
from prunefront.search.searchers.options import option, read_options
from prunefront.search.searchers.particle_filter import ParticleFilter
from prunefront.search.searchers.searcher import MakeSearcher, Searcher, searchers
from prunefront.search.searchers.surrogate import Surrogate
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem

ARMS: Mapping[str, MakeSearcher] = {
    "surrogate": Surrogate,
    "evolution": Evolution,
    "particle_filter": ParticleFilter,
}
"""Members, in the order of trust before anything is known."""

SEED_STEP = 1_000_003
"""Difference between the seeds of two members."""

SHARPNESS = 2.0
"""Power of the credit to which shares are proportional: half the gain of another is worth a quarter of its asks."""


@dataclass(frozen=True, slots=True)
class AutoOptions:
    """Options of the portfolio.

    trust: credit of the first searcher before anything is known; the others have a tenth of it. least: share of the
    asks that every searcher keeps. memory: share of its credit that a searcher keeps at each of its tells, so that an
    old gain fades.
    """

    trust: float = option(1.0, 0.0, 1000.0)
    least: float = option(0.01, 0.0, 0.3)
    memory: float = option(0.98, 0.0, 1.0)


@searchers.register("auto")
class Auto:
    """A portfolio: surrogate first, then whichever of three searchers raises the hypervolume most.

    Every searcher is told every outcome, whichever proposed it. A searcher's credit is the mean gain of its latest
    proposals in hypervolume, in units of the mean gain of all searchers at that time. The unit matters because gains
    shrink as a front fills, and a searcher must not look better for having been asked long ago. Searchers that cannot
    serve the problem are left out: without a metric among the objectives only evolution is left.
    """

    def __init__(self, problem: Problem, *, seed: int, **options: Any) -> None:
        self.options = read_options(AutoOptions, options, "auto")
        self._ledger = Ledger(problem, seed)
        self._arms: dict[str, Searcher] = {}
        for place, (name, make) in enumerate(ARMS.items()):
            try:
                # each has its own seed: with one seed they would draw the same candidates one after the other
                self._arms[name] = make(problem, seed=seed + place * SEED_STEP)
            except PrunefrontError:
                continue  # it cannot serve this problem; the others go on
        trust = [self.options.trust * (1.0 if i == 0 else 0.1) for i in range(len(self._arms))]
        self._credit = dict(zip(self._arms, trust, strict=True))
        self._owner: dict[str, str] = {}
        self._pace, self._gains = 0.0, 0  # mean of the latest gains of all searchers; number of gains
        self._front = ParetoFront(problem.objectives, problem.constraints)
        self._reference: dict[str, float] = {}
        self._volume = 0.0

    @property
    def shares(self) -> dict[str, float]:
        """Each searcher's present share of the asks, by name; the sum is 1."""
        weight = {name: credit**SHARPNESS for name, credit in self._credit.items()}
        total = sum(weight.values())
        even, free = 1.0 / len(self._arms), 1.0 - self.options.least * len(self._arms)
        return {
            name: self.options.least + free * (w / total if total > 0 else even) for name, w in weight.items()
        }

    def ask(self) -> Candidate | None:
        name = self._choose_arm()
        candidate = None
        for _ in range(TRIES):  # another searcher may have asked for the same
            candidate = self._arms[name].ask()
            if candidate is None or self._ledger.is_new(candidate):
                break
        if candidate is None:
            return None
        self._ledger.book(candidate)
        self._owner.setdefault(candidate.key(), name)
        return candidate

    def _choose_arm(self) -> str:
        """Returns the searcher that proposes next: the first one until its probes are asked, as all learn from them."""
        first = next(iter(self._arms))
        arm = self._arms[first]
        if isinstance(arm, Surrogate) and arm.probing:
            return first
        shares = self.shares
        return list(shares)[int(self._ledger.rng().choice(len(shares), p=list(shares.values())))]

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        if not self._ledger.record(candidate, outcome):
            return
        for arm in self._arms.values():
            arm.tell(candidate, outcome)
        gain = self._gain(candidate, outcome)
        name = self._owner.get(candidate.key())
        if name is not None and self._reference:
            keep = self.options.memory
            self._gains += 1
            self._pace += max(1.0 - keep, 1.0 / self._gains) * (gain - self._pace)
            if self._pace > 0:
                self._credit[name] = keep * self._credit[name] + (1.0 - keep) * gain / self._pace

    def figures(self) -> dict[str, float]:
        """Returns each member's credit and share of the asks, and the members' own figures."""
        own = {f"credit/{name}": credit for name, credit in self._credit.items()}
        own |= {f"share/{name}": share for name, share in self.shares.items()}
        return own | {f"{n}/{k}": v for n, arm in self._arms.items() for k, v in arm.figures().items()}

    def _gain(self, candidate: Candidate, outcome: Outcome) -> float:
        """Returns the relative gain of a tell in hypervolume; 0 before the dense network is known."""
        if not isinstance(outcome, Measurement):
            return 0.0
        self._front.add(candidate.key(), outcome)
        if not self._reference:
            if candidate.key() != self._ledger.problem.space.dense().key():
                return 0.0
            self._reference = reference_point(self._ledger.problem.objectives, outcome)
        before, self._volume = self._volume, self._front.hypervolume(self._reference)
        return self._volume / before - 1.0 if before > 0 else 0.0
