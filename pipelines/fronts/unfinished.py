"""The front of a search that was cut short, from its journal alone: the finished networks, by validation figures.

It is made in a moment, without Ray or a network, because whoever stops a process does not wait. A front proper is
scored on test images that no step of the search saw, so a partial one has another file name and says what it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prunefront.pipelines.artifacts.manifest import artifact_uri
from prunefront.pipelines.config.sections import ControlsSection, GoalSection, SearchSection
from prunefront.pipelines.fronts.row import FrontRow, arrange, front_objectives, shown, under_own_names
from prunefront.pipelines.journal.layout import DENSE_NETWORKS
from prunefront.pipelines.journal.metrics import quality_in
from prunefront.pruners.graph.pruning_plan import DENSE
from prunefront.search.outcomes.constraints import EXACT, resolve
from prunefront.search.outcomes.front import ParetoFront
from prunefront.search.outcomes.measurement import (
    ACCURACY,
    COSTS,
    Failure,
    Measurement,
    Metric,
    Objective,
    outcome_from_json,
)

IMAGES = "validation images"

UNKNOWN = ("images", "achieved", "made", "on_test_front", "dense_latency_ms")
"""Fields of a row that no journal holds; they are left out of the JSON."""

Events = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class FrontSections:
    """The settings that a front follows from. artifact_uri: with the default filled in."""

    name: str
    artifact_uri: str
    goal: GoalSection
    search: SearchSection
    controls: ControlsSection


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A candidate of the first stage.

    predicted_latency_ratio: to the dense network's latency, for a study that predicts it.
    """

    key: str
    quality: float
    quality_low: float
    quality_high: float
    macs: int
    params: int
    size_bytes: int
    predicted_latency_ratio: float | None = None
    metric: Metric = ACCURACY

    @property
    def shown(self) -> tuple[float, ...]:
        """The quality and its interval, as in `FrontRow.shown`."""
        return shown(self.metric, self.quality, self.quality_low, self.quality_high)

    def to_json(self) -> dict[str, Any]:
        """Returns the row under the metric's own names, as `FrontRow.to_json` does."""
        return under_own_names(asdict(self), self.metric)


@dataclass(frozen=True, slots=True)
class PartialFront:
    """The finished candidates of a search that no other one dominates: trained networks, or before any, scored ones.

    done, total: candidates that are finished, and of how many. trained_rows: fastest first. scored_rows: fewest MACs
    first; () where there are trained rows.
    """

    study: str
    done: int
    total: int
    trained_rows: tuple[FrontRow, ...] = ()
    scored_rows: tuple[ScoredRow, ...] = ()

    @property
    def trained(self) -> bool:
        return bool(self.trained_rows)

    @property
    def rows(self) -> tuple[FrontRow | ScoredRow, ...]:
        return self.trained_rows or self.scored_rows

    @property
    def summary(self) -> str:
        """A line that says how far the search is and what the figures mean."""
        if self.trained:
            return (
                f"partial front: {self.done} of {self.total} candidates are fine-tuned so far. It is scored on {IMAGES}"
                ", which also chose these networks, so its figures are optimistic; test images follow at the end"
            )
        return (
            f"partial front: {self.done} of {self.total} candidates are scored so far, on {IMAGES}; none is fine-tuned "
            "or timed yet"
        )

    @property
    def best_artifact(self) -> str | None:
        """The artifact of the best pruned network; None where none is trained."""
        pruned = [row for row in self.trained_rows if row.key not in DENSE_NETWORKS and not row.control]
        return (
            max(pruned, key=lambda row: (row.metric.sign * row.quality, row.key)).artifact if pruned else None
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "partial": True,
            "study": self.study,
            "images": IMAGES,
            "trained": self.trained,
            "done": self.done,
            "total": self.total,
            "said": self.summary,
            "rows": [
                {
                    k: v
                    for k, v in row.to_json().items()
                    if k not in UNKNOWN and not k.startswith("validation_")
                }
                for row in self.rows
            ],
        }


def partial_front(study: FrontSections, events: Events) -> PartialFront | None:
    """Returns the front of the trained networks, or, before the dense one and a candidate are trained, of the scored.

    None before any candidate is scored. Bounds hold as far as they are known.
    """
    metric = quality_in(events)
    return _trained_front(study, metric, events) or _scored_front(study, metric, events)


