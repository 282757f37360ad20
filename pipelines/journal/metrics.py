"""The metrics of a study, as its journal has them: whoever reads a study needs no task for it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from prunefront.pipelines.journal.journal import Journal
from prunefront.search.outcomes.measurement import ACCURACY, Metric


def record_metrics(journal: Journal, metrics: tuple[Metric, ...]) -> None:
    """Appends the metrics, unless they stand there; accuracy alone needs no words, as in studies before tasks."""
    if metrics != (ACCURACY,) and not journal.of("task"):
        journal.append("task", metrics=[asdict(metric) for metric in metrics])


def quality_in(events: Iterable[Mapping[str, Any]]) -> Metric:
    """Returns the metric that the search of a journal sees."""
    found = [event for event in events if event["event"] == "task"]
    return Metric(**found[-1]["metrics"][0]) if found else ACCURACY
