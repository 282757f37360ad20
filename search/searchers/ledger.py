"""What was asked and what came of it: the bookkeeping that every searcher needs, held by it, not
inherited.
"""

from collections.abc import Callable

import numpy as np

from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.front import minimised, violation
from prunefront.search.outcomes.measurement import Measurement, Outcome
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem

TRIES = 20  # draws per ask before a candidate that was proposed before is accepted


class Ledger:
    """asks: how many candidates were proposed. asked, told: by candidate key, in the order they came."""

    def __init__(self, problem: Problem, seed: int) -> None:
        if seed < 0:
            raise PrunefrontError(f"the seed of a searcher must be 0 or more, got {seed}")
        outside = [c.origin or c.key() for c in problem.seeds if not problem.space.contains(c)]
        if outside:
            raise PrunefrontError(f"the seed candidate {outside[0]!r} does not lie in the search space")
        self.problem = problem
        self.seed = seed
        self.asks = 0
        self.asked: dict[str, Candidate] = {}
        self.told: dict[str, Outcome] = {}
        self._seeds = [(c.key(), c) for c in reversed(problem.seeds)]  # the last one first

    def rng(self, stream: int = 0) -> np.random.Generator:
        """The generator of the present ask: a function of (seed, asks) alone, so no generator state is
        stored.
        """
        return np.random.default_rng([self.seed, self.asks, stream])

    def next_seed(self) -> Candidate | None:
        """The first of the problem's seeds that was neither asked nor told."""
        while self._seeds:
            key, candidate = self._seeds[-1]
            if key not in self.asked and key not in self.told:
                return candidate
            self._seeds.pop()  # what was asked or told stays so
        return None

    def propose(self, *draws: Callable[[np.random.Generator], Candidate]) -> Candidate:
        """Books the next proposal: a seed while there are any, else the first new one of at most TRIES of each draw.

        A later draw is for where an earlier one only repeats, e.g. when nothing is left around the best. A space that
        is nearly used up gives its last draw again rather than nothing: proposals may then repeat.
        """
        candidate = self.next_seed()
        if candidate is None:
            rng = self.rng()
            for draw in (d for d in draws for _ in range(TRIES)):
                candidate = draw(rng)
                if self.is_new(candidate):
                    break
        assert candidate is not None
        self.book(candidate)
        return candidate

    def is_new(self, candidate: Candidate) -> bool:
        """Whether the candidate was neither asked nor told."""
        key = candidate.key()
        return key not in self.asked and key not in self.told

    def book(self, candidate: Candidate) -> None:
        """Counts the candidate as proposed."""
        self.asked.setdefault(candidate.key(), candidate)
        self.asks += 1

    def record(self, candidate: Candidate, outcome: Outcome) -> bool:
        """Whether this is news: a first tell, of a candidate of the space. Only the first tell is kept.

        A candidate that was never asked is welcome, e.g. one measured earlier. Raises PrunefrontError where
        an objective or a bounded value is missing.
        """
        key = candidate.key()
        if key in self.told:
            return False
        if isinstance(outcome, Measurement):
            minimised(outcome, self.problem.objectives)
            violation(outcome, self.problem.constraints)
        self.told[key] = outcome
        if key not in self.asked and not self.problem.space.contains(candidate):
            return False
        self.asked.setdefault(key, candidate)
        return True
