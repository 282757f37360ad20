"""The front as an interactive figure, for pages: quality over latency, MACs or size."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunefront.pipelines.fronts.row import FrontRow
from prunefront.pipelines.fronts.table import digits, format_count, format_size

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BLUE, ORANGE, GREY, PURPLE = "#1f5fa8", "#d95f02", "#6b7280", "#7b3294"

MOST_GROUPS = 24
"""Most channel groups whose dropped fraction is shown under the mouse."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The look of one kind of network. name: in the legend. symbol: plotly's."""

    name: str
    colour: str
    symbol: str
    filled: bool


ON_FRONT = Mark("on the front", BLUE, "circle", True)
BEHIND = Mark("behind it on the test images", GREY, "circle-open", False)
DENSE_NETWORK = Mark("dense network", ORANGE, "diamond", True)
CONTROL = Mark("control", PURPLE, "triangle-up-open", False)

MARKS = (ON_FRONT, BEHIND, DENSE_NETWORK, CONTROL)
"""Every kind of network, in the order of the legend."""


@dataclass(frozen=True, slots=True)
class Cost:
    """A cost of networks that the horizontal axis can show. interval: 95 %, as what is below and above the value."""

    name: str
    unit: str
    value: Callable[[FrontRow], float]
    interval: Callable[[FrontRow], tuple[float, float]] = lambda row: (0.0, 0.0)


def _latency_interval(row: FrontRow) -> tuple[float, float]:
    """Returns the interval of the latency in milliseconds; it is that of the ratio to dense."""
    below = (row.latency_ratio - row.latency_ratio_low) * row.dense_latency_ms
    above = (row.latency_ratio_high - row.latency_ratio) * row.dense_latency_ms
    return max(below, 0.0), max(above, 0.0)


COSTS = (
    Cost("latency", "ms", lambda row: row.latency_ms, _latency_interval),
    Cost("MACs", "million", lambda row: row.macs / 1e6),
    Cost("weights", "kB", lambda row: row.size_bytes / 1e3),
)
"""The axes that a reader chooses among, the first one shown first."""


def figure(rows: Sequence[FrontRow], images: str | None = None) -> "Figure":
    """Draws quality over a cost, with intervals as bars; a marker grows with the number of parameters.

    images: the images that qualities were measured on; None = test images.
    """
    import plotly.graph_objects as go

    kinds = [(mark, members) for mark in MARKS if (members := [row for row in rows if mark_of(row) == mark])]
    biggest = max(row.params for row in rows)
    lines = [stairs(rows, cost) for cost in COSTS]
    drawn = go.Figure()
    drawn.add_scatter(
        x=lines[0][0],
        y=lines[0][1],
        mode="lines",
        line={"color": BLUE, "width": 1.5, "shape": "hv"},
        opacity=0.45,
        hoverinfo="skip",
        showlegend=False,
    )
    for mark, members in kinds:
        drawn.add_scatter(**_scatter(mark, members, biggest))
    axes = [
        {
            "label": cost.name,
            "method": "update",
            "args": [
                {
                    "x": [line[0], *([cost.value(row) for row in members] for _, members in kinds)],
                    "y": [line[1], *([row.shown[0] for row in members] for _, members in kinds)],
                    "error_x": [None, *(_bars(mark, members, cost.interval) for mark, members in kinds)],
                },
                {"xaxis.title.text": f"{cost.name} [{cost.unit}]", "xaxis.autorange": True},
            ],
        }
        for cost, line in zip(COSTS, lines, strict=True)
    ]
    drawn.update_layout(
        template="plotly_white",
        font={
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
            "size": 13,
            "color": "#111827",
        },
        xaxis={
            "title": {"text": f"{COSTS[0].name} [{COSTS[0].unit}]"},
            "rangemode": "tozero",
            "zeroline": False,
        },
        yaxis={
            "title": {
                "text": _text(
                    f"{rows[0].metric.name} on {images or f'{rows[0].images:,} test images'}{_unit(rows[0])}"
                )
            }
        },
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -0.14, "yanchor": "top"},
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "buttons": axes,
                "x": 0,
                "xanchor": "left",
                "y": 1.03,
                "yanchor": "bottom",
                "pad": {"t": 0, "b": 0},
            }
        ],
        hoverlabel={"align": "left", "bgcolor": "white"},
        height=540,
        margin={"l": 70, "r": 25, "t": 70, "b": 90},
    )
    return drawn


