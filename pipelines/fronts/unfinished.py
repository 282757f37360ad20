"""The front of a search that was cut short, from its journal alone: what was finished, with its validation figures.

It is made in a moment, without Ray or a network, because whoever stops a process does not wait. A front proper is
scored on test images that no step of the search saw, so a partial one is kept under another name and says what it is.
"""

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.publish import locate
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.fronts.page import DENSE, FRONT_OBJECTIVES, PAGE, FrontRow, count, size, write_html
from prunefront.pipelines.fronts.page import table as front_table
from prunefront.pipelines.journal.journal import read_events, write_json
from prunefront.pipelines.journal.layout import DENSE_NETWORKS, FRONT, JOURNAL, PARTIAL_FRONT, PARTIAL_PAGE
from prunefront.search.outcomes.constraints import EXACT, resolve
from prunefront.search.outcomes.front import ParetoFront
from prunefront.search.outcomes.measurement import (
    OBJECTIVES,
    Failure,
    Measurement,
    Objective,
    outcome_from_json,
)

if TYPE_CHECKING:
    from rich.table import Table


IMAGES = "validation images"

Events = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A candidate of the first stage. predicted_latency_ratio: to the dense network's, where the study predicts it."""

    key: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macs: int
    params: int
    size_bytes: int
    predicted_latency_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class PartialFront:
    """What of `total` candidates was finished and is not dominated: fastest first where networks were trained
    (`FrontRow`), else fewest MACs first (`ScoredRow`).

    done: how many candidates were finished. Of a `FrontRow`, number of images, achieved ratios and what the network is
    made of are not in a journal, and are left out of the JSON.
    """

    study: str
    done: int
    total: int
    rows: tuple[FrontRow, ...] | tuple[ScoredRow, ...]

    @property
    def trained(self) -> bool:
        return isinstance(self.rows[0], FrontRow)

    @property
    def said(self) -> str:
        """What this is, and what it is not."""
        if self.trained:
            return (
                f"partial front: {self.done} of {self.total} candidates are fine-tuned so far. It is scored on {IMAGES}"
                ", which also chose these networks, so it flatters them; test images are for the end of the search"
            )
        return (
            f"partial front: {self.done} of {self.total} candidates are scored so far, on {IMAGES}; none is fine-tuned "
            "or timed yet"
        )

    def to_json(self) -> dict[str, Any]:
        unknown = ("images", "achieved", "made", "on_test_front", "validation_accuracy", "dense_latency_ms")
        rows = [asdict(r) if isinstance(r, ScoredRow) else r.to_json() for r in self.rows]
        return {
            "partial": True,
            "study": self.study,
            "images": IMAGES,
            "trained": self.trained,
            "done": self.done,
            "total": self.total,
            "said": self.said,
            "rows": [{k: v for k, v in row.items() if k not in unknown} for row in rows],
        }


def partial_front(config: StudyConfig, events: Events) -> PartialFront | None:
    """Of the networks that were trained, once the dense one and a candidate were; before that, of the candidates that
    were scored. None before any was. Bounds hold as far as they are known."""
    return _trained(config, events) or _scored(config, events)


def _trained(config: StudyConfig, events: Events) -> PartialFront | None:
    made = {e["name"]: e for e in events if e["event"] == "trained" and _measured(e) is not None}
    controlled = [name for e in events if e["event"] == "controlled" for name in e["names"]]
    controls = {f"{control}-{of}": (control, of) for control in config.controls.methods for of in controlled}
    compared = made.keys() - controls.keys() - {*DENSE_NETWORKS}
    if DENSE not in made or not compared:
        return None
    found = {name: measured for name, event in made.items() if (measured := _measured(event)) is not None}
    front = ParetoFront(FRONT_OBJECTIVES, resolve(config.search.constraints, found[DENSE].values))
    for name in found.keys() - controls.keys():
        front.add(name, found[name])
    shown = {DENSE, *front.members}
    shown |= {name for name, (_, of) in controls.items() if name in made and of in shown}
    rows = [_row(config, made[name], found[name], *controls.get(name, ("", ""))) for name in shown]
    promoted = [e for e in events if e["event"] == "promoted"]
    total = len(promoted[-1]["candidates"]) if promoted else len(compared)
    return PartialFront(
        config.name, len(compared), total, tuple(sorted(rows, key=lambda r: (r.latency_ms, r.key)))
    )


def _row(
    config: StudyConfig, event: Mapping[str, Any], measured: Measurement, control: str, of: str
) -> FrontRow:
    ratio, half = measured["latency_ratio"], measured.noise.get("latency_ratio", 0.0)
    low, high = _interval(measured)
    artifact = event.get("artifact")
    return FrontRow(
        key=event["name"],
        accuracy=measured["accuracy"],
        accuracy_low=low,
        accuracy_high=high,
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
        artifact=locate(config.artifact_uri, artifact) if artifact else None,
        epochs=int(event.get("epochs", 0)),
        control=control,
        of=of,
    )


