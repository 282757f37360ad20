"""Fields of a journal's events. Readers of a journal may count on them, wherever the file came from."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from prunefront.errors import PrunefrontError
from prunefront.pipelines.journal.evaluations import Evaluations
from prunefront.pipelines.journal.typed_json import Printable, first_fault
from prunefront.search.outcomes.measurement import Metric, outcome_from_json
from prunefront.search.space.candidate import Candidate


def _candidate(data: dict[str, Any]) -> dict[str, Any]:
    Candidate.from_json(data)
    return data


def _outcome(data: dict[str, Any]) -> dict[str, Any]:
    outcome_from_json(data)
    return data


def _metrics(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for metric in data:
        Metric(**metric)
    return data


def _table(data: dict[str, Any]) -> dict[str, Any]:
    Evaluations.from_json(data)
    return data


Text = Annotated[Printable, Field(max_length=200)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Number = Annotated[float, Field(ge=0, le=1e15)]
CandidateData = Annotated[dict[str, Any], AfterValidator(_candidate)]
OutcomeData = Annotated[dict[str, Any], AfterValidator(_outcome)]
Artifact = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,99}-[0-9a-f]{12})?$")]
"""Id of an artifact, "" where nothing was published."""


class Event(BaseModel):
    """Fields that every event may have. Other keys stay: a later version wrote them."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    time: Number = 0.0


class Tracking(Event):
    """Run of the tracking store in which the study is recorded."""

    run: Text


class Task(Event):
    """Metrics that networks are judged by, the quality first."""

    metrics: Annotated[list[dict[str, Any]], Field(min_length=1), AfterValidator(_metrics)]


class WarmStart(Event):
    """Evaluations of earlier studies, and the candidates that the search starts from because of them."""

    known: Annotated[dict[str, Any], AfterValidator(_table)]
    seeds: list[CandidateData]


class Asked(Event):
    """Candidate that the searcher proposed. start: key of the network whose weights it starts from, "" = the dense."""

    candidate: CandidateData
    start: Text = ""


class Told(Event):
    """First score of a plan. key: the plan's. seconds: time of the worker."""

    key: Text
    outcome: OutcomeData
    seconds: Number = 0.0


class Promoted(Event):
    """Candidates that go on to the second stage."""

    candidates: list[CandidateData]


class Controlled(Event):
    """Networks of the front that controls are trained for."""

    names: list[Text]


class Rung(Event):
    """Outcome of a training at a rung, for the events `rung` and `stopped`.

    share: share of the trials that the rung kept then. of: number that had come there, it included.
    """

    name: Text
    epoch: Count
    outcome: OutcomeData
    share: Annotated[float, Field(ge=0, le=1)]
    of: Count


class Place(Event):
    """Machine that measured a latency."""

    host: Text
    node: Text
    processor: Text


class Part(Event):
    """The part of a plan for a channel group, a stack of blocks or a layer.

    units, kept: of a group or stack, how many there were and are; 0 for a layer. dropped: fraction. criterion,
    granularity: of its choice, "" where nothing was dropped. bits: of its weights.
    """

    name: Text
    units: Count = 0
    kept: Count = 0
    dropped: Annotated[float, Field(ge=0, le=1)] = 0.0
    criterion: Text = ""
    granularity: Text = ""
    bits: Annotated[int, Field(ge=1, le=32)] = 32


class Trained(Event):
    """Outcome of a network's training in the second stage.

    parts: the network's plan, without the units that stay.
    artifact: id of the published network. publish_seconds: of writing, checking and sending its files. exported: why it
    was exported to ONNX, "" = the dense one's file was filled.
    """

    name: Text
    outcome: OutcomeData
    artifact: Artifact = ""
    epochs: Count = 0
    seconds: Number = 0.0
    measured_on: Place | None = None
    publish_seconds: Number = 0.0
    exported: Text = ""
    parts: list[Part] = []


class Versions(Event):
    """Versions of what a run of the study was computed with, by name, and the machine that it was started on."""

    versions: dict[Text, Text]
    machine: Text = ""


class Published(Event):
    """Artifact with test figures, which replaces the earlier one of the same network."""

    name: Text
    artifact: Artifact


class Unreported(Event):
    """Failure of a network on the test images, for which the front leaves it out."""

    name: Text
    outcome: OutcomeData


EVENTS: Mapping[str, type[Event]] = {
    "tracking": Tracking,
    "task": Task,
    "versions": Versions,
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
"""Name of an event -> its fields. Other events pass unchecked: nothing reads them."""


def event_fault(event: Mapping[str, Any]) -> str | None:
    """Returns the fault of an event in a few words; None where its readers can use it."""
    kind = event.get("event")
    if not isinstance(kind, str):
        return "it names no event"
    try:
        EVENTS.get(kind, Event).model_validate(event)
    except ValidationError as error:
        return f"{kind!r:.40}, {first_fault(error)}"
    except (PrunefrontError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # a choice that cannot be, and what plain code makes of JSON of another form
        return f"{kind!r:.40} does not have its form: {type(error).__name__}: {error}"
    return None
