"""What the lists and docs/methods.md say is what the registries hold."""

import json
import sys
from pathlib import Path

import pytest

from prunefront.pipelines.cli.catalogue import LISTS, METHODS, catalogue, with_tables
from prunefront.pipelines.cli.main import main

PAGE = Path(__file__).parents[3] / "docs" / "methods.md"


def test_the_page_is_what_the_registries_say() -> None:
    page = PAGE.read_text()
    assert all(f"<!-- table: {what} -->" in page for what in METHODS)
    assert with_tables(page) == page, "make docs writes the tables of docs/methods.md anew"
    assert with_tables(page.replace("`taylor`", "`sailor`")) == page


@pytest.mark.parametrize("what", LISTS)
def test_every_list_is_offered_and_prints_json(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prunefront", "list", what, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    entries = json.loads(capsys.readouterr().out)
    assert [e["name"] for e in entries] == [e["name"] for e in catalogue(what)]
    assert all(e["summary"] for e in entries)


@pytest.mark.parametrize("what", METHODS)
def test_a_method_says_when_to_choose_it_and_who_found_it(what: str) -> None:
    entries = catalogue(what)
    assert len({e["name"] for e in entries}) == len(entries) >= 6
    for entry in entries:
        assert 10 < len(entry["summary"]) <= 110, entry["name"]
        assert entry["choose"], entry["name"]
        assert entry["paper"], entry["name"]


def test_needs_are_told_in_kinds() -> None:
    needs = {e["name"]: e["needs"] for e in catalogue("criteria")}
    assert needs["l1"] == ["weights"]
    assert needs["activation"] == ["forward"]
    assert needs["taylor"] == ["gradients"]
    assert needs["sosp_h"] == ["HVP"]
    assert needs["sosp_i"] == ["JVP"]
    assert needs["thinet"] == ["reconstruction"]
