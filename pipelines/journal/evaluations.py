"""A study's evaluations as a table: read from its journal, written as JSON, replayed by a rehearsal."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.measurement import Outcome, outcome_from_json
from prunefront.search.space.candidate import Candidate, pack, unpack


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One architecture's first score. candidate: who asked for it first. key: of what is realised. seconds: that a
    worker took, where that is known. trained: what came of it after training, where it was trained."""

    candidate: Candidate
    key: str
    outcome: Outcome
    seconds: float | None = None
    trained: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Evaluations:
    """All of one study, in the order in which they came.

    recalled: how many of the first ones it took over from earlier studies, see `stages.warm_start`.
    """

    study: str
    rows: tuple[Evaluation, ...]
    recalled: int = 0

    def to_json(self) -> dict[str, Any]:
        """Columns of equal length; `candidates` is as `candidate.pack` makes it."""
        return {
            "study": self.study,
            "recalled": self.recalled,
            "candidates": pack([r.candidate for r in self.rows]),
            "key": [r.key for r in self.rows],
            "outcome": [r.outcome.to_json() for r in self.rows],
            "seconds": [r.seconds for r in self.rows],
            "trained": [None if r.trained is None else r.trained.to_json() for r in self.rows],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Evaluations":
        """Raises as the readers of candidates and outcomes, and for unequal columns: it may come from elsewhere."""
        columns = (
            unpack(data["candidates"]),
            data["key"],
            map(outcome_from_json, data["outcome"]),
            data["seconds"],
            (None if t is None else outcome_from_json(t) for t in data["trained"]),
        )
        rows = tuple(Evaluation(*row) for row in zip(*columns, strict=True))
        study, recalled = data["study"], data.get("recalled", 0)
        for row in rows:
            if not isinstance(row.key, str):
                raise TypeError("keys must be text")
            if row.seconds is not None and (
                type(row.seconds) not in (int, float) or not 0 <= row.seconds < 1e15
            ):
                raise ValueError(f"{row.seconds!r:.40} are no seconds")
        if not isinstance(study, str) or type(recalled) is not int or not 0 <= recalled <= len(rows):
            raise TypeError("the study must be text, and how many scores it took over a count of its rows")
        return cls(study, rows, recalled)


def evaluations(
    study: str, events: Sequence[Mapping[str, Any]], realise: Callable[[Candidate], str]
) -> Evaluations:
    """The table of a journal's events (warm_start, asked, told, trained). realise: the key of what a candidate comes
    down to; what it refuses with a PrunefrontError was never scored.

    Raises PrunefrontError where nothing was scored, and where a score is of something that nobody asked for.
    """
    first: dict[str, Candidate] = {}
    told: dict[str, Mapping[str, Any]] = {}
    trained: dict[str, Outcome] = {}
    recalled: tuple[Evaluation, ...] = ()
    for event in events:
        if event["event"] == "warm_start":
            recalled = Evaluations.from_json(event["known"]).rows
        elif event["event"] == "asked":
            candidate = Candidate.from_json(event["candidate"])
            try:
                first.setdefault(realise(candidate), candidate)
            except PrunefrontError:  # the searcher was told so; nothing was paid for
                continue
        elif event["event"] == "told":
            told.setdefault(event["key"], event)
        elif event["event"] == "trained":
            trained[event["name"]] = outcome_from_json(event["outcome"])
    if not told:
        raise nothing_yet(study)
    if strangers := sorted(told.keys() - first.keys()):
        raise PrunefrontError(
            f"the journal of study {study!r} scores {strangers[0]!r}, which none of its candidates comes down to: "
            "journal and `prepared` folder are not of the same search"
        )
    rows = (
        Evaluation(first[key], key, outcome_from_json(e["outcome"]), e.get("seconds"), trained.get(key))
        for key, e in told.items()
    )
    known = (replace(row, trained=trained.get(row.key)) for row in recalled)
    return Evaluations(study, (*known, *rows), len(recalled))


def nothing_yet(study: str) -> PrunefrontError:
    """The error for a study whose journal holds no score."""
    return PrunefrontError(
        f"study {study!r} has no evaluations yet, so there is nothing to replay; let `prunefront search` score some "
        "candidates first (it may be stopped when it has)"
    )
