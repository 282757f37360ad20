"""Trackers: one contract for all, SQLite for real, and what happens when the store is away."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient

from prunefront.choice import GroupChoice
from prunefront.pipelines.cli.mlflow_ui import serve
from prunefront.pipelines.tracking.reach import TrackingError
from prunefront.pipelines.tracking.tracker import (
    MAX_KEY,
    MAX_VALUE,
    MemoryTracker,
    MlflowTracker,
    Tracker,
    candidate_params,
    flatten,
    with_bounds,
    without_password,
)
from prunefront.pipelines.tracking.writer import Writer
from prunefront.search.outcomes.measurement import Failure, Measurement, Outcome
from prunefront.search.space.candidate import Candidate

# MLflow 3.17 uses an option that SQLAlchemy 2.1 deprecates
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)

STUDY = {"name": "digits", "seed": 7, "search": {"candidates": 4, "options": {}}, "tracking": {"uri": None}}
GOOD = Measurement({"accuracy": 0.9, "macs": 1e6}, {"accuracy": 0.01})
BAD = Failure("diverged", "loss is nan in epoch 1")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty database that MLflow has migrated, so that not every test waits for the migrations."""
    folder = tmp_path_factory.mktemp("fresh")
    tracker = MlflowTracker(f"sqlite:///{folder}/mlflow.db", "other", folder)
    tracker.start({"name": "first"})
    tracker.finish()
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture
def uri(tmp_path: Path, fresh: bytes) -> str:
    (tmp_path / "the store").mkdir()
    (tmp_path / "the store" / "mlflow.db").write_bytes(fresh)
    return f"sqlite:///{tmp_path}/the store/mlflow.db"


def children(uri: str, parent: str) -> dict[tuple[str, str], tuple[str, Outcome, str | None]]:
    """Returns (key, stage) -> (status, outcome, artifact) of a store's runs; two runs for one name fail the test."""
    client = MlflowClient(uri)
    found: dict[tuple[str, str], tuple[str, Outcome, str | None]] = {}
    experiments = [e.experiment_id for e in client.search_experiments()]
    for run in client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent}'"):
        tags = run.data.tags
        name = (tags["prunefront.key"], tags["prunefront.stage"])
        assert name not in found, f"{name} is there twice"
        outcome: Outcome = Measurement(run.data.metrics)
        if "prunefront.failure" in tags:
            outcome = Failure(tags["prunefront.failure"], tags["prunefront.reason"])
        found[name] = (run.info.status, outcome, tags.get("prunefront.artifact"))
    return found


@pytest.mark.parametrize("kind", ["memory", "mlflow"])
def test_records_each_candidate_and_stage_once(kind: str, uri: str, tmp_path: Path) -> None:
    tracker: Tracker = MemoryTracker() if kind == "memory" else MlflowTracker(uri, "pruning", tmp_path)
    run_id = tracker.start(STUDY)
    tracker.log("a1", {"ratio/conv1": 0.5}, GOOD, "s3://bucket/a1")
    tracker.log("a1", {"ratio/conv1": 0.9}, BAD)
    tracker.log("a1", {"ratio/conv1": 0.5}, GOOD, stage="finetune")
    tracker.log("b2", {"ratio/conv1": 0.1}, BAD)
    tracker.log("c3", {"ratio/conv1": 0.2}, BAD)
    tracker.log(
        "c3", {"ratio/conv1": 0.2}, GOOD, "s3://bucket/c3"
    )  # its worker had died, and it was made after all
    assert tracker.finish() == ()
    if isinstance(tracker, MemoryTracker):
        got = {name: (record.outcome, record.artifact_uri) for name, record in tracker.records.items()}
        good: Outcome = GOOD
    else:
        stored = children(uri, run_id)
        assert {name: status for name, (status, *_) in stored.items()} == {
            ("a1", "score"): "FINISHED",
            ("a1", "finetune"): "FINISHED",
            ("b2", "score"): "FAILED",
            ("c3", "score"): "FINISHED",
        }
        got = {name: (outcome, artifact) for name, (_, outcome, artifact) in stored.items()}
        good = Measurement(with_bounds(GOOD))
    assert got == {
        ("a1", "score"): (good, "s3://bucket/a1"),
        ("a1", "finetune"): (good, None),
        ("b2", "score"): (BAD, None),
        ("c3", "score"): (good, "s3://bucket/c3"),
    }


