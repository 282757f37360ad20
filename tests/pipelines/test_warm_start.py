"""What one study scored is known to the next: through a store, by the journal on resume, and whoever lies in it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import DirectoryStore, put_json
from pipelines.evaluations import Evaluation, Evaluations
from pipelines.journal import Journal
from pipelines.screen import Screening
from pipelines.warm_start import (
    EVALUATIONS,
    MOST_SEEDS,
    Signature,
    WarmStart,
    from_event,
    publish,
    read,
    to_event,
    warm_start,
)
from pruners.errors import PrunefrontError
from search.candidate import Candidate
from search.measurement import Failure, Measurement
from search.searchers import searchers
from tests.pipelines.test_screen import LocalPool, outcome_of, planned
from tests.problems import Separable, separable

HERE = Signature("network", "conditions")
TOY = separable(groups=3, units=16)


def measured(toy: Separable, candidate: Candidate) -> Measurement:
    found = toy.measure(candidate).values
    return Measurement({**found, "params": found["macs"], "size_bytes": 4 * found["macs"]})


def scored(count: int, toy: Separable = TOY) -> Evaluations:
    """What a random search would have scored, each network once."""
    searcher = searchers["random"](toy.problem, seed=5)
    rows: dict[str, Evaluation] = {}
    while len(rows) < count:
        candidate = searcher.ask()
        assert candidate is not None
        key = planned(candidate).key()
        rows.setdefault(key, Evaluation(candidate, key, measured(toy, candidate)))
    return Evaluations("earlier", tuple(rows.values()))


def start(folder: Path, signature: Signature = HERE, toy: Separable = TOY) -> tuple[WarmStart, list[str]]:
    said: list[str] = []
    found = warm_start(
        [read(str(folder))],
        toy.problem.space,
        lambda candidate: planned(candidate).key(),
        toy.problem.objectives,
        signature,
        said.append,
    )
    return found, said


def test_what_was_scored_alike_is_known_and_comes_back_from_the_journal(tmp_path: Path) -> None:
    table = scored(30)
    lost = replace(table.rows[3], outcome=Failure("crashed", "the worker died"))
    publish(DirectoryStore(tmp_path), HERE, replace(table, rows=(*table.rows[:3], lost, *table.rows[4:])))
    found, said = start(tmp_path)
    assert found.known == (*table.rows[:3], *table.rows[4:])
    assert found.seeds == ()
    assert "29 of its 30 scores count here" in said[0]
    assert from_event(json.loads(json.dumps(to_event(found)))) == found


def test_of_scores_on_other_images_the_front_comes_first_anew(tmp_path: Path) -> None:
    table = scored(60)
    publish(DirectoryStore(tmp_path), replace(HERE, conditions="other images"), table)
    found, said = start(tmp_path)
    assert found.known == ()
    assert 1 < len(found.seeds) <= MOST_SEEDS
    outcomes = {row.candidate.key(): row.outcome for row in table.rows}
    for seed in found.seeds:
        mine = outcomes[seed.key()]
        assert isinstance(mine, Measurement)
        for other in outcomes.values():
            assert isinstance(other, Measurement)
            assert other["accuracy"] <= mine["accuracy"] or other["macs"] >= mine["macs"]
    assert "scored first, anew" in said[0]
    assert from_event(json.loads(json.dumps(to_event(found)))) == found


def test_another_network_is_refused(tmp_path: Path) -> None:
    publish(DirectoryStore(tmp_path), replace(HERE, network="another"), scored(3))
    with pytest.raises(PrunefrontError, match="another dense network"):
        start(tmp_path)


def test_candidates_of_another_space_or_another_network_under_the_same_name_do_not_count(
    tmp_path: Path,
) -> None:
    table = scored(8)
    stranger = scored(1, separable(groups=4, units=16)).rows[0]
    narrower = separable(groups=3, units=16, least=9)
    renamed = replace(table.rows[0], key="0123456789abcdef")
    with pytest.raises(ValueError, match="same groups"):
        publish(DirectoryStore(tmp_path), HERE, replace(table, rows=(*table.rows, stranger)))
    publish(DirectoryStore(tmp_path), HERE, replace(table, rows=(renamed, *table.rows[1:])))
    assert start(tmp_path)[0].known == table.rows[1:]
    few, _ = start(tmp_path, toy=narrower)
    wide = [r for r in table.rows[1:] if min(TOY.problem.space.keeps(r.candidate).values()) >= 9]
    assert list(few.known) == wide
    publish(DirectoryStore(tmp_path), HERE, Evaluations("x", (stranger,)))
    assert start(tmp_path)[0].known == ()


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def apply(data: dict[str, Any]) -> Any:
        result = change(data)
        return data if result is None else result

    return apply


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": changed(lambda d: [d]),
    "another version": changed(lambda d: d.update(format=99)),
    "no table": changed(lambda d: d.pop("evaluations") and None),
    "columns of different length": changed(lambda d: d["evaluations"]["key"].pop() and None),
    "too many": changed(lambda d: d["evaluations"].update(key=["k"] * 200_000)),
    "keys that are no text": changed(lambda d: d["evaluations"].update(key=[7] * 4)),
    "an unknown choice": changed(lambda d: d["evaluations"]["candidates"]["rows"][0].__setitem__(1, 10**6)),
    "a ratio that is none": changed(lambda d: d["evaluations"]["candidates"]["choices"][0].update(ratio="x")),
    "outcomes of text": changed(lambda d: d["evaluations"].update(outcome=["good"] * 4)),
    "infinite accuracy": changed(lambda d: d["evaluations"]["outcome"][0]["values"].update(accuracy=1e999)),
}


@pytest.mark.parametrize("how", sorted(HOSTILE))
def test_a_broken_file_is_one_line_that_names_it(tmp_path: Path, how: str) -> None:
    store = DirectoryStore(tmp_path)
    publish(store, HERE, scored(4))
    data = HOSTILE[how](json.loads((tmp_path / EVALUATIONS).read_text()))
    (tmp_path / EVALUATIONS).write_text(json.dumps(data))
    with pytest.raises(PrunefrontError) as caught:
        start(tmp_path)
    assert EVALUATIONS in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values", [{"accuracy": 7.0}, {"accuracy": True}, {"macs": -1.0}, {"accuracy": "0.9"}, {}], ids=str
)
def test_figures_that_cannot_be_are_not_believed(tmp_path: Path, values: dict[str, Any]) -> None:
    store = DirectoryStore(tmp_path)
    publish(store, HERE, scored(4))
    data = json.loads((tmp_path / EVALUATIONS).read_text())
    if values:
        data["evaluations"]["outcome"][0]["values"].update(values)
    else:
        del data["evaluations"]["outcome"][0]["values"]["macs"]
    put_json(store, EVALUATIONS, data)
    try:
        found, _ = start(tmp_path)
    except PrunefrontError as error:
        assert EVALUATIONS in str(error)  # noqa: PT017 - either is an answer
    else:
        assert len(found.known) == 3


def test_nothing_there_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(PrunefrontError, match=r"there is no .*evaluations\.json; give the artifact URI"):
        read(str(tmp_path))
    (tmp_path / EVALUATIONS).write_text("{")
    with pytest.raises(PrunefrontError, match=EVALUATIONS):
        read(str(tmp_path))


@pytest.mark.parametrize(
    "searcher", ["random", "evolution", "particle_filter", "surrogate", "auto", "optuna_tpe"]
)
def test_what_is_known_is_neither_paid_for_nor_counted(tmp_path: Path, searcher: str) -> None:
    known = scored(40).rows
    seen: list[str] = []
    with Journal(tmp_path / "journal.jsonl") as journal:
        made = searchers[searcher](TOY.problem, seed=1)
        stage = Screening(made, planned, journal, lambda key, candidate, outcome: seen.append(key))
        stage.recall(known)
        pool = LocalPool(outcome_of(TOY, stage))
        stage.run(pool, 25)
    assert len(pool.scored) == stage.scored == 25
    assert not set(pool.scored) & {row.key for row in known}
    assert len(stage.outcomes) == 65 == len(stage.table("s").rows)
    assert seen == [*(row.key for row in known), *pool.scored]


STUDY = """
name = "{name}"
[model]
factory = "digits_cnn"
options = {{ width = 8 }}
weights = {weights}
[search]
candidates = 14
{more}
[training]
candidates = 1
epochs = 0
[measure]
pairs = 10
[cluster]
workers = 2
"""


@pytest.mark.slow
def test_a_second_study_begins_where_the_first_one_ended(tmp_path: Path) -> None:
    """Trained once, so that both have the same network; the first one's store is gone when the second goes on."""
    program = str(Path(sys.executable).with_name("prunefront"))

    def search(name: str, *arguments: str, code: int = 0, more: str = "", weights: str = '""') -> str:
        text = STUDY.format(name=name, more=more, weights=weights)
        if weights == '""':
            text = text.replace('weights = ""\n', "") + "[dense]\nepochs = 2\n"
        (tmp_path / f"{name}.toml").write_text(text)
        done = subprocess.run(
            [program, "search", f"{name}.toml", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def told(name: str) -> set[str]:
        lines = (tmp_path / "studies" / name / "journal.jsonl").read_text().splitlines()
        return {e["key"] for e in map(json.loads, lines) if e["event"] == "told"}

    search("first")
    weights = f'"{tmp_path}/studies/first/prepared/dense.safetensors"'
    first = tmp_path / "studies" / "first" / "artifacts"
    warm = f'warm_start = "{first}"'
    out = search("other", more=warm, weights=weights)
    assert "14 of its 14 scores count here" in out
    assert len(told("other")) == 14
    assert not told("other") & told("first")
    published = json.loads((tmp_path / "studies" / "other" / "artifacts" / EVALUATIONS).read_text())
    assert set(published["evaluations"]["key"]) == told("first") | told("other")

    # killed after its start and with the first study's store gone, it goes on by its journal
    journal = tmp_path / "studies" / "other" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if '"event": "told"' in line or '"told"' in line) + 3
    journal.write_text("".join(lines[:cut]))
    shutil.rmtree(first)
    before = told("other")
    search("other", "--resume", more=warm, weights=weights)
    assert told("other") > before
    assert len(told("other")) == 14

    out = search("none", more=warm, weights=weights, code=2)
    assert "there is no" in out
    assert EVALUATIONS in out
