"""The partial front for people: a table for a terminal, and the files that a search leaves which is cut short."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prunefront.errors import PrunefrontError
from prunefront.pipelines.fronts.report import write_report
from prunefront.pipelines.fronts.table import (
    format_count,
    format_macs,
    format_quality,
    format_size,
    quality_header,
)
from prunefront.pipelines.fronts.table import table as front_table
from prunefront.pipelines.fronts.unfinished import FrontSections, PartialFront, partial_front
from prunefront.pipelines.journal.journal import read_events, write_json
from prunefront.pipelines.journal.layout import EARLIER_PAGES, FRONT, JOURNAL, PARTIAL_FRONT, REPORT
from prunefront.pruners.graph.pruning_plan import DENSE

if TYPE_CHECKING:
    from rich.table import Table


def partial_table(front: PartialFront) -> "Table":
    """Returns a table for a terminal of 80 columns or more; the dense network is bold."""
    if front.trained:
        return front_table(front.trained_rows)
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    headers, rows = _scored_cells(front)
    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in headers:
        drawn.add_column(Text(header), justify="left" if header == "key" else "right", no_wrap=True)
    for key, *rest in rows:
        drawn.add_row(*map(Text, (key[:10], *rest)), style="bold" if key == DENSE else "")
    return drawn


def write_partial_front(front: PartialFront, study: FrontSections, folder: Path) -> None:
    """Writes a partial front into a study's folder, as JSON and in its page. Raises OSError, PrunefrontError."""
    write_json(folder / PARTIAL_FRONT, front.to_json())
    write_report(study, folder)


def remove_partial_front(folder: Path) -> None:
    """Deletes the partial front of an earlier run, when there is a front proper, and pages of earlier versions."""
    for name in (PARTIAL_FRONT, *EARLIER_PAGES):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def partial_front_on_failure(
    study: FrontSections,
    folder: Path,
    say: Callable[[str], None],
    tell: Callable[..., None] = lambda event, **data: None,
) -> Iterator[None]:
    """Writes the partial front of a study whose search ends early within, whatever the reason.

    folder: the study's. say: takes a line for a person. tell: takes an event, see `events.events`.
    """
    try:
        yield
    except BaseException:
        if not (folder / FRONT).exists():
            try:
                front = partial_front(study, read_events(folder / JOURNAL))
                if front is not None:
                    write_partial_front(front, study, folder)
            except (OSError, PrunefrontError) as error:  # the reason why the search ended is what is raised
                say(f"no partial front was written: {error}")
            else:
                if front is not None:
                    tell("partial_front", rows=len(front.rows), trained=front.trained)
                    say(f"{front.summary}; {folder / REPORT}")
        raise


def _scored_cells(front: PartialFront) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns headers and rows of the table of scored candidates."""
    rows = front.scored_rows
    timed = any(row.predicted_latency_ratio is not None for row in rows)
    dense = next((row.macs for row in rows if row.key == DENSE), None)
    cells = []
    for row in rows:
        ratio = row.predicted_latency_ratio
        predicted = "?" if ratio is None else f"{ratio:.3f}"
        cells.append(
            (
                row.key,
                format_quality(row),
                format_macs(row.macs, dense),
                format_size(row.size_bytes),
                format_count(row.params),
                *([predicted] * timed),
            )
        )
    headers = ("key", quality_header(rows), "MACs", "size", "params", *(["predicted × dense"] * timed))
    return headers, cells