def _scored(config: StudyConfig, events: Events) -> PartialFront | None:
    told = [e for e in events if e["event"] == "told"]
    found = {e["key"]: measured for e in told if (measured := _measured(e)) is not None}
    if not found.keys() - {DENSE}:
        return None
    dense = found.get(DENSE)
    bounds = () if dense is None else resolve(config.search.constraints, dense.values, EXACT)
    front = ParetoFront(_objectives(config, found.values()), bounds)
    for key, measured in found.items():
        front.add(key, measured)
    rows = []
    for key in ({DENSE} & found.keys()) | front.members.keys():
        measured = found[key]
        low, high = _interval(measured)
        costs = {name: int(measured[name]) for name in ("macs", "params", "size_bytes")}
        predicted = measured.values.get("predicted_latency_ratio")
        rows.append(
            ScoredRow(key, measured["accuracy"], low, high, **costs, predicted_latency_ratio=predicted)
        )
    rows.sort(key=lambda r: (r.macs, r.key))
    return PartialFront(config.name, len(told), config.search.candidates, tuple(rows))


def _measured(event: Mapping[str, Any]) -> Measurement | None:
    outcome = outcome_from_json(event["outcome"])
    return None if isinstance(outcome, Failure) else outcome


def _interval(measured: Measurement) -> tuple[float, float]:
    half = measured.noise.get("accuracy", 0.0)
    return max(measured["accuracy"] - half, 0.0), min(measured["accuracy"] + half, 1.0)


def _objectives(config: StudyConfig, found: Iterable[Measurement]) -> tuple[Objective, ...]:
    """What the study is after as far as all these measurements have it; of latency, its prediction."""
    common = set.intersection(*(set(m.values) for m in found))
    asked = [OBJECTIVES[name] for name in config.search.objectives]
    asked = [o if o.name in common else Objective(f"predicted_{o.name}", o.direction, o.unit) for o in asked]
    return tuple(o for o in asked if o.name in common)


def best(found: PartialFront) -> str | None:
    """The artifact of the most accurate pruned network; None where none was trained."""
    pruned = [
        r for r in found.rows if isinstance(r, FrontRow) and r.key not in DENSE_NETWORKS and not r.control
    ]
    return max(pruned, key=lambda r: (r.accuracy, r.key)).artifact if pruned else None


def table(found: PartialFront) -> "Table":
    """For a terminal of 80 columns or more; the dense network is bold."""
    if found.trained:
        return front_table([row.to_json() for row in found.rows])  # type: ignore[union-attr]
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    headers, cells = _cells(found)
    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in headers:
        drawn.add_column(header, justify="left" if header == "key" else "right", no_wrap=True)
    for key, *rest in cells:
        drawn.add_row(key[:10], *rest, style="bold" if key == DENSE else "")
    return drawn


def _cells(found: PartialFront) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows of a table of scored candidates."""
    rows = [row for row in found.rows if isinstance(row, ScoredRow)]
    timed = any(row.predicted_latency_ratio is not None for row in rows)
    dense = next((row for row in rows if row.key == DENSE), None)
    cells = []
    for row in rows:
        half = 50 * (row.accuracy_high - row.accuracy_low)
        fold = f" ÷{dense.macs / row.macs:.3g}" if dense and row.macs and row.macs != dense.macs else ""
        predicted = row.predicted_latency_ratio
        cells.append(
            (
                row.key,
                f"{100 * row.accuracy:.2f} ±{half:.2f}",
                count(row.macs) + fold,
                size(row.size_bytes),
                count(row.params),
                *([f"{predicted:.3f}" if predicted is not None else "?"] if timed else []),
            )
        )
    headers = ("key", "accuracy %", "MACs", "size", "params", *(["predicted × dense"] if timed else []))
    return headers, cells


def write(found: PartialFront, folder: Path) -> None:
    """As JSON, then as a page. Raises OSError."""
    write_json(folder / PARTIAL_FRONT, found.to_json())
    title = f"{found.study}: partial front"
    if found.trained:
        rows = [row.to_json() for row in found.rows]  # type: ignore[union-attr]
        caption = f"All figures are those of {IMAGES}: this search has not ended."
        write_html(rows, folder / PARTIAL_PAGE, title, note=found.said, images=IMAGES, caption=caption)
        return
    headers, cells = _cells(found)
    page = PAGE.format(
        title=html.escape(title),
        note=f'<p class="note">{html.escape(found.said)}</p>\n',
        figure="",
        head="".join(f"<th>{html.escape(name)}</th>" for name in headers),
        body="\n".join(
            f'<tr class="{"dense" if row[0] == DENSE else ""}">'
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in cells
        ),
        caption="",
    )
    (folder / PARTIAL_PAGE).write_text(page, encoding="utf-8")


def remove(folder: Path) -> None:
    """What an earlier run left, when there is a front proper."""
    for name in (PARTIAL_FRONT, PARTIAL_PAGE):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def kept(
    config: StudyConfig, say: Callable[[str], None], tell: Callable[..., None] = lambda event, **data: None
) -> Iterator[None]:
    """Writes the partial front of a study that does not get to its end within, whatever the reason. say: takes a line;
    tell: an event, see `events.events`."""
    try:
        yield
    except BaseException:
        if not (config.path / FRONT).exists():
            try:
                found = partial_front(config, read_events(config.path / JOURNAL))
                if found is not None:
                    write(found, config.path)
            except (OSError, PrunefrontError) as error:  # why the search ended is what is raised
                say(f"no partial front was written: {error}")
            else:
                if found is not None:
                    tell("partial_front", rows=len(found.rows), trained=found.trained)
                    say(f"{found.said}; {config.path / PARTIAL_PAGE}")
        raise
