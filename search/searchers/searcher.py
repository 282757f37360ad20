"""The protocol of a searcher: ask and tell. The caller owns the loop."""

from typing import Any, Protocol

from prunefront.registry import Registry
from prunefront.search.outcomes.measurement import Outcome
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem


class Searcher(Protocol):
    """A proposer of candidates. Tells may come in any order, late, twice or never; failures are outcomes too.

    The same seed, asks and tells give the same candidates, so a study is resumed by replaying its journal.
    """

    def ask(self) -> Candidate | None:
        """Returns the next candidate to try, always of the space; None = no proposal before the next tell."""
        ...

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Takes the outcome of a candidate. A second tell of the same candidate changes nothing."""
        ...

    def figures(self) -> dict[str, float]:
        """Returns finite numbers about the searcher itself, for people to watch; may be {}."""
        ...


class MakeSearcher(Protocol):
    """Constructor of a searcher: `searchers["evolution"](problem, seed=0, population=24)`."""

    def __call__(self, problem: Problem, *, seed: int, **options: Any) -> Searcher: ...


searchers: Registry[MakeSearcher] = Registry("searcher")
