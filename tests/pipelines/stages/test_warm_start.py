"""What one study scored is known to the next: through a store, by the journal on resume, and whoever lies in it."""

import copy
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from rich.console import Console
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.journal.evaluations import Evaluation, Evaluations
from prunefront.pipelines.journal.journal import Journal, write_json
from prunefront.pipelines.journal.layout import EVALUATIONS
from prunefront.pipelines.stages.scoring_loop import Screening
from prunefront.pipelines.stages.warm_start import (
    LONGEST_ORIGIN,
    MOST_SEEDS,
    Earlier,
    ScoreSections,
    Signature,
    WarmStart,
    check_network,
    conditions,
    from_event,
    network_digest,
    publish,
    read,
    to_event,
    warm_start,
)
from prunefront.pipelines.stores.folder import DirectoryStore
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.store import put_json
from prunefront.pipelines.study.run import run
from prunefront.pipelines.workers.workbench import arrays
from prunefront.pruners.trace.tracer import trace
from prunefront.search.outcomes.measurement import Failure, Measurement
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate
from tests.pipelines.stages.test_scoring_loop import Worker, outcome_of, planned
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
    assert "29 of its 30 scores are used" in said[0]
    assert from_event(json.loads(json.dumps(to_event(found)))) == found


def test_predictions_of_an_earlier_study_are_not_handed_on(tmp_path: Path) -> None:
    """They are of its latency table; what it measured counts all the same."""
    table = scored(5)
    guessed = []
    for row in table.rows:
        assert isinstance(row.outcome, Measurement)
        values = {**row.outcome.values, "predicted_latency_ratio": 0.5}
        guessed.append(replace(row, outcome=Measurement(values, {"predicted_latency_ratio": 0.1})))
    publish(DirectoryStore(tmp_path), HERE, replace(table, rows=tuple(guessed)))
    assert "predicted" not in (tmp_path / EVALUATIONS).read_text()
    assert start(tmp_path)[0].known == table.rows


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
    assert "scored again first" in said[0]
    assert from_event(json.loads(json.dumps(to_event(found)))) == found


def test_another_network_is_refused(tmp_path: Path) -> None:
    publish(DirectoryStore(tmp_path), replace(HERE, network="another"), scored(3))
    with pytest.raises(PrunefrontError, match="another dense network"):
        start(tmp_path)
    with pytest.raises(PrunefrontError, match="another dense network"):
        check_network([Earlier("here", HERE, ()), read(str(tmp_path))], HERE)


