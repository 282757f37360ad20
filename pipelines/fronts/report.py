"""Content of the page of a study, as one JSON document made of its front, its journal and its settings."""

import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunefront.pipelines.fronts.choice import named
from prunefront.pipelines.fronts.mistakes import Mistakes, of_page, read_mistakes
from prunefront.pipelines.fronts.page import write_page
from prunefront.pipelines.fronts.row import FrontRow, read_rows, shown
from prunefront.pipelines.fronts.searched import (
    LeftOut,
    Pair,
    Searched,
    correlation,
    row_kind,
    searched,
)
from prunefront.pipelines.fronts.unfinished import IMAGES, Events, FrontSections, partial_front
from prunefront.pipelines.journal.journal import read_events, read_json
from prunefront.pipelines.journal.layout import (
    BOUNDS,
    FRONT,
    JOURNAL,
    PREPARED,
    REPORT,
    STUDY,
    TIMING,
)
from prunefront.pipelines.journal.metrics import quality_in
from prunefront.search.outcomes.measurement import Metric
from prunefront.text import one_line

AXES = ("latency_ms", "size_bytes", "macs", "params")
"""Costs that the page draws quality over, and bounds."""

MOST_LEFT_OUT = 1000
"""Most networks whose reason for being left out is shown."""


def document(
    study: FrontSections,
    events: Events,
    rows: Sequence[FrontRow] | None,
    *,
    source: str,
    settings: Mapping[str, Any] | None = None,
    facts: Sequence[tuple[str, str]] = (),
    note: str | None = None,
    running: bool = False,
    mistakes: Mistakes | None = None,
) -> dict[str, Any]:
    """Returns what the page shows.

    rows: the front; None = the search has not ended, and the journal's finished networks stand in for it. source: the
    word that names the study to `prunefront fetch`. settings: the study file's. facts: label and text of what else was
    kept of the study. note: a line below the title. running: the page is written again while it is looked at.
    mistakes: what networks newly get wrong.
    """
    partial = partial_front(study, events) if rows is None else None
    shown_rows = list(rows or (partial.trained_rows if partial else ()))
    metric = shown_rows[0].metric if shown_rows else quality_in(events)
    found = searched(study, events, {row.key for row in shown_rows})
    parts = {e["name"]: e["parts"] for e in events if e["event"] == "trained" and e.get("parts")}
    said = [line for line in (note, partial.summary if partial else None) if line]
    if rows is None and partial is None:
        said.append("no candidate is scored yet")
    return {
        "study": study.name,
        "source": source,
        "partial": rows is None,
        "running": running,
        "said": said,
        "written": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "metric": {
            "name": metric.name,
            "direction": metric.direction,
            "share": metric.scale == "share",
            "unit": "%" if metric.scale == "share" else metric.unit,
        },
        "images": IMAGES if rows is None else _tested(shown_rows),
        "axes": [axis for axis in AXES if any(getattr(row, axis) for row in shown_rows)],
        "rows": [_row(row, parts.get(row.key)) for row in shown_rows],
        "names": {axis: {name: row.key for name, row in named(shown_rows, axis).items()} for axis in AXES}
        if shown_rows
        else {},
        "others": [*_others(found, metric, {row.key for row in shown_rows}, events)],
        "scored": _columns(found),
        "volume": [list(point) for point in found.volume],
        "qualities": _pairs(found.qualities, metric),
        "latencies": _pairs(found.latencies, None),
        "mistakes": of_page(mistakes),
        "left_out": [_reason(one) for one in found.left_out[:MOST_LEFT_OUT]],
        "left_out_more": max(0, len(found.left_out) - MOST_LEFT_OUT),
        "settings": [[key, value] for key, value in _flat(settings or {})],
        "facts": [list(fact) for fact in facts],
    }


def write_report(
    study: FrontSections,
    folder: Path,
    rows: Sequence[FrontRow] | None = None,
    *,
    running: bool = False,
    events: Events | None = None,
) -> Path:
    """Writes the page of a study into its folder, and returns its path.

    rows: the front; None = that of the folder, or what is finished of a search that has not ended. events: the
    journal's; None = those of the folder. Raises OSError, and PrunefrontError for files that no search wrote.
    """
    if events is None:
        events = read_events(folder / JOURNAL)
    if rows is None and not running and (folder / FRONT).exists():
        rows = read_rows(read_json(folder / FRONT))
    content = document(
        study,
        events,
        rows,
        source=shlex.quote(str(folder)),
        settings=_entries(folder / STUDY),
        facts=[*_facts(folder, events)],
        note=_bounds(folder),
        running=running,
        mistakes=None if rows is None else read_mistakes(folder),
    )
    write_page(content, folder / REPORT)
    return folder / REPORT


