"""A whole study that asks for methods: criteria of all kinds, a procedure, allocators, a bound and controls."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from prunefront.pruners.controls import controls
from tests.commands import command
from tests.prepared import prepare

pytestmark = pytest.mark.slow

STUDY = """
name = "methods"
[controls]
methods = ["scratch_e", "random_units", "random_allocation", "uniform_width", "lottery_ticket"]
networks = 1
[model]
factory = "digits_cnn"
options = { width = 8 }
[dense]
epochs = 2
[space]
criteria = ["l1", "thinet", "lasso", "sosp_h", "apoz"]
per_group = { "stage1.conv2" = ["chip"] }
bound = "redundancy"
calibration_images = 256
[search]
searcher = "random"
candidates = 8
[start]
allocators = ["erk", "sensitivity", "redundancy"]
[training]
candidates = 3
epochs = 1
procedure = "tick_tock"
precision = "float32"
[measure]
pairs = 20
[artifacts]
pt2 = false
"""


def prunefront(*arguments: str, folder: Path) -> str:
    done = command(*arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("methods")
    (folder / "s.toml").write_text(STUDY)
    prepare(folder / "s.toml")
    return folder, prunefront("search", "s.toml", "--without-ray", folder=folder)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "studies" / "methods" / "journal.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == kind]


def test_every_control_stands_on_the_front_and_is_marked(searched: tuple[Path, str]) -> None:
    folder, said = searched
    rows = {row["key"]: row for row in json.loads(prunefront("front", "s.toml", "--json", folder=folder))}
    found = {row["control"]: row for row in rows.values() if row["control"]}
    asked = {"scratch_e", "random_units", "random_allocation", "uniform_width", "lottery_ticket"}
    assert found.keys() == asked <= set(controls)
    subject = rows[found["scratch_e"]["of"]]
    assert not subject["control"]
    for name in ("scratch_e", "random_units", "lottery_ticket"):
        assert found[name]["of"] == subject["key"]
        assert found[name]["macs"] == subject["macs"]
        assert found[name]["achieved"] == subject["achieved"]
    for name in ("random_allocation", "uniform_width"):
        assert found[name]["macs"] <= subject["macs"]
    assert (found["scratch_e"]["epochs"], found["random_units"]["epochs"], subject["epochs"]) == (2, 1, 1)
    assert "controls" in said
    assert "random_allocation" in said


def test_nothing_failed_and_groups_kept_to_their_criteria(searched: tuple[Path, str]) -> None:
    folder, _ = searched
    told = [e["outcome"] for e in events(folder, "told") + events(folder, "trained")]
    assert all("failure" not in outcome for outcome in told), told
    asked = [e["candidate"]["choices"] for e in events(folder, "asked")]
    assert {c["stage1.conv2"]["criterion"] for c in asked} == {"chip"}
    assert {c["stage1.conv1"]["criterion"] for c in asked} <= {"l1", "thinet", "lasso", "sosp_h", "apoz"}
    facts = load_file(folder / "studies" / "methods" / "prepared" / "facts.safetensors")
    assert {name.partition("/")[0] for name in facts} == {"sensitivity", "gradient_gram", "error_curve"}


def test_a_network_that_a_procedure_chose_units_for_can_be_fetched_and_verified(
    searched: tuple[Path, str],
) -> None:
    folder, _ = searched
    rows = json.loads(prunefront("front", "s.toml", "--json", folder=folder))
    for number, row in enumerate(
        r for r in rows if r["control"] in ("", "scratch_e") and r["key"] != "dense"
    ):
        prunefront("fetch", "s.toml", "--key", row["key"], "-o", f"best{number}", folder=folder)
        prunefront("verify", f"best{number}", folder=folder)
    assert number >= 1


def test_a_finished_study_repeats_nothing(searched: tuple[Path, str]) -> None:
    folder, _ = searched
    before = (folder / "studies" / "methods" / "journal.jsonl").read_text()
    prunefront("search", "s.toml", "--without-ray", "--resume", folder=folder)
    assert (folder / "studies" / "methods" / "journal.jsonl").read_text() == before
