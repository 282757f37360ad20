"""Bookkeeping of asks and tells that every searcher holds, without inheritance."""

from collections.abc import Callable

import numpy as np

from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.front import minimised, violation
from prunefront.search.outcomes.measurement import Measurement, Outcome
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem

TRIES = 20
"""Draws per ask before a repeated candidate is accepted."""


class Ledger:
    """A record of asks and tells.

    asks: number of proposals. asked, told: candidates and outcomes by candidate key, in order. Raises PrunefrontError
    for a negative seed, and for a seed candidate outside the space.
    """

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
        """Returns the generator of the present ask: a function of (seed, asks, stream) alone."""
        return np.random.default_rng([self.seed, self.asks, stream])

    def next_seed(self) -> Candidate | None:
        """Returns the first of the problem's seeds that was neither asked nor told, or None."""
        while self._seeds:
            key, candidate = self._seeds[-1]
            if key not in self.asked and key not in self.told:
                return candidate
            self._seeds.pop()  # an asked or told candidate never becomes new again
        return None

    def propose(self, *draws: Callable[[np.random.Generator], Candidate]) -> Candidate:
        """Books and returns the next proposal: a seed if there is one, else the first new one of TRIES of each draw.

        A later draw serves when an earlier one only repeats, e.g. when nothing is left around the best. In a space that
        is nearly used up the last draw is returned even if it repeats.
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
        """Returns True if the candidate was neither asked nor told."""
        key = candidate.key()
        return key not in self.asked and key not in self.told

    def book(self, candidate: Candidate) -> None:
        """Counts the candidate as proposed."""
        self.asked.setdefault(candidate.key(), candidate)
        self.asks += 1

    def record(self, candidate: Candidate, outcome: Outcome) -> bool:
        """Records a tell and returns True if it is the first of a candidate of the space. Later tells are ignored.

        The candidate need not have been asked; it may come from an earlier study. Raises PrunefrontError if an
        objective or a bounded value is missing.
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
