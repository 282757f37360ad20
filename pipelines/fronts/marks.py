"""Colours, marks, intervals and the staircase of a front, alike in pictures and pages."""

from collections.abc import Sequence
from dataclasses import dataclass

from prunefront.pipelines.fronts.row import FrontRow

BLUE, ORANGE, GREY, PURPLE = "#1f5fa8", "#d95f02", "#6b7280", "#7b3294"


@dataclass(frozen=True, slots=True)
class Mark:
    """The look of one kind of network. name: in the legend. marker: for matplotlib. symbol: for plotly."""

    name: str
    colour: str
    marker: str
    symbol: str
    filled: bool


ON_FRONT = Mark("on the front", BLUE, "o", "circle", True)
BEHIND = Mark("dominated on the test images", GREY, "o", "circle-open", False)
DENSE_NETWORK = Mark("dense network", ORANGE, "D", "diamond", True)
CONTROL = Mark("control", PURPLE, "^", "triangle-up-open", False)

MARKS = (ON_FRONT, BEHIND, DENSE_NETWORK, CONTROL)
"""Every kind of network, in the order of the legend."""


def mark_of(row: FrontRow) -> Mark:
    """Returns the mark of a network."""
    if row.is_dense:
        return DENSE_NETWORK
    if row.control:
        return CONTROL
    return ON_FRONT if row.on_test_front else BEHIND


def stairs(rows: Sequence[FrontRow]) -> list[tuple[float, float]]:
    """Returns the best accuracy to be had by each latency, (ms, %), for rows that come fastest first.

    A network may be on the front by its size or MACs alone; then it lies below the stairs.
    """
    best: list[tuple[float, float]] = []
    for row in rows:
        if row.control:
            continue
        if not best or 100 * row.accuracy > best[-1][1]:
            best.append((row.latency_ms, 100 * row.accuracy))
    return best


def latency_interval(row: FrontRow) -> tuple[float, float]:
    """Returns the 95 % interval of the latency as milliseconds below and above; it is that of the ratio to dense."""
    below = (row.latency_ratio - row.latency_ratio_low) * row.dense_latency_ms
    above = (row.latency_ratio_high - row.latency_ratio) * row.dense_latency_ms
    return max(below, 0.0), max(above, 0.0)


def accuracy_interval(row: FrontRow) -> tuple[float, float]:
    """Returns the 95 % interval of the accuracy as points below and above."""
    return 100 * (row.accuracy - row.accuracy_low), 100 * (row.accuracy_high - row.accuracy)


def rgb(colour: str) -> tuple[int, int, int]:
    """Returns red, green and blue of `#rrggbb`, each in [0, 255]."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