def test_the_study_is_the_parent_run(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "front.png"
    picture.write_bytes(b"picture")
    tracker = MlflowTracker(uri, "pruning", tmp_path)
    run_id = tracker.start(STUDY)
    for step in range(3):
        tracker.log_progress(step, 0.1 * step, step)
    rows = [{"key": "dense", "accuracy": 0.9, "achieved": {"conv1": 0.5}}]
    tracker.log_values({"rung/share": 0.5, "rung/stopped": 3.0}, step=1)
    tracker.log_values({"rung/share": 1.0}, step=2)
    tracker.log_front(rows, [picture])
    tracker.log_front(rows, [picture])
    assert tracker.finish("KILLED") == ()
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("KILLED", "digits")
    assert run.data.params == {"name": "digits", "seed": "7", "search.candidates": "4"}
    assert run.data.tags["prunefront.seed"] == "7"
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "front_size")] == [
        (0, 0.0),
        (1, 1.0),
        (2, 2.0),
    ]
    shares = client.get_metric_history(run_id, "rung/share")
    assert {m.step: m.value for m in shares} == {1: 0.5, 2: 1.0}
    names = {file.path for file in client.list_artifacts(run_id)}
    assert names == {"study.json", "front.json", "front_table.json", "front.png"}
    folder = tmp_path / "the store" / "mlartifacts" / run_id / "artifacts"
    assert json.loads((folder / "front.json").read_text()) == rows
    assert json.loads((folder / "front_table.json").read_text()) == {
        "columns": ["key", "accuracy"],
        "data": [["dense", 0.9]],
    }
    assert not (tmp_path / "mlruns").exists()


def test_a_resumed_study_goes_on_in_its_run(uri: str, tmp_path: Path) -> None:
    first = MlflowTracker(uri, "pruning", tmp_path)
    run_id = first.start(STUDY)
    first.log("a1", {"ratio/conv1": 0.5}, GOOD)
    first.finish("KILLED")
    client = MlflowClient(uri)
    cut_off = client.create_run(
        client.get_run(run_id).info.experiment_id,
        tags={"mlflow.parentRunId": run_id, "prunefront.key": "c3", "prunefront.stage": "score"},
    )

    second = MlflowTracker(uri, "pruning", tmp_path)
    more = {**STUDY, "search": {"candidates": 9}, "cluster": {"workers": 2}}
    assert second.start(more, resume_run_id=run_id) == run_id
    assert client.get_run(run_id).info.status == "RUNNING"
    for key in ("a1", "b2", "c3"):
        second.log(key, {"ratio/conv1": 0.5}, GOOD)
    assert second.finish() == ()
    assert {name: status for name, (status, *_) in children(uri, run_id).items()} == {
        (key, "score"): "FINISHED" for key in ("a1", "b2", "c3")
    }
    assert client.get_run(cut_off.info.run_id).data.metrics["accuracy"] == 0.9
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params["search.candidates"], run.data.params["cluster.workers"]) == ("4", "2")


def test_a_lost_run_is_replaced_and_told(uri: str, tmp_path: Path) -> None:
    tracker = MlflowTracker(uri, "pruning", tmp_path)
    assert tracker.start(STUDY, resume_run_id="0" * 32) != "0" * 32
    (error,) = tracker.finish()
    assert "is gone" in error


def test_many_groups_exceed_one_request(uri: str, tmp_path: Path) -> None:
    wide = {f"ratio/layer{i}": 0.5 for i in range(250)}
    tracker = MlflowTracker(uri, "pruning", tmp_path)
    run_id = tracker.start(STUDY)
    tracker.log("a1", wide, GOOD)
    assert tracker.finish() == ()
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_run(run_id).info.experiment_id], "tags.`prunefront.key` = 'a1'")
    assert len(run.data.params) == 250


