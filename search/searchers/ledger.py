"""What was asked and what came of it: the bookkeeping that every searcher needs, held by it, not
inherited.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pruners.errors import PrunefrontError
from search.candidate import Candidate
from search.front import minimised, violation
from search.measurement import Measurement, Outcome, outcome_from_json
from search.space import Problem

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

    def rng(self, stream: int = 0) -> np.random.Generator:
        """The generator of the present ask: a function of (seed, asks) alone, so no generator state is
        stored.
        """
        return np.random.default_rng([self.seed, self.asks, stream])

    def next_seed(self) -> Candidate | None:
        """The first of the problem's seeds that was neither asked nor told."""
        for candidate in self.problem.seeds:
            if candidate.key() not in self.asked and candidate.key() not in self.told:
                return candidate
        return None

    def propose(self, draw: Callable[[np.random.Generator], Candidate]) -> Candidate:
        """Books the next proposal: a seed while there are any, else the first new one of at most TRIES draws.

        A space that is nearly used up gives its last draw again rather than nothing: proposals may then
        repeat.
        """
        candidate = self.next_seed()
        if candidate is None:
            rng = self.rng()
            for _ in range(TRIES):
                candidate = draw(rng)
                if self.is_new(candidate):
                    break
        assert candidate is not None
        self.book(candidate)
        return candidate

    def is_new(self, candidate: Candidate) -> bool:
        """Whether the candidate was neither asked nor told."""
        return candidate.key() not in self.asked and candidate.key() not in self.told

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

    def state(self) -> dict[str, Any]:
        """JSON of everything above."""
        return {
            "seed": self.seed,
            "asks": self.asks,
            "asked": [c.to_json() for c in self.asked.values()],
            "told": {key: outcome.to_json() for key, outcome in self.told.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave. Raises PrunefrontError when it is of another seed or another space."""
        if state["seed"] != self.seed:
            raise PrunefrontError(
                f"the saved state was made with seed {state['seed']}, this searcher has {self.seed}: "
                "use the same"
            )
        asked = [Candidate.from_json(data) for data in state["asked"]]
        if not all(self.problem.space.contains(c) for c in asked):
            raise PrunefrontError(
                "the saved state holds candidates of another search space: use the same network"
            )
        self.asks = state["asks"]
        self.asked = {c.key(): c for c in asked}
        self.told = {key: outcome_from_json(data) for key, data in state["told"].items()}
