"""Table of a study's evaluations: read from its journal, written as JSON, replayed by a rehearsal."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.measurement import Outcome, outcome_from_json
from prunefront.search.space.candidate import Candidate, pack, unpack


@dataclass(frozen=True, slots=True)
class Evaluation:
    """First score of one architecture.

    candidate: first one that came down to it. key: key of its plan. seconds: time of a worker, where it is known.
    trained: outcome after training, where it was trained.
    """

    candidate: Candidate
    key: str
    outcome: Outcome
    seconds: float | None = None
    trained: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Evaluations:
    """All evaluations of one study, in the order in which they came.

    recalled: number of rows, the first ones, that it took over from earlier studies, see `stages.warm_start`.
    """

    study: str
    rows: tuple[Evaluation, ...]
    recalled: int = 0

    def to_json(self) -> dict[str, Any]:
        """Returns columns of equal length; `candidates` is as `candidate.pack` makes it."""
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
        """Returns the table of `to_json`, which may come from elsewhere.

        Raises ValueError or TypeError for unequal columns and other values, and what the readers of candidates and
        outcomes raise.
        """
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
                raise ValueError(f"{row.seconds!r:.40} is no number of seconds")
        if not isinstance(study, str) or type(recalled) is not int or not 0 <= recalled <= len(rows):
            raise TypeError("`study` must be text, and `recalled` a number of its rows")
        return cls(study, rows, recalled)


def evaluations(
    study: str, events: Sequence[Mapping[str, Any]], realise: Callable[[Candidate], str]
) -> Evaluations:
    """Returns the table of a journal's events (warm_start, asked, told, trained).

    realise: returns the key of the plan that a candidate comes down to. A candidate that it refuses with a
    PrunefrontError was never scored. Raises PrunefrontError where the journal holds no score, and where a score is of
    a key that no candidate comes down to.
    """
    first: dict[str, Candidate] = {}
    scores: dict[str, Mapping[str, Any]] = {}
    trained: dict[str, Outcome] = {}
    recalled: tuple[Evaluation, ...] = ()
    for event in events:
        if event["event"] == "warm_start":
            recalled = Evaluations.from_json(event["known"]).rows
        elif event["event"] == "asked":
            candidate = Candidate.from_json(event["candidate"])
            try:
                first.setdefault(realise(candidate), candidate)
            except PrunefrontError:  # it was a failure that cost nothing
                continue
        elif event["event"] == "told":
            scores.setdefault(event["key"], event)
        elif event["event"] == "trained":
            trained[event["name"]] = outcome_from_json(event["outcome"])
    if not scores:
        raise no_evaluations_error(study)
    if strangers := sorted(scores.keys() - first.keys()):
        raise PrunefrontError(
            f"the journal of study {study!r} scores {strangers[0]!r}, which belongs to none of its candidates: "
            "its journal and its folder `prepared` are not of the same search"
        )
    rows = (
        Evaluation(first[key], key, outcome_from_json(e["outcome"]), e.get("seconds"), trained.get(key))
        for key, e in scores.items()
    )
    known = (replace(row, trained=trained.get(row.key)) for row in recalled)
    return Evaluations(study, (*known, *rows), len(recalled))


def no_evaluations_error(study: str) -> PrunefrontError:
    """Returns the error for a study whose journal holds no score."""
    return PrunefrontError(
        f"study {study!r} has no evaluations yet, so there is nothing to replay; let `prunefront search` score some "
        "candidates first (you may stop it then)"
    )