def test_a_write_that_is_refused_is_told_and_the_rest_goes_on(uri: str, tmp_path: Path) -> None:
    tracker = MlflowTracker(uri, "pruning", tmp_path)
    run_id = tracker.start(STUDY)
    tracker.log_front([], [tmp_path / "not there.png"])
    tracker.log("a1", {}, GOOD)
    (error,) = tracker.finish()
    assert error.startswith("the front:")
    assert "not there.png" in error
    assert ("a1", "score") in children(uri, run_id)


def test_an_outage_delays_writes_and_loses_none() -> None:
    back, written = threading.Event(), []

    def write(number: int) -> None:
        if not back.is_set():
            raise ConnectionError("refused")
        written.append(number)

    def recover() -> None:
        if not back.is_set():
            raise ConnectionError("refused")

    writer = Writer(recover, patience=10)
    writer.start()
    for number in range(5):
        writer.put(f"write {number}", lambda number=number: write(number))
    time.sleep(0.2)
    assert written == []
    back.set()
    writer.close()
    assert written == [0, 1, 2, 3, 4]
    assert (writer.errors, writer.outages) == ([], 1)


def test_nothing_is_asked_of_a_store_that_does_not_answer() -> None:
    """One that is only slow would do later whatever it was asked each time, and make a run for each."""
    asked: list[int] = []
    silent = [True, True, True]

    def write() -> None:
        asked.append(1)
        if silent:
            raise ConnectionError("timed out")

    def recover() -> None:
        if silent and silent.pop():
            raise ConnectionError("timed out")

    writer = Writer(recover, patience=10)
    writer.start()
    writer.put("write", write)
    writer.close()
    assert (len(asked), writer.errors) == (2, [])


def test_a_store_that_refuses_a_few_times_gets_it_all_the_same() -> None:
    """After its database was restarted: MLflow answers a question, and the next write meets a dead connection."""
    refused = [True] * (Writer.tries - 1)

    def write() -> None:
        if refused and refused.pop():
            raise OSError("the connection was closed")

    writer = Writer(lambda: None, patience=10)
    writer.start()
    writer.put("write", write)
    writer.close()
    assert writer.errors == []


def test_a_slow_store_is_waited_for_as_long_as_it_takes_what_it_gets() -> None:
    written: list[int] = []

    def write(number: int) -> None:
        time.sleep(0.1)
        written.append(number)

    writer = Writer(lambda: None, patience=0.3)
    writer.start()
    for number in range(10):
        writer.put(f"write {number}", lambda number=number: write(number))
    writer.close()
    assert (written, writer.errors) == (list(range(10)), [])


def test_a_full_queue_does_not_delay_the_end() -> None:
    free = threading.Event()
    writer = Writer(lambda: None, patience=60, size=2)
    writer.start()
    writer.put("under way", free.wait)
    while writer.waiting:
        time.sleep(0.01)
    for number in range(2):
        writer.put(f"write {number}", free.wait)
    threading.Timer(0.3, free.set).start()
    started = time.monotonic()
    writer.close()
    assert time.monotonic() - started < 10
    assert writer.errors == []


