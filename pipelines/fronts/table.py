"""The front as a table for a terminal, and the cells that tables and pages have in common."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from prunefront.pipelines.fronts.row import FrontRow
from prunefront.search.outcomes.measurement import Metric

if TYPE_CHECKING:
    from rich.table import Table


def table(rows: Sequence[FrontRow], title: str | None = None) -> "Table":
    """Returns the front without its controls, for a terminal of 80 columns or more; ± is half a 95 % interval.

    The dense network is bold. A network that the test images put behind another one is dim and marked with *.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    front = [row for row in rows if not row.control]
    dense = find_dense(front)
    behind = any(not row.on_test_front for row in front if not row.is_dense)
    drawn = Table(
        box=SIMPLE_HEAD,
        title=None if title is None else Text(title),
        title_justify="left",
        padding=(0, 1, 0, 0),
        caption="* dominated by another network on the test images" if behind else None,
        caption_justify="left",
    )
    columns = headers(front)
    for header in columns:
        left = header in ("key", "made of")
        drawn.add_column(Text(header), justify="left" if left else "right", no_wrap=header != "made of")
    for row in front:
        key, *rest = cells(row, dense, columns[-1])
        # what a front says of itself is text, never markup
        key = key[:10] + ("" if row.on_test_front or row.is_dense else "*")
        style = "bold" if row.is_dense else "" if row.on_test_front else "dim"
        drawn.add_row(*map(Text, (key, *rest)), style=style)
    return drawn


def controls_table(rows: Sequence[FrontRow]) -> "Table | None":
    """Returns each control beside the network that it is compared with; None for a study without controls."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    front = {row.key: row for row in rows}
    controls = [row for row in rows if row.control]
    if not controls:
        return None
    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title="controls", title_justify="left")
    for header in ("control", "of", quality_header(rows), "points over it", "ms", "MACs", "epochs"):
        drawn.add_column(
            Text(header), justify="left" if header in ("control", "of") else "right", no_wrap=True
        )
    for row in sorted(controls, key=lambda r: (r.of, -r.metric.sign * r.quality)):
        gain = f"{row.shown[0] - front[row.of].shown[0]:+.{digits(row.metric)}}" if row.of in front else "?"
        cells = (
            row.control,
            row.of[:10],
            format_quality(row),
            gain,
            f"{row.latency_ms:.3f}",
            format_count(row.macs),
            str(row.epochs),
        )
        drawn.add_row(*map(Text, cells))
    return drawn


def find_dense(rows: Sequence[FrontRow]) -> FrontRow | None:
    """Returns the row of the dense network, where it is among the rows."""
    return next((row for row in rows if row.is_dense), None)


def headers(rows: Sequence[FrontRow]) -> tuple[str, ...]:
    """Returns the names of the columns, which take 80 characters in all.

    The last is "made of" where a row has something to say there, else "params".
    """
    made = "made of" if any(row.made for row in rows) else "params"
    return "key", quality_header(rows), "ms", "× dense", "MACs", "size", made


def cells(row: FrontRow, dense: FrontRow | None, last: str) -> tuple[str, ...]:
    """Returns the texts of one row. last: name of the last column, see `headers`."""
    spread = (row.latency_ratio_high - row.latency_ratio_low) / 2
    return (
        f"{row.control} of {row.of}" if row.control else row.key,
        format_quality(row),
        f"{row.latency_ms:.3f}",
        "1" if row.is_dense else f"{row.latency_ratio:.3f} ±{spread:.3f}",
        format_macs(row.macs, dense.macs if dense else None),
        format_size(row.size_bytes),
        row.made if last == "made of" else format_count(row.params),
    )


class Judged(Protocol):
    """A row with a quality."""

    @property
    def metric(self) -> Metric: ...

    @property
    def shown(self) -> tuple[float, ...]: ...


def format_quality(row: Judged) -> str:
    """Returns a quality, a share in percent, with half its 95 % interval: `91.20 ±1.00`."""
    value, low, high = row.shown
    return f"{value:.{digits(row.metric)}} ±{(high - low) / 2:.{digits(row.metric)}}"


def digits(metric: Metric) -> str:
    """Returns the format of a metric's numbers, as text behind the point of a format."""
    return "2f" if metric.scale == "share" else "4g"


def quality_header(rows: Sequence[Judged]) -> str:
    """Returns the name of the column of qualities, with its unit: `miou %`."""
    metric = rows[0].metric
    return f"{metric.name} {'%' if metric.scale == 'share' else metric.unit}".rstrip()


def format_macs(macs: int, dense: int | None) -> str:
    """Returns MACs, and how many times fewer than the dense network's they are: `10.2 M ÷4`."""
    return format_count(macs) + (f" ÷{dense / macs:.3g}" if dense and macs and dense != macs else "")


def format_count(value: float) -> str:
    """Returns three digits and a unit: `10.2 M`."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:g}"


def format_size(value: float) -> str:
    """Returns a number of bytes in three digits and a unit: `275 kB`."""
    return f"{format_count(value)}B" if value >= 1000 else f"{value:g} B"