def _tested(rows: Sequence[FrontRow]) -> str:
    return f"{rows[0].images:,} test samples" if rows and rows[0].images else "test samples"


def _row(row: FrontRow, parts: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    # the interval was found for the ratio; as a factor of the milliseconds it never falls below zero
    low, high = (
        min(row.latency_ms * end / row.latency_ratio, sys.float_info.max)
        for end in (row.latency_ratio_low, row.latency_ratio_high)
    )
    return {
        "key": row.key,
        "kind": row_kind(row),
        "control": row.control,
        "of": row.of,
        "quality": row.quality,
        "quality_low": row.quality_low,
        "quality_high": row.quality_high,
        "latency_ms": row.latency_ms,
        "latency_low": min(low, row.latency_ms),
        "latency_high": max(high, row.latency_ms),
        "latency_ratio": row.latency_ratio,
        "ratio_low": row.latency_ratio_low,
        "ratio_high": row.latency_ratio_high,
        "size_bytes": row.size_bytes,
        "macs": row.macs,
        "params": row.params,
        "epochs": row.epochs,
        "images": row.images,
        "validation": row.validation_quality,
        "origin": row.origin,
        "made": row.made,
        "artifact": row.artifact,
        "parts": [
            {k: v for k, v in part.items() if k in PART}
            for part in parts or ({"name": name, "dropped": ratio} for name, ratio in row.achieved.items())
        ],
    }


PART = ("name", "units", "kept", "dropped", "criterion", "granularity", "bits")


def _others(
    found: Searched, metric: Metric, shown_keys: set[str], events: Events
) -> Iterator[dict[str, Any]]:
    """Yields the trained networks that were not chosen, with their figures on validation data."""
    for key, m in found.trained.items():
        if key not in shown_keys and all(name in m.values for name in (metric.name, "latency_ms")):
            yield {
                "key": key,
                "quality": m[metric.name],
                **{axis: m[axis] for axis in AXES if axis in m.values},
            }


def _columns(found: Searched) -> dict[str, list[Any]]:
    """Returns the scored candidates as columns: a key is written once, and a number in six digits."""
    scored = found.scored
    return {
        "key": [row.key for row in scored],
        "quality": [_short(row.quality) for row in scored],
        "macs": [row.macs for row in scored],
        "params": [row.params for row in scored],
        "size_bytes": [row.size_bytes for row in scored],
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _pairs(pairs: Sequence[Pair], metric: Metric | None) -> dict[str, Any]:
    """Returns points of two figures and their rank correlation. metric: None where the figures are ratios."""
    return {
        "correlation": correlation(pairs),
        "points": [
            {
                "key": p.key,
                "x": list(p.first if metric is None else shown(metric, *p.first)),
                "y": list(p.second if metric is None else shown(metric, *p.second)),
            }
            for p in pairs
        ],
    }


def _reason(left: LeftOut) -> dict[str, str]:
    return {"key": left.key, "where": left.where, "why": one_line(left.why, 300)}


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields dotted keys and values of a study's settings as text; what is not set is left out."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None and value != []:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _entries(path: Path) -> Mapping[str, Any]:
    """Returns the object in a JSON file of a study; {} where there is no such file."""
    if not path.exists():
        return {}
    found = read_json(path)
    return found if isinstance(found, Mapping) else {}


def _bounds(folder: Path) -> str | None:
    """Returns the line of a study with bounds on how they are met."""
    said = _entries(folder / BOUNDS).get("said")
    return one_line(said) if isinstance(said, str) else None


def _facts(folder: Path, events: Events) -> Iterator[tuple[str, str]]:
    """Yields what a folder keeps of machine, versions, data and time."""
    places = {
        one_line(" · ".join(e["measured_on"][k] for k in ("host", "processor") if e["measured_on"][k]))
        for e in events
        if e["event"] == "trained" and e.get("measured_on")
    }
    if places:
        yield "latency measured on", "; ".join(sorted(places))
    for event in [e for e in events if e["event"] == "versions"][-1:]:
        yield "search ran on", one_line(event["machine"])
        for name, version in event["versions"].items():
            yield f"version of {name}", version
    for part, digest in _entries(folder / PREPARED / "data.json").items():
        yield f"digest of {part} data", one_line(str(digest), 100)
    seconds = _entries(folder / TIMING).get("seconds")
    if isinstance(seconds, Mapping):
        for stage, spent in seconds.items():
            if isinstance(spent, int | float):
                yield f"time of {one_line(str(stage), 40)}", f"{spent:.1f} s"