def test_of_runs_that_a_server_made_twice_one_stays(tmp_path: Path, fresh: bytes) -> None:
    (tmp_path / "mlflow.db").write_bytes(fresh)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MlflowTracker(uri, "pruning", tmp_path)
    run_id = tracker.start(STUDY)
    tracker.log("a1", {"ratio/conv1": 0.5}, GOOD)
    tracker.finish()
    client = MlflowClient(uri)
    (first,) = client.search_runs(
        [client.get_run(run_id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"
    )
    for _ in range(2):
        client.create_run(first.info.experiment_id, run_name="a1", tags=first.data.tags)
    again = MlflowTracker(uri, "pruning", tmp_path)
    again.start(STUDY, resume_run_id=run_id)
    again.log("a1", {"ratio/conv1": 0.5}, GOOD)
    assert again.finish() == ()
    assert children(uri, run_id) == {("a1", "score"): ("FINISHED", Measurement(with_bounds(GOOD)), None)}


def test_a_store_that_stays_away_is_given_up() -> None:
    def away() -> None:
        raise ConnectionError("refused")

    writer = Writer(away, patience=0.5, size=3)
    writer.start()
    for number in range(9):
        writer.put(f"write {number}", away)
    started = time.monotonic()
    writer.close()
    assert time.monotonic() - started < 4
    told = " ".join(writer.errors)
    assert all(f"write {number}" in told or number in (2,) for number in (0, 1, 3, 8))
    assert "waiting already" in told
    assert "given up" in told


def deleted_experiment(tmp_path: Path, fresh: bytes) -> str:
    (tmp_path / "mlflow.db").write_bytes(fresh)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("pruning"))
    return uri


def not_a_database(tmp_path: Path, fresh: bytes) -> str:
    (tmp_path / "notes.db").write_text("these are no pages of a database, " * 50)
    return f"sqlite:///{tmp_path}/notes.db"


def nobody_listens(tmp_path: Path, fresh: bytes) -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("store", "says"),
    [
        (deleted_experiment, "mlflow experiments restore"),
        (not_a_database, "not a database"),
        (nobody_listens, "no MLflow server answers"),
        (lambda *_: "ftp://somewhere", "is not a tracking store"),
        (lambda *_: "mlruns", "is not a tracking store"),
        (lambda *_: "http://", "no MLflow server answers"),
        (lambda *_: "postgresql://me:secret@127.0.0.1:9/x", "cannot be opened"),
    ],
)
def test_an_unusable_store_is_refused_at_once(
    store: Callable[[Path, bytes], str], says: str, tmp_path: Path, fresh: bytes
) -> None:
    uri = store(tmp_path, fresh)
    started = time.monotonic()
    with pytest.raises(TrackingError, match=says) as caught:
        MlflowTracker(uri, "pruning", tmp_path).start(STUDY)
    assert time.monotonic() - started < 8
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_a_fresh_database_is_made_without_a_word(tmp_path: Path) -> None:
    """Its own process, since log levels are the process's."""
    code = (
        "import sys, pathlib, prunefront.pipelines.tracking.tracker as t\n"
        "tracker = t.MlflowTracker(sys.argv[1], 'pruning', pathlib.Path('.'))\n"
        "tracker.start({'name': 'digits'}); print(tracker.finish())"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{tmp_path}/new/mlflow.db"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("()\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_importing_tracking_does_not_load_mlflow() -> None:
    code = (
        "import sys, prunefront.pipelines.tracking.tracker\n"
        "print({'mlflow', 'sqlalchemy', 'torch'} & set(sys.modules))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_shared_choices_are_one_param() -> None:
    choices = {"conv1": GroupChoice("l1", 0.25), "conv2": GroupChoice("taylor", 0.5)}
    assert candidate_params(Candidate(choices, "random")) == {
        "origin": "random",
        "criterion/conv1": "l1",
        "criterion/conv2": "taylor",
        "granularity": "channel",
        "bits": 32,
        "ratio/conv1": 0.25,
        "ratio/conv2": 0.5,
    }


@given(
    st.recursive(st.none() | st.text() | st.floats(), lambda s: st.dictionaries(st.text(), s), max_leaves=9)
)
def test_any_config_fits_the_limits(value: object) -> None:
    for key, text in flatten({"study": value}).items():
        assert len(key) <= MAX_KEY
        assert len(text) <= MAX_VALUE
        assert all(c.isalnum() or c in "_-./: " for c in key)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_the_ui_is_served_to_this_machine_only(tmp_path: Path, host: str) -> None:
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(TrackingError, match="ssh -L"):
        serve(f"sqlite:///{tmp_path}/mlflow.db", host=host)


@pytest.mark.parametrize("uri", ["postgresql+psycopg2://me:s3cret@db/x", "https://me:s3cret@host:5000/p"])
def test_passwords_are_not_recorded(uri: str) -> None:
    assert "s3cret" not in without_password(json.dumps({"tracking": {"uri": uri}}))
    assert without_password("s3://bucket/a@b:c") == "s3://bucket/a@b:c"
