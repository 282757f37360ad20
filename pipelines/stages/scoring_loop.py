"""The first stage: a searcher asks, warm workers score without training, equal architectures are paid for once."""

from collections.abc import Callable, Iterable
from typing import Any

from prunefront.errors import PrunefrontError
from prunefront.pipelines.journal.evaluations import Evaluation, Evaluations
from prunefront.pipelines.journal.journal import Journal, JournalError
from prunefront.pipelines.prepare.feasibility import OverBudget
from prunefront.pipelines.workers.inheritance import Inheritance
from prunefront.pipelines.workers.workers import Scoring
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.search.outcomes.measurement import Failure, Measurement, Outcome, outcome_from_json
from prunefront.search.searchers.searcher import Searcher
from prunefront.search.simulator import MOST_DUPLICATES
from prunefront.search.space.candidate import Candidate

MOST_REFUSED = 2000
"""So many proposals in a row that are known or over budget mean that the searcher finds nothing within it."""

HOPELESS = 8
"""If this many first candidates fail, without one success, it is the study that is wrong and not the candidates."""


class Screening:
    """State of the first stage. `outcomes` and `candidates` are by the key of the realised architecture."""

    def __init__(
        self,
        searcher: Searcher,
        plan: Callable[[Candidate], PruningPlan],
        journal: Journal,
        on_scored: Callable[[str, Candidate, Outcome], None],
        inheritance: Inheritance | None = None,
    ) -> None:
        """plan: raises PrunefrontError for a candidate that cannot be had, OverBudget for one that is not worth a
        score; the searcher is told so.

        on_scored: called once per architecture, in this process, also for those that the journal remembers.

        inheritance: where candidates are trained, who starts from whose weights; the pool knows it, too.
        """
        self.searcher = searcher
        self.plan = plan
        self.journal = journal
        self.on_scored = on_scored
        self._inheritance = inheritance
        self.outcomes: dict[str, Outcome] = {}
        self.candidates: dict[str, Candidate] = {}
        self._waiting: dict[str, list[Candidate]] = {}
        self._unstarted: list[tuple[str, PruningPlan]] = []
        self.impossible: list[str] = []
        self.over_budget: list[str] = []
        self.recalled: set[str] = set()
        """Keys of what an earlier study scored; they do not count as scored here."""
        self.duplicates = 0
        """Proposals that came down to an architecture that was asked before, and cost nothing."""

    def recall(self, known: Iterable[Evaluation]) -> None:
        """Takes over what an earlier study scored: it is told, and never paid for here."""
        for row in known:
            if row.key in self.outcomes:
                continue
            self.recalled.add(row.key)
            self.outcomes[row.key] = row.outcome
            self.candidates[row.key] = row.candidate
            self.searcher.tell(row.candidate, row.outcome)
            self.on_scored(row.key, row.candidate, row.outcome)

    def replay(self) -> int:
        """Brings the searcher to where the journal ends; returns how many architectures were scored before.

        Raises JournalError if the searcher now proposes something else than it did then.
        """
        for event in self.journal.events:
            if event["event"] == "asked":
                candidate, then = self.searcher.ask(), Candidate.from_json(event["candidate"])
                if candidate != then:
                    raise JournalError(
                        "the searcher no longer proposes what it proposed before: prunefront, its libraries or the "
                        "machine changed since; start again with --fresh"
                    )
                start = event.get("start", "")
                if start and (self._inheritance is None or not self._inheritance.knows(start)):
                    raise JournalError(
                        f"the journal starts a network from the weights of {start!r}, which no earlier network left: "
                        "the file was changed from outside; restore it, or start again with --fresh"
                    )
                self._expect(then, start)
            elif event["event"] == "told" and event["key"] not in self.outcomes:
                if event["key"] not in self._waiting:
                    raise JournalError(
                        f"the journal has an outcome of {event['key']!r}, which was never asked: the file was changed "
                        "from outside; restore it, or start again with --fresh"
                    )
                self._settle(event["key"], outcome_from_json(event["outcome"]))
        self._unstarted = [(key, self.plan(waiting[0])) for key, waiting in self._waiting.items()]
        if self._inheritance is not None:
            self._inheritance.tidy()
        return self.scored

    @property
    def scored(self) -> int:
        """Number of architectures that were scored in this study."""
        return len(self.outcomes) - len(self.recalled)

    def run(self, pool: Scoring, budget: int, enough: Callable[[], bool] = lambda: False) -> None:
        """Scores until `budget` different architectures are done, or the searcher has no new one, or it is `enough`.

        Raises PrunefrontError if every one of the first candidates fails.
        """
        duplicates = refused = 0
        while self.scored < budget:
            while pool.free and self._unstarted:
                pool.submit(*self._unstarted.pop(0))
            while (
                pool.free
                and not enough()
                and self.scored + len(self._waiting) < budget
                and duplicates < MOST_DUPLICATES
                and refused < MOST_REFUSED
            ):
                candidate = self.searcher.ask()
                if candidate is None:
                    break
                start = "" if self._inheritance is None else self._inheritance.start(candidate)
                # what a power cut takes of it is asked again: it follows from what was told, which is on disk
                more = {"start": start} if start else {}
                self.journal.append("asked", lasting=False, candidate=candidate.to_json(), **more)
                over = len(self.over_budget)
                plan = self._expect(candidate, start)
                if plan is not None:
                    pool.submit(plan.key(), plan)
                    duplicates = refused = 0
                elif len(self.over_budget) > over:
                    refused += 1
                else:
                    duplicates += 1
            if pool.free and not pool.in_flight:  # with none free, workers are still expected
                return
            finished = pool.next(timeout=1.0)
            if finished is not None:
                key, outcome, seconds = finished
                if key not in self._waiting:  # a result that has come before changes nothing
                    continue
                known: dict[str, Any] = {} if seconds is None else {"seconds": seconds}
                if self._inheritance is not None:
                    known["inherited"] = self._inheritance.inherited(key)
                self.journal.append("told", key=key, outcome=outcome.to_json(), **known)
                self._settle(key, outcome)
                self._check_hope()

    def _expect(self, candidate: Candidate, start: str) -> PruningPlan | None:
        """The candidate's architecture where it is new and must be scored. start: whose weights it is trained from.

        One that is known, that cannot be had (a ratio within a layer to which its channels leave too little), or that
        is over budget, is told at once.
        """
        try:
            plan = self.plan(candidate)
        except OverBudget as error:
            self.over_budget.append(str(error))
            self.searcher.tell(candidate, Failure("over_budget", str(error)))
            return None
        except PrunefrontError as error:
            self.impossible.append(str(error))
            self.searcher.tell(candidate, Failure("impossible", str(error)))
            return None
        key = plan.key()
        if key in self.outcomes:
            self.duplicates += 1
            if self._inheritance is not None:
                self._inheritance.note(candidate, key)
            self.searcher.tell(candidate, self.outcomes[key])
            return None
        self._waiting.setdefault(key, []).append(candidate)
        if len(self._waiting[key]) > 1:
            self.duplicates += 1
            return None
        if self._inheritance is not None:
            self._inheritance.expect(plan, start)
        return plan

    def _settle(self, key: str, outcome: Outcome) -> None:
        waiting = self._waiting.pop(key)
        self.outcomes[key] = outcome
        self.candidates[key] = waiting[0]
        for candidate in waiting:
            self.searcher.tell(candidate, outcome)
        self.on_scored(key, waiting[0], outcome)
        if self._inheritance is not None:
            self._inheritance.settle(key, waiting, outcome)

    def _check_hope(self) -> None:
        failures = [o for o in self.outcomes.values() if isinstance(o, Failure)]
        if len(failures) == self.scored >= HOPELESS:
            raise PrunefrontError(
                f"the first {len(failures)} candidates all failed, the last one with: {failures[-1].reason}; "
                "correct that and start again with --fresh"
            )

    def table(self, study: str) -> Evaluations:
        """All that is known, with what was recalled."""
        rows = (Evaluation(self.candidates[key], key, outcome) for key, outcome in self.outcomes.items())
        return Evaluations(study, tuple(rows))

    @property
    def measured(self) -> dict[str, Measurement]:
        """Key -> measurement of what was scored, without the failures."""
        return {key: o for key, o in self.outcomes.items() if isinstance(o, Measurement)}

    @property
    def failures(self) -> dict[str, Any]:
        """Key -> Failure."""
        return {key: o for key, o in self.outcomes.items() if isinstance(o, Failure)}