class Strided(nn.Module):
    """Equal weights, whatever the stride."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=stride, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.second(self.first(x).relu()).relu()
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


def test_a_network_is_its_weights_its_layers_and_its_input() -> None:
    torch.manual_seed(0)
    model = Strided(1).eval()
    weights, image = arrays(model), torch.zeros(2, 1, 8, 8)
    digest = network_digest(weights, trace(model, image))
    assert network_digest(arrays(copy.deepcopy(model)), trace(model, image)) == digest
    assert network_digest(weights, trace(model, image, frozen=["second"])) == digest
    strided = Strided(2).eval()
    strided.load_state_dict(model.state_dict())
    others = {
        network_digest(weights, trace(strided, image)),
        network_digest(weights, trace(model, torch.zeros(2, 1, 16, 16))),
        network_digest(weights | {"head.bias": weights["head.bias"] + 1}, trace(model, image)),
    }
    assert len(others | {digest}) == 4


IMAGES = {"training": "a", "validation": "b", "test": "c"}


def configured(**sections: Any) -> StudyConfig:
    given = {"name": "s", "model": {"factory": "digits_cnn"}} | sections
    return parse(given, source="test", base=Path())


def scored_by(**sections: Any) -> ScoreSections:
    return configured(**sections).part(ScoreSections)


@pytest.mark.parametrize(
    ("sections", "images", "precision", "alike"),
    [
        ({"name": "another", "cluster": {"workers": 3}}, {}, "float32", True),
        ({"search": {"searcher": "random", "candidates": 9}}, {}, "float32", True),
        ({"space": {"max_ratio": 0.5, "round_to": 8}}, {}, "float32", True),  # keys say what is realised
        ({"training": {"epochs": 9}}, {}, "float32", True),
        ({}, {"test": "d"}, "float32", True),
        ({}, {"validation": "d"}, "float32", False),
        ({}, {"training": "d"}, "float32", False),
        ({}, {}, "bfloat16", False),
        ({"seed": 1}, {}, "float32", False),
        ({"data": {"augment": "none"}}, {}, "float32", False),
        ({"scoring": {"validation_limit": 100}}, {}, "float32", False),
        ({"scoring": {"train_images": 256}}, {}, "float32", False),
        ({"space": {"calibration_images": 512}}, {}, "float32", False),
        ({"space": {"quantiser": "dorefa"}}, {}, "float32", False),
        ({"space": {"repair": "criterion"}}, {}, "float32", False),
    ],
    ids=str,
)
def test_scores_are_alike_where_nothing_that_they_depend_on_differs(
    sections: dict[str, Any], images: dict[str, str], precision: str, alike: bool
) -> None:
    here = conditions(scored_by(), IMAGES, "float32")
    assert (conditions(scored_by(**sections), IMAGES | images, precision) == here) == alike


def test_scores_of_earlier_versions_count_as_before() -> None:
    """The digests are those that were published before [search] was split and weights were fitted by moments."""
    before = {"space": {"repair": "criterion"}}
    earlier = before | {"search": {"validation_limit": 100, "train_images": 256}}
    assert conditions(scored_by(**before), IMAGES, "float32") == "5eca5cfab0fe49865213ab621569e83b"
    assert conditions(scored_by(**earlier), IMAGES, "float32") == "b870b7adaedc276b9165018b3c96dffb"


def test_what_cannot_be_read_is_said_before_fresh_deletes_anything(tmp_path: Path) -> None:
    config = configured(
        folder=tmp_path, start={"warm_start": [str(tmp_path / "gone"), str(tmp_path / "s" / "artifacts")]}
    )
    write_json(config.path / "study.json", config.to_json())
    with Journal(config.path / "journal.jsonl") as journal:
        journal.append("asked", candidate={})
    publish(DirectoryStore(config.path / "artifacts"), HERE, scored(3))
    before = {path: path.read_bytes() for path in config.path.rglob("*") if path.is_file()}
    with pytest.raises(PrunefrontError, match="gone/evaluations"):
        run(config, display=Display(Console(quiet=True)), fresh=True)
    assert {path: path.read_bytes() for path in before} == before


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
    "a ratio of 7": changed(lambda d: d["evaluations"]["candidates"]["choices"][0].update(ratio=7)),
    "an option with a line break": changed(
        lambda d: d["evaluations"]["candidates"]["choices"][0].update({"a\nb\x1b[2J": 1})
    ),
    "origins of numbers": changed(lambda d: d["evaluations"]["candidates"].update(origins=[7] * 4)),
    "origins that a terminal obeys": changed(
        lambda d: d["evaluations"]["candidates"].update(origins=["\x1b[2J"] * 4)
    ),
    "origins without end": changed(
        lambda d: d["evaluations"]["candidates"].update(origins=["x" * (LONGEST_ORIGIN + 1)] * 4)
    ),
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
    assert str(caught.value).isprintable()


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of everything within JSON."""
    if path:
        yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


PUBLISHED = {"format": 2, "network": HERE.network, "conditions": HERE.conditions}
PUBLISHED["evaluations"] = json.loads(json.dumps(scored(4).to_json()))
STRANGE = (None, True, -1, 10**400, 1e308, 0.5, "", "x\n\x1b[2J", [], ["x"], {}, {"\n": [1]}, 4 * ["dense"])


@given(place=st.sampled_from(list(places(PUBLISHED))), strange=st.sampled_from(STRANGE))
@settings(max_examples=300)
def test_whatever_is_changed_in_a_file_is_left_out_or_named(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], strange: Any
) -> None:
    """No row that is believed holds what could not have been scored, and no error is another than ours."""
    data = copy.deepcopy(PUBLISHED)
    inner: Any = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = strange
    folder = tmp_path_factory.getbasetemp() / "changed"
    folder.mkdir(exist_ok=True)
    (folder / EVALUATIONS).write_text(json.dumps(data))
    found, said, refusal = WarmStart(), [], ""
    try:
        found, said = start(folder)
    except PrunefrontError as error:
        refusal = str(error)
    if refusal:
        assert str(folder) in refusal
        assert refusal.isprintable()
        return
    assert len(said) == 1
    assert said[0].isprintable()
    for row in found.known:
        assert planned(row.candidate).key() == row.key
        assert TOY.problem.space.contains(row.candidate)
        assert isinstance(row.outcome, Measurement)
        assert 0 <= row.outcome["accuracy"] <= 1
        assert row.outcome.values.keys() == {"accuracy", "macs", "params", "size_bytes"}
        assert row.candidate.origin.isprintable()
    assert from_event(json.loads(json.dumps(to_event(found)))) == found


