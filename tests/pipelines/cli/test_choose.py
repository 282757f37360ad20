"""`pick`, `compare`, `report`, and `verify` as a gate, on a study that looks searched."""

import json
import shlex
from io import StringIO
from pathlib import Path

import pytest

from prunefront.pipelines.artifacts.gate import Requirement
from prunefront.pipelines.artifacts.verify import Check, Verification
from prunefront.pipelines.events.printing import people
from tests.pipelines.cli.conftest import Run


def test_what_is_picked_is_what_is_fetched(run: Run, searched: Path) -> None:
    for options, key in (
        ([], "dense"),
        (["--under", "macs=5e5"], "a1"),
        (["--require", "accuracy >= 80%", "--best", "size_bytes"], "dense"),
        (["--best", "latency_ms"], "a1"),
    ):
        picked = run("pick", "digits4", *options, "--json").document
        assert picked["key"] == picked["row"]["key"] == key
        words = shlex.split(picked["fetch"])
        assert words == ["prunefront", "fetch", "digits4", *options, "-o", "best/"]
        assert run(*words[1:-1], f"out-{len(options)}-{key}", "--json").document["row"]["key"] == key


def test_a_pick_for_people_fits_80_columns(run: Run, searched: Path) -> None:
    out = run("pick", "s.toml", "--under", "latency_ms=0.15").out
    assert max(map(len, out.splitlines())) <= 80
    assert "pick     a1          45.00 ±1.00 %, 0.100 ms (0.50 × dense), 450 k MACs, 25 kB" in out
    assert "fetch it: prunefront fetch s.toml --under latency_ms=0.15 -o best/" in out
    none = run("pick", "s.toml", "--require", "accuracy >= 99%")
    assert (none.code, none.out) == (2, "")
    assert "the nearest is dense" in none.err


def test_two_fronts_and_two_networks_are_compared(run: Run, searched: Path) -> None:
    same = run("compare", "digits4", str(searched), "--json").document
    assert (same["hypervolume"]["difference"], same["hypervolume"]["clear"], same["settings"]) == (
        0.0,
        False,
        {},
    )
    store = str(searched / "artifacts")
    assert "within the noise: neither is ahead" in run("compare", "digits4", store).out
    run("fetch", "digits4", "--key", "dense", "-o", "dense")
    mixed = run("compare", "dense", "digits4")
    assert mixed.code == 2
    assert "dense is one network and digits4 is not" in mixed.err


def test_settings_in_which_two_studies_differ(run: Run, searched: Path) -> None:
    config = json.loads((searched / "study.json").read_text())
    other = searched.parent / "other"
    other.mkdir()
    config |= {"name": "other", "seed": 7, "artifacts": {"uri": str(searched / "artifacts")}}
    (other / "study.json").write_text(json.dumps(config))
    rows = json.loads((searched / "front.json").read_text())
    for row in rows:
        if row["key"] == "a1":
            row |= {"accuracy": 0.89, "accuracy_low": 0.88, "accuracy_high": 0.9}
    (other / "front.json").write_text(json.dumps(rows))
    found = run("compare", "digits4", "other", "--json").document
    assert found["settings"]["seed"] == [0, 7]
    assert found["hypervolume"]["clear"]
    assert found["behind"]["first"] == {"a1": ["a1"], "dense": []}
    text = run("compare", "digits4", "other").out
    assert "B is ahead" in text
    assert "seed: 0 in A, 7 in B" in text


def test_the_page_is_written_and_opened(run: Run, searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", lambda url: opened.append(url) or 0)
    page = Path(run("report", "digits4", "--open", "--json").document["page"])
    assert page == (searched / "report.html").resolve()
    assert opened == [page.as_uri()]
    assert '"key":"a1"' in page.read_text()
    monkeypatch.setattr("typer.launch", lambda url: 1)
    assert "no browser could be opened here" in run("report", "digits4", "--open").out


@pytest.mark.parametrize(
    ("same", "met", "code"), [(True, True, 0), (True, False, 3), (False, True, 1), (False, False, 1)]
)
def test_a_gate_ends_with_a_code_of_its_own(
    run: Run, monkeypatch: pytest.MonkeyPatch, same: bool, met: bool, code: int
) -> None:
    found = Verification(
        (Check("key", "a", "a", same),), (), (Requirement("macs <= 1", "2, as recorded", met),)
    )
    monkeypatch.setattr("prunefront.pipelines.artifacts.verify.verify", lambda *_, **__: found)
    ended = run("verify", "best/", "--require", "macs <= 1")
    assert ended.code == code
    assert f"{'met' if met else 'NOT MET'}: macs <= 1: 2, as recorded" in ended.out
    assert run("verify", "best/", "--json").document["met"] is (same and met)


def test_what_is_piped_is_neither_coloured_nor_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.table import Table

    long = "x" * 300
    table = Table("a", "b", box=None)
    table.add_row("[red]1", long, style="red")
    for name in ("COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    piped = people(file=StringIO())
    piped.print(table)
    assert long in piped.file.getvalue()  # type: ignore[attr-defined]  # of StringIO
    assert "\x1b" not in piped.file.getvalue()  # type: ignore[attr-defined]
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = people(file=StringIO(), force_terminal=True, width=80)
    terminal.print(table)
    assert "\x1b[31m" not in terminal.file.getvalue()  # type: ignore[attr-defined]
