"""A search as its journal has it, beside its front: how it grew, how well it was predicted, and what was left out."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunefront.pipelines.fronts.row import FrontRow, front_objectives
from prunefront.pipelines.fronts.unfinished import (
    Events,
    FrontSections,
    ScoredRow,
    first_objectives,
    interval_of,
    measurement_in,
    scored_row,
)
from prunefront.pipelines.journal.layout import DENSE_NETWORKS
from prunefront.pipelines.journal.metrics import quality_in
from prunefront.pruners.graph.pruning_plan import DENSE
from prunefront.search.outcomes.constraints import EXACT, describe_violations, resolve
from prunefront.search.outcomes.front import ParetoFront, reference_point
from prunefront.search.outcomes.measurement import COSTS, Measurement, Metric
from prunefront.search.promotion.rank_correlation import spearman

FEWEST = 3
"""Fewest pairs that a rank correlation is told of."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two figures of one network with the ends of their intervals, such as its quality before and after training."""

    key: str
    first: tuple[float, float, float]
    second: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A network that is not on the front. where: the stage that left it out. why: one line."""

    key: str
    where: str
    why: str


@dataclass(frozen=True, slots=True)
class Searched:
    """A search as its journal has it.

    scored: every candidate of the first stage that was measured, in order. volume: (candidates, hypervolume as a share
    of the ideal) whenever it grew, and at the end. qualities: before and after training, on validation data. latencies:
    predicted and measured ratio to the dense network's. trained: names of networks -> figures on validation data.
    """

    scored: tuple[ScoredRow, ...]
    volume: tuple[tuple[int, float], ...]
    qualities: tuple[Pair, ...]
    latencies: tuple[Pair, ...]
    trained: Mapping[str, Measurement]
    left_out: tuple[LeftOut, ...]


def searched(study: FrontSections, events: Events, shown: Collection[str] = ()) -> Searched:
    """Returns what the events of a journal say. shown: keys of the front's rows, which nothing is left out of."""
    metric = quality_in(events)
    told = {
        e["key"]: m for e in events if e["event"] == "told" and (m := _whole(e, metric, EXACT)) is not None
    }
    # a network that failed for a passing reason is trained again: its last outcome counts
    last = {e["name"]: e for e in events if e["event"] == "trained"}
    trained = {name: m for name, event in last.items() if (m := _whole(event, metric, COSTS)) is not None}
    both = [key for key in told if key in trained and key != DENSE]
    predicted = "predicted_latency_ratio"

    def quality(m: Measurement) -> tuple[float, float, float]:
        return (m[metric.name], *interval_of(m, metric))

    def ratio(m: Measurement, name: str) -> tuple[float, float, float]:
        half = m.noise.get(name, 0.0)
        return m[name], max(m[name] - half, 0.0), m[name] + half

    return Searched(
        scored=tuple(scored_row(key, m, metric) for key, m in told.items()),
        volume=tuple(_volume(study, events)),
        qualities=tuple(Pair(key, quality(told[key]), quality(trained[key])) for key in both),
        latencies=tuple(
            Pair(key, ratio(told[key], predicted), ratio(trained[key], "latency_ratio"))
            for key in both
            if predicted in told[key].values
        ),
        trained=trained,
        left_out=tuple(_left_out(study, events, trained, shown)),
    )


def correlation(pairs: Collection[Pair]) -> float | None:
    """Returns Spearman's rank correlation of first and second figures; None for fewer than three pairs."""
    if len(pairs) < FEWEST:
        return None
    return spearman(np.array([p.first[0] for p in pairs]), np.array([p.second[0] for p in pairs]))


def _whole(event: Mapping[str, Any], metric: Metric, costs: Iterable[str]) -> Measurement | None:
    """Returns what an event measured, if that is quality and these costs; a journal from elsewhere may hold less."""
    measured = measurement_in(event)
    return measured if measured and {metric.name, *costs} <= measured.values.keys() else None


def _volume(study: FrontSections, events: Events) -> Iterable[tuple[int, float]]:
    """Yields number of scored candidates and hypervolume, from the dense network's score on."""
    metric = quality_in(events)
    outcomes = [(e["key"], _whole(e, metric, EXACT)) for e in events if e["event"] == "told"]
    measured = {key: m for key, m in outcomes if m is not None}
    dense = measured.get(DENSE)
    if dense is None:
        return
    goals = first_objectives(study.goal, metric, measured.values())
    front = ParetoFront(goals, resolve(study.goal.constraints, dense.values, EXACT))
    corner = reference_point(goals, dense)
    before = -1.0
    for count, (key, measurement) in enumerate(outcomes, 1):
        joined = measurement is not None and front.add(key, measurement)
        if joined or count == len(outcomes):
            now = front.relative_hypervolume(corner)
            if now > before or count == len(outcomes):
                yield count, now
            before = now


def _left_out(
    study: FrontSections, events: Events, trained: Mapping[str, Measurement], shown: Collection[str]
) -> Iterable[LeftOut]:
    places = {"told": "scoring", "trained": "training", "unreported": "test"}
    last = {(e["event"], e.get("key", e.get("name"))): e for e in events if e["event"] in places}
    for (kind, key), event in last.items():
        outcome = event["outcome"]
        if "failure" in outcome and key is not None:
            yield LeftOut(key, places[kind], f"failed: {outcome['failure']}: {outcome['reason']}")
    for event in events:
        if event["event"] == "stopped":
            yield LeftOut(
                event["name"],
                "training",
                f"stopped after {event['epoch']} epochs: others were ahead of it there",
            )
    if DENSE not in trained:
        return
    metric = quality_in(events)
    limits = resolve(study.goal.constraints, trained[DENSE].values)
    front = ParetoFront(front_objectives(metric), limits)
    controlled = [name for e in events if e["event"] == "controlled" for name in e["names"]]
    controls = {f"{control}-{of}" for control in study.controls.methods for of in controlled}
    compared = {name: m for name, m in trained.items() if name not in controls}
    for name, measurement in compared.items():
        front.add(name, measurement)
    for name, measurement in compared.items():
        if name in front or name in shown or name in DENSE_NETWORKS:
            continue
        if broken := describe_violations(measurement.values, limits):
            yield LeftOut(name, "choice", f"breaks a bound on validation data: {broken}")
            continue
        ahead = [other for other in front.members if front.dominates(front.members[other], measurement)]
        behind = f"behind {', '.join(ahead[:3])}" if ahead else "behind a network that another one beats"
        yield LeftOut(name, "choice", f"{behind} on validation data")


def row_kind(row: FrontRow) -> str:
    """Returns what a row is: dense, control, front, or behind (another one on the test data)."""
    if row.is_dense:
        return "dense"
    if row.control:
        return "control"
    return "front" if row.on_test_front else "behind"
