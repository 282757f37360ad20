"""The front as JSON, table and page, and the choice of a network against an exhaustive search."""

import json
import math
import re
from dataclasses import FrozenInstanceError, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.fronts.choice import alike, best_row, broken_by, find_row, knee, named, required_of
from prunefront.pipelines.fronts.front import Front
from prunefront.pipelines.fronts.page import page, write_page
from prunefront.pipelines.fronts.report import document
from prunefront.pipelines.fronts.row import FrontError, FrontRow, read_rows
from prunefront.pipelines.fronts.table import controls_table, table
from prunefront.pipelines.fronts.unfinished import FrontSections
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
SECTIONS = replace(
    parse({"name": "s", "model": {"factory": "digits_cnn"}}, source="s.toml", base=Path()).part(
        FrontSections
    ),
    name="a <b> & study",  # of a folder that somebody else made
)

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


def read_back(text: str) -> Any:
    """What a page holds as data, which is all that a study says."""
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def test_what_a_study_says_is_no_markup_in_its_page(tmp_path: Path) -> None:
    content = document(SECTIONS, (), ROWS, source="s", note="no network meets macs <= 1% {{data}}\u202e")
    write_page(content, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "no network meets macs &lt;= 1% {{data}}\\u202e" in text
    assert "<title>a &lt;b&gt; &amp; study</title>" in text
    assert "<b> group" not in text
    assert text.count("<script") == text.count("</script>") == 2
    assert not set(re.findall(r"https?://[^\s\"']+", text)) - {"http://www.w3.org/2000/svg"}  # a namespace
    assert "default-src &#x27;none&#x27;" in text
    assert {row["key"] for row in read_back(text)["rows"]} == {row.key for row in ROWS}


@given(fronts)
def test_intervals_on_the_page_hold_their_value_and_stay_physical(rows: list[FrontRow]) -> None:
    wide = [replace(row, latency_ratio_low=1e-9, latency_ratio_high=3 * row.latency_ratio) for row in rows]
    for row in read_back(page(document(SECTIONS, (), wide, source="s")))["rows"]:
        assert 0 < row["latency_low"] <= row["latency_ms"] <= row["latency_high"]
        assert 0 <= row["quality_low"] <= row["quality"] <= row["quality_high"] <= 1


@given(fronts)
def test_the_knee_is_where_quality_less_cost_is_largest(rows: list[FrontRow]) -> None:
    """Against the definition, over all pairs: no network is further above the line from the cheapest to the best."""
    free = [
        r
        for r in rows
        if not any(
            (o.macs, -o.quality, o.key) < (r.macs, -r.quality, r.key) and o.quality >= r.quality for o in rows
        )
    ]
    found = knee(rows, "macs")
    if len(free) < 3:
        assert found is None
        return
    low, high = min(free, key=lambda r: r.macs), max(free, key=lambda r: r.macs)
    above = {
        r.key: (r.quality - low.quality) / (high.quality - low.quality)
        - (r.macs - low.macs) / (high.macs - low.macs)
        for r in free
    }
    assert found is not None
    assert above[found.key] == pytest.approx(max(above.values()))


def test_names_and_those_that_cannot_be_told_apart() -> None:
    assert {name: row.key[:4] for name, row in named(ROWS, "latency_ms").items()} == {
        "best": "dens",
        "fastest": "0123",
        "knee": "fedc",
    }
    assert [row.key[:4] for row in alike(ROWS[1], ROWS)] == ["0011", "dens"]
    assert alike(ROWS[0], ROWS) == []


def test_requirements_in_words() -> None:
    front = Front(tuple(ROWS))
    assert front.best(require=["accuracy >= -1pt"], by="size_bytes").key == "fedcba9876543210"
    assert front.best(require=["latency_ms <= 60%"]).key == "fedcba9876543210"  # of the dense network
    assert front.best({"macs": 21e6}, require=["accuracy >= 90%"]).key == "fedcba9876543210"
    with pytest.raises(FrontError, match=r"meets accuracy >= 95%; the nearest is dense: accuracy 0.917"):
        front.best(require=["accuracy >= 95%"])
    with pytest.raises(FrontError, match=r"smallest macs possible is .*of those that meet accuracy >= 90%"):
        front.best({"macs": 1}, require=["accuracy >= 90%"])
    with pytest.raises(FrontError, match="relative to the dense network, which is not among the rows"):
        Front(tuple(ROWS[:1])).best(require=["accuracy >= -1pt"])
    with pytest.raises(PrunefrontError, match="no quantity is called 'acuracy'"):
        front.best(require=["acuracy >= 90%"])
    assert (
        broken_by(ROWS[0], required_of(ROWS, ["size_bytes <= 200kB"]))
        == "size_bytes 275,000 (<= 200,000 was asked)"
    )


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[1:2]])
def test_a_page_of_few_networks_is_written(rows: list[FrontRow]) -> None:
    found = read_back(page(document(SECTIONS, (), rows, source="s")))
    assert [row["key"] for row in found["rows"]] == [row.key for row in rows]


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
    kinds = {row["key"]: row["kind"] for row in document(SECTIONS, (), rows, source="s")["rows"]}
    assert kinds[rival["key"]] == "control"
    assert "control" not in {name for row in named(rows, "macs").values() for name in [row.control]}
    console = Console(file=StringIO(), width=80)
    console.print(table(rows))
    assert "scratch_e" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert rows[0].control == ""
