"""The protocol of a searcher: ask and tell. The caller owns the loop."""

from typing import Any, Protocol

from prunefront.registry import Registry
from prunefront.search.outcomes.measurement import Outcome
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem


class Searcher(Protocol):
    """Proposes candidates. Tells may come in any order, late, twice or never; failures are outcomes too."""

    def ask(self) -> Candidate | None:
        """The next candidate to try, always of the space; None = nothing to propose before the next tell."""
        ...

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """What came of a candidate. A second tell of the same candidate changes nothing."""
        ...

    def figures(self) -> dict[str, float]:
        """Finite numbers about the searcher itself, for people to watch; {} where there is nothing to tell."""
        ...


class MakeSearcher(Protocol):
    """Constructor of a searcher: `searchers["evolution"](problem, seed=0, population=24)`."""

    def __call__(self, problem: Problem, *, seed: int, **options: Any) -> Searcher: ...


searchers: Registry[MakeSearcher] = Registry("searcher")