@pytest.mark.parametrize(
    "values",
    [{"accuracy": 7.0}, {"accuracy": True}, {"macs": -1.0}, {"accuracy": "0.9"}, {"beauty": 1.0}, {}],
    ids=str,
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
    whole = json.dumps({"format": 2})
    for text in ("{", whole[:-1], '{"format": NaN}', "[" * 100_000, "\0"):
        (tmp_path / EVALUATIONS).write_text(text)
        with pytest.raises(PrunefrontError, match=rf"^warm_start: .*{EVALUATIONS}.* is not valid JSON"):
            read(str(tmp_path))
    (tmp_path / EVALUATIONS).write_bytes(b" " * (65 << 20))
    with pytest.raises(PrunefrontError, match="it was not read"):
        read(str(tmp_path))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of one on moto's S3 server, which programs that are started find, too. Against Ceph:
    tests/services/test_study_services.py."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket="studies")
    client.close()
    yield "s3://studies"
    server.stop()


def test_through_a_bucket(bucket: str) -> None:
    table = scored(5)
    publish(open_store(f"{bucket}/first"), HERE, table)
    assert read(f"{bucket}/first/") == Earlier(f"{bucket}/first/", HERE, table.rows)
    with pytest.raises(PrunefrontError, match=r"there is no s3://studies/second/evaluations\.json"):
        read(f"{bucket}/second")
    with pytest.raises(PrunefrontError, match=r"warm_start: .*there is no bucket 'nowhere'"):
        read("s3://nowhere/first")


def test_a_store_that_does_not_answer(bucket: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(PrunefrontError, match=f"warm_start: .*no answer from {nobody}"):
        read(f"{bucket}/first", nobody)


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
        worker = Worker(outcome_of(TOY, stage))
        stage.run(worker.pool(), 25)
    assert len(worker.scored) == stage.scored == 25
    assert not set(worker.scored) & {row.key for row in known}
    assert len(stage.outcomes) == 65 == len(stage.table("s").rows)
    assert stage.measured.keys() == stage.outcomes.keys()  # all may be promoted
    assert seen == [*(row.key for row in known), *worker.scored]


STUDY = """
name = "{name}"
[model]
factory = "digits_cnn"
options = {{ width = 8 }}
{weights}
[dense]
epochs = 2
[search]
candidates = 14
{more}
[training]
candidates = 1
epochs = 0
precision = "float32"
[measure]
pairs = 10
[cluster]
workers = 2
[artifacts]
uri = "{artifacts}"
state = false
"""


@pytest.mark.long
def test_a_second_study_begins_where_the_first_one_ended(tmp_path: Path, bucket: str) -> None:
    """Trained once, so that both have the same network; the first one's store is gone when the second goes on."""
    program = str(Path(sys.executable).with_name("prunefront"))

    def search(name: str, *arguments: str, code: int = 0, more: str = "", weights: str = "") -> str:
        given = f'weights = "{tmp_path}/studies/first/prepared/{weights}.safetensors"' if weights else ""
        text = STUDY.format(name=name, more=more, weights=given, artifacts=f"{bucket}/{name}")
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
    warm = f'[start]\nwarm_start = "{bucket}/first"'
    out = search("other", more=warm, weights="dense")
    assert "14 of its 14 scores are used" in out
    assert len(told("other")) == 14
    assert not told("other") & told("first")
    published = read(f"{bucket}/other")
    assert {row.key for row in published.rows} == told("first") | told("other")

    # the same network before it was trained is another; that costs neither a statistic nor a score
    assert "another dense network" in search("untrained", code=2, more=warm, weights="initial")
    assert not (tmp_path / "studies" / "untrained" / "prepared" / "scores.safetensors").exists()
    assert not told("untrained")

    # killed after its start and with the first study's store gone, it goes on by its journal
    journal = tmp_path / "studies" / "other" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if json.loads(line)["event"] == "told") + 3
    journal.write_text("".join(lines[:cut]))
    client = boto3.session.Session().client("s3")
    client.delete_object(Bucket="studies", Key=f"first/{EVALUATIONS}")
    client.close()
    before = told("other")
    search("other", "--resume", more=warm, weights="dense")
    assert told("other") > before
    assert len(told("other")) == 14
    kept = 14 + len(before)  # what comes after depends on which worker answers first
    assert read(f"{bucket}/other").rows[:kept] == published.rows[:kept]
