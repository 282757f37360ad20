"""The front as JSON, table and page, and the choice of a network against an exhaustive search."""

import json
import math
from dataclasses import FrozenInstanceError, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from prunefront.pipelines.fronts.choice import best_row, find_row
from prunefront.pipelines.fronts.figure import COSTS, figure
from prunefront.pipelines.fronts.front import Front
from prunefront.pipelines.fronts.page import write_html
from prunefront.pipelines.fronts.row import FrontError, FrontRow, read_rows
from prunefront.pipelines.fronts.table import controls_table, table
from prunefront.search.outcomes.measurement import OBJECTIVES


def data(key: str, kept: float, accuracy: float, **other: Any) -> dict[str, Any]:
    return {
        "key": key,
        "accuracy": accuracy,
        "accuracy_low": max(0.0, accuracy - 0.01),
        "accuracy_high": min(1.0, accuracy + 0.01),
        "images": 10_000,
        "latency_ms": 4 * kept,
        "latency_ratio": kept,
        "latency_ratio_low": 0.98 * kept,
        "latency_ratio_high": 1.02 * kept,
        "dense_latency_ms": 4.0,
        "size_bytes": int(1_100_000 * kept),
        "macs": int(41_000_000 * kept),
        "params": int(270_000 * kept),
        "achieved": {"layer1.0.conv1": 1 - kept, "a <b> group": 0.5},
        "artifact": f"artifacts/{key}",
        **other,
    }


DATA = [
    data("dense", 1.0, 0.917),
    data("0123456789abcdef", 0.25, 0.871),
    data("fedcba9876543210", 0.5, 0.912),
    data("00112233445566ff", 0.6, 0.905, on_test_front=False),
]
ROWS = read_rows(DATA)

kept = st.floats(0.01, 1.0)
fronts = st.lists(st.tuples(kept, st.floats(0, 1)), min_size=1, max_size=12).map(
    lambda points: read_rows([data(f"k{i}", *point) for i, point in enumerate(points)])
)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_table_fits_the_terminal(width: int) -> None:
    out = StringIO()
    Console(file=out, width=width).print(table(ROWS))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert "…" not in out.getvalue()
    assert max(map(len, lines)) <= 80
    body = [line.split()[0] for line in lines if "±" in line]
    assert body == ["0123456789", "fedcba9876", "0011223344*", "dense"]
    first = next(line for line in lines if "0123456789" in line)
    assert " ".join(first.split()) == "0123456789 87.10 ±1.00 1.000 0.250 ±0.005 10.2 M ÷4 275 kB 67.5 k"


def test_json_round_trip() -> None:
    front = Front.from_json(DATA)
    assert list(front) == ROWS
    assert len(front) == 4
    assert Front.from_json(json.loads(json.dumps(front.to_json()))) == front
    assert [r.latency_ms for r in front] == sorted(r["latency_ms"] for r in DATA)
    assert all(was.items() <= row.to_json().items() for row in front for was in DATA if was["key"] == row.key)


def test_a_front_is_in_order_and_whole_however_it_is_made() -> None:
    assert Front(tuple(reversed(ROWS))).rows == tuple(ROWS)
    with pytest.raises(FrontError, match="at least one row"):
        Front(())
    with pytest.raises(FrontError, match="holds dense more than once"):
        Front((ROWS[-1], ROWS[-1]))


def test_a_row_that_cannot_be_is_not_made() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        replace(ROWS[0], quality=91.7)
    with pytest.raises(FrozenInstanceError):
        ROWS[0].quality = 0.5  # type: ignore[misc]  # that it cannot be set is what is tested


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "list of at least one row"),
        ([], "list of at least one row"),
        ("front", "list of at least one row"),
        ([3], "row None .*object"),
        ([{"key": "a1"}], "row 'a1' .*accuracy: Field required"),
        ([{**DATA[0], "accuracy": 91.7}], "row 'dense' .*accuracy: .*less than or equal to 1"),
        ([{**DATA[0], "accuracy": "0.9"}], "accuracy: .*number"),
        ([{**DATA[0], "latency_ms": math.nan}], "latency_ms: .*finite"),
        ([{**DATA[0], "macs": -1}], "macs: .*greater than or equal to 0"),
        ([{**DATA[0], "achieved": {"conv": "half"}}], "achieved.conv: .*number"),
        ([DATA[0], DATA[0]], "holds dense more than once"),
    ],
)
def test_what_is_no_front_is_refused(content: object, says: str) -> None:
    with pytest.raises(FrontError, match=says) as caught:
        read_rows(content)
    assert "\n" not in str(caught.value)


@given(fronts, st.floats(0.01, 5), st.floats(0, 1), st.sampled_from(sorted(OBJECTIVES)))
def test_select_agrees_with_exhaustive_search(
    rows: list[FrontRow], latency: float, accuracy: float, best: str
) -> None:
    under = {"latency_ms": latency, "accuracy": accuracy}
    fit = [r for r in rows if r.latency_ms <= latency and r.accuracy <= accuracy]
    if not fit:
        with pytest.raises(FrontError, match="smallest"):
            best_row(rows, under, best)
        return
    chosen = best_row(rows, under, best)
    assert chosen in fit
    extreme = max if OBJECTIVES[best].direction == "max" else min
    assert getattr(chosen, best) == extreme(getattr(r, best) for r in fit)


