"""What was asked and what came of it: the bookkeeping that every searcher needs, held by it, not
inherited.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from prunefront.choice import GroupChoice
from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.front import minimised, violation
from prunefront.search.outcomes.measurement import Measurement, Outcome, outcome_from_json
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
        self._seeds = self._unasked()

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

    def _unasked(self) -> list[tuple[str, Candidate]]:
        """The problem's seeds with their keys, the last one first."""
        return [(c.key(), c) for c in reversed(self.problem.seeds)]

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

    def state(self) -> dict[str, Any]:
        """JSON of everything above. What was told is named by its place in what was asked, or by its key."""
        place = {key: number for number, key in enumerate(self.asked)}
        return {
            "seed": self.seed,
            "asks": self.asks,
            "asked": pack(list(self.asked.values())),
            "told": [[place.get(key, key), outcome.to_json()] for key, outcome in self.told.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave. Raises PrunefrontError when it is of another seed or another space."""
        if state["seed"] != self.seed:
            raise PrunefrontError(
                f"the saved state was made with seed {state['seed']}, this searcher has {self.seed}: "
                "use the same"
            )
        if not self._knows(state["asked"]):
            raise PrunefrontError(
                "the saved state holds candidates of another search space: use the same network"
            )
        self.asks = state["asks"]
        self.asked = {c.key(): c for c in unpack(state["asked"])}
        keys = list(self.asked)
        self.told = {
            place if isinstance(place, str) else keys[place]: outcome_from_json(data)
            for place, data in state["told"]
        }
        self._seeds = self._unasked()

    def _knows(self, packed: Mapping[str, Any]) -> bool:
        """Whether all the packed candidates lie in the space: each different choice of a group is looked at once."""
        groups = {g.name: g for g in self.problem.space.groups}
        if not packed["rows"]:
            return True
        if set(packed["names"]) != set(groups):
            return False
        choices = [GroupChoice.from_json(choice) for choice in packed["choices"]]
        columns = zip(*(row[1:] for row in packed["rows"]), strict=True)
        return all(
            self.problem.space.allows(groups[name], choices[place])
            for name, column in zip(packed["names"], columns, strict=True)
            for place in set(column)
        )


def pack(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """JSON of candidates of one space, several times shorter than each one's own.

    names: of the groups. choices, origins: every different one, once. rows: per candidate, the place of its origin and
    of its choice in each group. Raises ValueError if the candidates are not all of the same groups.
    """
    names = list(candidates[0].choices) if candidates else []
    choices: dict[GroupChoice, int] = {}
    origins: dict[str, int] = {}
    rows = []
    for candidate in candidates:
        if list(candidate.choices) != names:
            raise ValueError("only candidates of the same groups are packed together")
        row = [origins.setdefault(candidate.origin, len(origins))]
        row += [choices.setdefault(choice, len(choices)) for choice in candidate.choices.values()]
        rows.append(row)
    return {
        "names": names,
        "choices": [choice.to_json() for choice in choices],
        "origins": list(origins),
        "rows": rows,
    }


@lru_cache(maxsize=2**16)
def _first_of(choice: GroupChoice) -> GroupChoice:
    """The first choice that was equal to this one: looking up the same object takes half as long as an equal one."""
    return choice


def unpack(data: Mapping[str, Any]) -> list[Candidate]:
    """The candidates that were packed."""
    choices = [_first_of(GroupChoice.from_json(choice)) for choice in data["choices"]]
    return [
        Candidate(
            {name: choices[place] for name, place in zip(data["names"], row[1:], strict=True)},
            data["origins"][row[0]],
        )
        for row in data["rows"]
    ]
