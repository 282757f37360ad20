"""What a journal's events hold: who reads a journal may count on it, wherever the file came from."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from prunefront.errors import PrunefrontError
from prunefront.pipelines.journal.evaluations import Evaluations
from prunefront.search.outcomes.measurement import outcome_from_json
from prunefront.search.space.candidate import Candidate


def _candidate(data: dict[str, Any]) -> dict[str, Any]:
    Candidate.from_json(data)
    return data


def _outcome(data: dict[str, Any]) -> dict[str, Any]:
    outcome_from_json(data)
    return data


def _table(data: dict[str, Any]) -> dict[str, Any]:
    Evaluations.from_json(data)
    return data


def _shown(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds what cannot be printed")
    return text


Text = Annotated[str, Field(max_length=200), AfterValidator(_shown)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Number = Annotated[float, Field(ge=0, le=1e15)]
CandidateData = Annotated[dict[str, Any], AfterValidator(_candidate)]
OutcomeData = Annotated[dict[str, Any], AfterValidator(_outcome)]
Artifact = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,99}-[0-9a-f]{12})?$")]
"""An id, "" where nothing was published."""


class Event(BaseModel):
    """What every event may have. More keys than those that are named here stay: a later version wrote them."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    time: Number = 0.0


class Tracking(Event):
    run: Text


class WarmStart(Event):
    known: Annotated[dict[str, Any], AfterValidator(_table)]
    seeds: list[CandidateData]


class Asked(Event):
    candidate: CandidateData
    start: Text = ""


class Told(Event):
    key: Text
    outcome: OutcomeData
    seconds: Number = 0.0


class Promoted(Event):
    candidates: list[CandidateData]


class Controlled(Event):
    names: list[Text]


class Rung(Event):
    """Also of `stopped`."""

    name: Text
    epoch: Count
    outcome: OutcomeData
    share: Annotated[float, Field(ge=0, le=1)]
    of: Count


class Place(Event):
    host: Text
    node: Text
    processor: Text


class Trained(Event):
    name: Text
    outcome: OutcomeData
    artifact: Artifact = ""
    epochs: Count = 0
    seconds: Number = 0.0
    measured_on: Place | None = None


class Published(Event):
    name: Text
    artifact: Artifact


class Unreported(Event):
    name: Text
    outcome: OutcomeData


EVENTS: Mapping[str, type[Event]] = {
    "tracking": Tracking,
    "warm_start": WarmStart,
    "asked": Asked,
    "told": Told,
    "promoted": Promoted,
    "controlled": Controlled,
    "rung": Rung,
    "stopped": Rung,
    "trained": Trained,
    "published": Published,
    "unreported": Unreported,
}
"""What is not here is let through unseen: nothing reads it."""


def fault(event: Mapping[str, Any]) -> str | None:
    """What is wrong with an event, in a few words; None where its readers can go on with it."""
    kind = event.get("event")
    if not isinstance(kind, str):
        return "it says of no event"
    try:
        EVENTS.get(kind, Event).model_validate(event)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))} of {kind!r:.40}: {first['msg']}"
    except (PrunefrontError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # a choice that cannot be, and what plain code makes of JSON of another form
        return f"{kind!r:.40} is not of its form: {type(error).__name__}: {error}"
    return None
