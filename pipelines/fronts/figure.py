"""The front as an interactive figure, for pages."""

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunefront.pipelines.fronts.marks import (
    BLUE,
    MARKS,
    Mark,
    accuracy_interval,
    latency_interval,
    mark_of,
    rgb,
    stairs,
)
from prunefront.pipelines.fronts.row import FrontRow
from prunefront.pipelines.fronts.table import format_count, format_size

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_GROUPS = 24
"""Most channel groups whose dropped fraction is shown under the mouse."""


def figure(rows: Sequence[FrontRow], images: str | None = None) -> "Figure":
    """Draws accuracy over latency, with intervals as bars; a marker grows with the number of parameters.

    rows: fastest first. images: the images that accuracies were measured on; None = test images.
    """
    import plotly.graph_objects as go

    drawn = go.Figure()
    steps = stairs(rows)
    drawn.add_scatter(
        x=[x for x, _ in steps],
        y=[y for _, y in steps],
        mode="lines",
        line={"color": BLUE, "width": 1.5, "shape": "hv"},
        opacity=0.45,
        hoverinfo="skip",
        showlegend=False,
    )
    biggest = max(row.params for row in rows)
    for mark in MARKS:
        members = [row for row in rows if mark_of(row) == mark]
        if members:
            drawn.add_scatter(**_scatter(mark, members, biggest))
    drawn.update_layout(
        template="plotly_white",
        font={
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
            "size": 13,
            "color": "#111827",
        },
        xaxis={
            "title": {"text": "latency [ms]"},
            "rangemode": "tozero",
            "zeroline": False,
        },
        yaxis={"title": {"text": f"accuracy on {images or f'{rows[0].images:,} test images'} [%]"}},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"align": "left", "bgcolor": "white"},
        height=520,
        margin={"l": 70, "r": 25, "t": 60, "b": 60},
    )
    return drawn


def _scatter(mark: Mark, members: Sequence[FrontRow], biggest: int) -> dict[str, Any]:
    """Returns plotly's arguments for the networks of one kind. biggest: most parameters of any network."""
    red, green, blue = rgb(mark.colour)

    def bars(intervals: Sequence[tuple[float, float]]) -> dict[str, Any]:
        return {
            "type": "data",
            "symmetric": False,
            "array": [above for _, above in intervals],
            "arrayminus": [below for below, _ in intervals],
            "thickness": 1,
            "width": 2,
            "color": f"rgba({red},{green},{blue},0.45)",
        }

    return {
        "name": mark.name,
        "mode": "markers",
        "x": [row.latency_ms for row in members],
        "y": [100 * row.accuracy for row in members],
        "error_x": bars([latency_interval(row) for row in members]),
        "error_y": bars([accuracy_interval(row) for row in members]),
        "marker": {
            "color": mark.colour,
            "symbol": mark.symbol,
            "size": [9 + 13 * math.sqrt(row.params / biggest) for row in members],
            "line": {"width": 1.5, "color": "white" if mark.filled else mark.colour},
        },
        "hovertemplate": [f"{_hover(row)}<extra></extra>" for row in members],
    }


def _hover(row: FrontRow) -> str:
    ratios = "".join(
        f"<br>   {html.escape(group)}  {100 * ratio:.0f} %"
        for group, ratio in list(row.achieved.items())[:MOST_GROUPS]
    )
    rest = len(row.achieved) - MOST_GROUPS
    more = f"<br>   … and {rest} more groups" if rest > 0 else ""
    return (
        f"<b>{html.escape(f'{row.control} of {row.of}' if row.control else row.key)}</b>"
        f"<br>accuracy {100 * row.accuracy:.2f} % "
        f"({100 * row.accuracy_low:.2f} to {100 * row.accuracy_high:.2f})"
        f"<br>latency {row.latency_ms:.3f} ms, {row.latency_ratio:.3f} × dense"
        f"<br>{format_count(row.macs)} MACs, {format_count(row.params)} params, {format_size(row.size_bytes)}"
        + (f"<br>{html.escape(row.made)}" if row.made else "")
        + (f"<br>dropped:{ratios}{more}" if ratios else "")
    )