def mark_of(row: FrontRow) -> Mark:
    """Returns the mark of a network."""
    if row.is_dense:
        return DENSE_NETWORK
    if row.control:
        return CONTROL
    return ON_FRONT if row.on_test_front else BEHIND


def stairs(rows: Sequence[FrontRow], cost: Cost) -> tuple[list[float], list[float]]:
    """Returns costs and the best quality, a share in %, to be had by each of them.

    A network may be on the front by another cost alone; then it lies below the stairs.
    """
    costs: list[float] = []
    best: list[float] = []
    for row in sorted(rows, key=lambda row: (cost.value(row), -row.metric.sign * row.quality)):
        if not row.control and (not best or row.metric.sign * (row.shown[0] - best[-1]) > 0):
            costs.append(cost.value(row))
            best.append(row.shown[0])
    return costs, best


def _bars(
    mark: Mark, members: Sequence[FrontRow], interval: Callable[[FrontRow], tuple[float, float]]
) -> dict[str, Any]:
    red, green, blue = (int(mark.colour[at : at + 2], 16) for at in (1, 3, 5))
    intervals = [interval(row) for row in members]
    return {
        "type": "data",
        "symmetric": False,
        "array": [above for _, above in intervals],
        "arrayminus": [below for below, _ in intervals],
        "thickness": 1,
        "width": 2,
        "color": f"rgba({red},{green},{blue},0.45)",
    }


def _quality_interval(row: FrontRow) -> tuple[float, float]:
    """Returns how far the interval of the quality reaches below and above it."""
    value, low, high = row.shown
    return value - low, high - value


def _unit(row: FrontRow) -> str:
    unit = "%" if row.metric.scale == "share" else row.metric.unit
    return f" [{unit}]" if unit else ""


def _scatter(mark: Mark, members: Sequence[FrontRow], biggest: int) -> dict[str, Any]:
    """Returns plotly's arguments for the networks of one kind. biggest: most parameters of any network."""
    return {
        "name": mark.name,
        "mode": "markers",
        "x": [COSTS[0].value(row) for row in members],
        "y": [row.shown[0] for row in members],
        "error_x": _bars(mark, members, COSTS[0].interval),
        "error_y": _bars(mark, members, _quality_interval),
        "marker": {
            "color": mark.colour,
            "symbol": mark.symbol,
            "size": [9 + 13 * math.sqrt(row.params / biggest) for row in members],
            "line": {"width": 1.5, "color": "white" if mark.filled else mark.colour},
        },
        "hovertemplate": [f"{_hover(row)}<extra></extra>" for row in members],
    }


def _text(text: str) -> str:
    """Returns a text as plotly shows it: it takes some HTML, and `%{…}` for a place to fill in."""
    return html.escape(text).replace("%{", "%&#123;")


def _hover(row: FrontRow) -> str:
    ratios = "".join(
        f"<br>   {_text(group)}  {100 * ratio:.0f} %"
        for group, ratio in list(row.achieved.items())[:MOST_GROUPS]
    )
    rest = len(row.achieved) - MOST_GROUPS
    share = " %" if row.metric.scale == "share" else ""
    more = f"<br>   … and {rest} more groups" if rest > 0 else ""
    return (
        f"<b>{_text(f'{row.control} of {row.of}' if row.control else row.key)}</b>"
        f"<br>{_text(row.metric.name)} {row.shown[0]:.{digits(row.metric)}}{share} "
        f"({row.shown[1]:.{digits(row.metric)}} to {row.shown[2]:.{digits(row.metric)}})"
        f"<br>latency {row.latency_ms:.3f} ms, {row.latency_ratio:.3f} × dense"
        f"<br>{format_count(row.macs)} MACs, {format_count(row.params)} params, {format_size(row.size_bytes)}"
        + (f"<br>{_text(row.made)}" if row.made else "")
        + (f"<br>dropped:{ratios}{more}" if ratios else "")
    )