def _trained_front(study: FrontSections, metric: Metric, events: Events) -> PartialFront | None:
    trained = {e["name"]: e for e in events if e["event"] == "trained"}
    measured = {name: m for name, event in trained.items() if (m := measurement_in(event)) is not None}
    controlled = [name for e in events if e["event"] == "controlled" for name in e["names"]]
    controls = {f"{control}-{of}": (control, of) for control in study.controls.methods for of in controlled}
    compared = measured.keys() - controls.keys() - {*DENSE_NETWORKS}
    if DENSE not in measured or not compared:
        return None
    front = ParetoFront(front_objectives(metric), resolve(study.goal.constraints, measured[DENSE].values))
    for name in measured.keys() - controls.keys():
        front.add(name, measured[name])
    shown = {DENSE, *front.members}
    shown |= {name for name, (_, of) in controls.items() if name in measured and of in shown}
    rows = [
        _row(study, metric, trained[name], measured[name], *controls.get(name, ("", ""))) for name in shown
    ]
    promoted = [e for e in events if e["event"] == "promoted"]
    total = len(promoted[-1]["candidates"]) if promoted else len(compared)
    return PartialFront(study.name, len(compared), total, trained_rows=tuple(arrange(rows)))


def _row(
    study: FrontSections,
    metric: Metric,
    event: Mapping[str, Any],
    measured: Measurement,
    control: str,
    of: str,
) -> FrontRow:
    ratio, half = measured["latency_ratio"], measured.noise.get("latency_ratio", 0.0)
    low, high = interval_of(measured, metric)
    artifact = event.get("artifact")
    return FrontRow(
        key=event["name"],
        quality=measured[metric.name],
        quality_low=low,
        quality_high=high,
        metric=metric,
        images=0,
        latency_ms=measured["latency_ms"],
        latency_ratio=ratio,
        latency_ratio_low=max(ratio - half, ratio / 1000),
        latency_ratio_high=ratio + half,
        dense_latency_ms=measured["latency_ms"] / ratio,
        size_bytes=int(measured["size_bytes"]),
        macs=int(measured["macs"]),
        params=int(measured["params"]),
        achieved={},
        artifact=artifact_uri(study.artifact_uri, artifact) if artifact else None,
        epochs=int(event.get("epochs", 0)),
        control=control,
        of=of,
    )


def _scored_front(study: FrontSections, metric: Metric, events: Events) -> PartialFront | None:
    scored = [e for e in events if e["event"] == "told"]
    measured = {e["key"]: m for e in scored if (m := measurement_in(e)) is not None}
    if not measured.keys() - {DENSE}:
        return None
    dense = measured.get(DENSE)
    bounds = () if dense is None else resolve(study.goal.constraints, dense.values, EXACT)
    front = ParetoFront(first_objectives(study.goal, metric, measured.values()), bounds)
    for key, measurement in measured.items():
        front.add(key, measurement)
    shown = ({DENSE} & measured.keys()) | front.members.keys()
    rows = sorted((scored_row(key, measured[key], metric) for key in shown), key=lambda r: (r.macs, r.key))
    return PartialFront(study.name, len(scored), study.search.candidates, scored_rows=tuple(rows))


def scored_row(key: str, measurement: Measurement, metric: Metric) -> ScoredRow:
    """Returns the row of a candidate that was scored."""
    low, high = interval_of(measurement, metric)
    return ScoredRow(
        key=key,
        quality=measurement[metric.name],
        quality_low=low,
        quality_high=high,
        metric=metric,
        macs=int(measurement["macs"]),
        params=int(measurement["params"]),
        size_bytes=int(measurement["size_bytes"]),
        predicted_latency_ratio=measurement.values.get("predicted_latency_ratio"),
    )


def measurement_in(event: Mapping[str, Any]) -> Measurement | None:
    """Returns what an event of the journal measured; None for a failure."""
    outcome = outcome_from_json(event["outcome"])
    return None if isinstance(outcome, Failure) else outcome


def interval_of(measured: Measurement, metric: Metric) -> tuple[float, float]:
    """Returns the ends of a quality's interval; those of a share lie from 0 to 1."""
    value, half = measured[metric.name], measured.noise.get(metric.name, 0.0)
    if metric.scale == "share":
        return max(value - half, min(0.0, value)), min(value + half, 1.0)
    return value - half, value + half


def first_objectives(
    goal: GoalSection, metric: Metric, found: Iterable[Measurement]
) -> tuple[Objective, ...]:
    """Returns the study's objectives that all these measurements have; predicted latency stands in for latency."""
    common = set.intersection(*(set(m.values) for m in found))
    known = {**COSTS, metric.name: metric, ACCURACY.name: metric}
    asked: list[Objective] = [known[name] for name in goal.objectives]
    asked = [
        o
        if o.name in common or isinstance(o, Metric)
        else Objective(f"predicted_{o.name}", o.direction, o.unit)
        for o in asked
    ]
    return tuple(o for o in asked if o.name in common)
