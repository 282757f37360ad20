"""Figures of a running search for Prometheus, by Ray's metrics API: every Ray node exports what its processes record.

FAMILIES lists all that can be scraped. Ray puts `ray_` before each name, and `_total` behind counters.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from prunefront.pipelines.events.events import Event, Events

EVERY_SECONDS = 5.0
"""Seconds between two looks at the watched figures. Ray hands figures to its exporter every 10 s."""

SECONDS = tuple(round(step * 10.0**power, 6) for power in range(-2, 4) for step in (1.0, 1.5, 2.5, 4.0, 6.5))
"""Upper ends of a histogram's buckets, in seconds. They are fine: Ray's exporter knows only the bucket of a value."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. name: part behind `prunefront_`. labels: those besides `study`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()

    @property
    def exported_name(self) -> str:
        """Name that Prometheus sees; a histogram has `_bucket`, `_sum` and `_count` behind that."""
        return f"ray_prunefront_{self.name}{'_total' if self.kind == 'counter' else ''}"


FAMILIES = (
    Family("candidates_scored", "counter", "Candidates that the first stage measured."),
    Family("candidates_trained", "counter", "Networks that were trained, measured and published."),
    Family("candidates_stopped_early", "counter", "Candidates whose training was stopped early."),
    Family("candidates_failed", "counter", "Candidates that failed.", ("kind", "stage")),
    Family("workers_lost", "counter", "Worker processes that died while they scored."),
    Family(
        "worker_seconds",
        "counter",
        "Time of workers on candidates, in seconds; its rate is the number of busy workers.",
        ("stage",),
    ),
    Family("artifacts_published", "counter", "Networks in the artifact store."),
    Family("artifact_bytes", "counter", "Size of the files of these networks."),
    Family("outages", "counter", "Times that a store did not answer.", ("store",)),
    Family(
        "hypervolume",
        "gauge",
        "Hypervolume of the first stage's front, as a share of the largest possible.",
    ),
    Family("front_size", "gauge", "Candidates on the first stage's front."),
    Family("workers", "gauge", "Worker processes that the study uses."),
    Family("workers_busy", "gauge", "Worker processes that have a candidate."),
    Family("tracking_waiting", "gauge", "Writes that MLflow has not taken yet."),
    Family("artifacts_waiting", "gauge", "Objects that the artifact store has not taken yet."),
    Family("score_seconds", "histogram", "Time of one first score."),
    Family("epoch_seconds", "histogram", "Mean time of an epoch of a candidate's training and validation."),
    Family("latency_seconds", "histogram", "Time of one latency measurement, without the wait for its slot."),
)
"""All metrics that `samples` and watched figures may record."""

GAUGES = {family.name for family in FAMILIES if family.kind == "gauge"}
"""Names of the gauges."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A value for one family: it is added to a counter, set in a gauge, or observed by a histogram."""

    family: str
    value: float
    labels: Mapping[str, str]


def samples(event: Event) -> list[Sample]:
    """Returns the figures of an event; most events have none."""
    figures: list[tuple[str, float | None, dict[str, str]]] = []
    stage = {"stage": str(event["stage"])}
    match event["event"]:
        case "scored":
            figures += [("candidates_scored", 1.0, {}), ("score_seconds", event.get("seconds"), {})]
        case "trained":
            figures += [
                ("candidates_trained", 1.0, {}),
                ("epoch_seconds", event.get("epoch_seconds"), {}),
                ("latency_seconds", event.get("latency_seconds"), {}),
                ("artifacts_published", 1.0, {}),
                ("artifact_bytes", event.get("artifact_bytes"), {}),
            ]
        case "stopped_early":
            figures += [("candidates_stopped_early", 1.0, {})]
        case "failed":
            figures += [("candidates_failed", 1.0, {"kind": str(event["kind"]), **stage})]
        case "worker_lost":
            figures += [("workers_lost", 1.0, {})]
        case "outage":
            figures += [("outages", 1.0, {"store": str(event["store"])})]
        case "progress":
            figures += [("hypervolume", event["hypervolume"], {}), ("front_size", event["front"], {})]
        case "joined":
            figures += [("workers", event["workers"], {})]
    if event["event"] in ("scored", "trained", "stopped_early", "failed"):
        figures += [("worker_seconds", event.get("seconds"), stage)]
    counters = {family.name for family in FAMILIES if family.kind == "counter"}
    study = {"study": str(event["study"])}
    return [
        Sample(name, float(value), study | labels)
        for name, value, labels in figures
        if value is not None and (value > 0 or name not in counters)
    ]


class Exporter:
    """Ray's metrics of this process. The process must have joined Ray."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._record: dict[str, Any] = {}
        for family in FAMILIES:
            name, labels = f"prunefront_{family.name}", ("study", *family.labels)
            if family.kind == "counter":
                self._record[family.name] = Counter(name, family.description, labels).inc
            elif family.kind == "gauge":
                self._record[family.name] = Gauge(name, family.description, labels).set
            else:
                self._record[family.name] = Histogram(name, family.description, [*SECONDS], labels).observe

    def record(self, new: Iterable[Sample]) -> None:
        for sample in new:
            self._record[sample.family](sample.value, tags=dict(sample.labels))


@contextmanager
def export_metrics(events: Events, *, workers: int, remote: bool) -> Iterator[None]:
    """Exports events and watched figures through Ray within. Ray must be up.

    workers: number of worker processes of the study. remote: this process is no part of the cluster (ray://), so that
    an actor there, which takes no CPU, records the figures.
    """
    if remote:
        import ray

        actor: Any = ray.remote(Exporter).options(num_cpus=0).remote()

        def record(new: Iterable[Sample]) -> None:
            actor.record.remote(list(new))
    else:
        record = Exporter().record

    gauges: dict[str, Sample] = {}

    def metrics(event: Event) -> None:
        if new := samples(event):
            gauges.update({sample.family: sample for sample in new if sample.family in GAUGES})
            record(new)

    def look() -> None:
        # Ray drops a gauge that nobody sets for two of its intervals, so those that did not change are set as well
        study = {"study": events.study}
        now = {name: Sample(name, float(value()), study) for name, value in tuple(events.watched.items())}
        record([*(gauges.copy() | now).values()])

    over = threading.Event()

    def watch() -> None:
        while not over.wait(EVERY_SECONDS):
            try:
                look()
            except Exception as error:  # noqa: BLE001 - whatever a metric raises, the search continues
                events.say(f"metrics are no longer updated: {type(error).__name__}: {error}")
                return

    with events.attach(metrics):
        events.report("joined", workers=workers)
        thread = threading.Thread(target=watch, name="prunefront-metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(EVERY_SECONDS)
