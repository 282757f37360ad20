"""Random search: the control that every other searcher has to beat."""

from dataclasses import dataclass
from typing import Any

from prunefront.search.outcomes.measurement import Outcome
from prunefront.search.searchers.ledger import Ledger
from prunefront.search.searchers.options import read_options
from prunefront.search.searchers.searcher import searchers
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem


@dataclass(frozen=True, slots=True)
class RandomOptions:
    """Random search has no options."""


@searchers.register("random")
class Random:
    """Seeds, then independent draws of the space; learns nothing."""

    def __init__(self, problem: Problem, *, seed: int, **options: Any) -> None:
        self.options = read_options(RandomOptions, options, "random")
        self._ledger = Ledger(problem, seed)

    def ask(self) -> Candidate:
        return self._ledger.propose(self._ledger.problem.space.sample)

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        self._ledger.record(candidate, outcome)

    def figures(self) -> dict[str, float]:
        return {}