def test_select_says_what_is_possible() -> None:
    with pytest.raises(FrontError, match=r"smallest latency_ms possible is 1 \(asked: 0.5\)"):
        best_row(ROWS, {"latency_ms": 0.5}, "accuracy")
    with pytest.raises(FrontError, match="did you mean 'latency_ms'"):
        best_row(ROWS, {"latncy_ms": 2}, "accuracy")
    with pytest.raises(FrontError, match=r"did you mean 'accuracy'.*known: accuracy, latency_ms"):
        best_row(ROWS, {}, "acuracy")
    with pytest.raises(FrontError, match=r"the nearest is 0123456789abcdef: latency_ms 1, accuracy 0\.871$"):
        Front(tuple(ROWS)).best({"latency_ms": 0.9, "accuracy": 0.88})
    assert Front(tuple(ROWS)).best().key == "dense"
    assert Front(tuple(ROWS)).best({"latency_ms": 2.5}).key == "fedcba9876543210"
    assert Front(tuple(ROWS)).best(by="size_bytes").key == "0123456789abcdef"


def test_a_key_may_be_cut_short() -> None:
    assert find_row(ROWS, "fed").key == "fedcba9876543210"
    assert find_row([*ROWS, replace(ROWS[-1], key="dense-finetuned")], "dense") == ROWS[-1]
    with pytest.raises(FrontError, match="2 rows of the front have a key that begins with '0'"):
        find_row(ROWS, "0")


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    page = tmp_path / "front.html"
    write_html(ROWS, page, "a <b> & study", note="no network meets macs <= 1%")
    text = page.read_text(encoding="utf-8")
    assert "cdn.plot.ly/plotly" not in text
    assert '"showSendToCloud": false' in text
    assert "no network meets macs &lt;= 1%" in text
    assert "<title>a &lt;b&gt; &amp; study</title>" in text
    assert all(r.key in text for r in ROWS)
    assert "<b> group" not in text


def test_the_figure_shows_every_row_with_its_interval() -> None:
    drawn = figure(ROWS)
    points = {
        (round(x, 6), round(y, 6)): (up, down)
        for trace in drawn.data
        if trace.mode == "markers"
        for x, y, up, down in zip(
            trace.x, trace.y, trace.error_y.array, trace.error_y.arrayminus, strict=True
        )
    }
    assert set(points) == {(round(r.latency_ms, 6), round(100 * r.accuracy, 6)) for r in ROWS}
    assert all(value == pytest.approx((1.0, 1.0)) for value in points.values())
    stairs = next(trace for trace in drawn.data if trace.mode == "lines")
    assert list(stairs.y) == pytest.approx([87.1, 91.2, 91.7])


@given(fronts)
def test_each_axis_shows_every_row_at_its_cost(rows: list[FrontRow]) -> None:
    """A button of the figure puts other numbers into its traces: those of the same networks, in the same order."""
    drawn = figure(rows)
    for cost, button in zip(COSTS, drawn.layout.updatemenus[0].buttons, strict=True):
        changed, layout = button.args
        assert layout["xaxis.title.text"] == f"{cost.name} [{cost.unit}]"
        assert len(changed["x"]) == len(changed["y"]) == len(changed["error_x"]) == len(drawn.data)
        points = [
            p for x, y in zip(changed["x"][1:], changed["y"][1:], strict=True) for p in zip(x, y, strict=True)
        ]
        assert sorted(points) == sorted((cost.value(row), 100 * row.accuracy) for row in rows)
        steps, best = changed["x"][0], changed["y"][0]
        assert steps == sorted(steps)
        assert best == sorted(set(best))
        assert all(
            100 * row.accuracy <= max(y for x, y in zip(steps, best, strict=True) if x <= cost.value(row))
            for row in rows
        )


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[1:2]])
def test_a_page_of_few_networks_is_written(rows: list[FrontRow], tmp_path: Path) -> None:
    write_html(rows, tmp_path / "front.html")
    assert all(row.key in (tmp_path / "front.html").read_text() for row in rows)


def test_rows_from_measurements_may_hold_whole_floats() -> None:
    assert FrontRow.from_json({**DATA[0], "macs": 41e6}).macs == 41_000_000
    with pytest.raises(FrontError, match="macs"):
        FrontRow.from_json({**DATA[0], "macs": 1.5})


def test_controls_stand_beside_the_network_that_they_are_compared_with() -> None:
    rival = data(
        "scratch_e-fedcba9876543210", 0.5, 0.902, control="scratch_e", of="fedcba9876543210", epochs=30
    )
    rows = read_rows([*DATA, rival])
    assert controls_table(ROWS) is None
    drawn = controls_table(rows)
    assert drawn is not None
    console = Console(file=StringIO(), width=80)
    console.print(drawn)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    line = next(line for line in text.splitlines() if "scratch_e" in line)
    assert line.split() == ["scratch_e", "fedcba9876", "90.20", "±1.00", "-1.00", "2.000", "20.5", "M", "30"]
    names = {trace.name for trace in figure(rows).data}
    assert "control" in names
    assert "control" not in {trace.name for trace in figure(ROWS).data}
    console = Console(file=StringIO(), width=80)
    console.print(table(rows))
    assert "scratch_e" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert rows[0].control == ""
