"""A whole study whose networks go to a real S3 server (Ceph RGW), which is away for a while, and whose record goes to a
real MLflow server."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from prunefront.pipelines.artifacts.fetch import read_stored_front
from prunefront.pipelines.fronts.row import front_objectives
from prunefront.pipelines.journal.journal import read_events
from prunefront.pipelines.recovery.owner import read_owner
from prunefront.pipelines.recovery.restore import fetch_events
from prunefront.pipelines.recovery.state_store import StateStore
from prunefront.pipelines.stages.warm_start import read
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.spool import Spool
from prunefront.pipelines.stores.store import ArtifactStore
from prunefront.search.outcomes.front import ParetoFront
from prunefront.search.outcomes.measurement import ACCURACY, Measurement
from tests.commands import command
from tests.services.ceph import S3Server
from tests.services.mlflow_server import mlflow_server
from tests.services.s3_proxy import Proxy, proxied

pytestmark = [pytest.mark.services, pytest.mark.slow]

PROGRAM = str(Path(sys.executable).with_name("prunefront"))
CANDIDATES = 8
STUDY = """\
name = "remote"
[model]
factory = "digits_cnn"
options = {{ width = 8 }}
[dense]
epochs = 2
[search]
searcher = "random"
candidates = {candidates}
[training]
candidates = 2
epochs = 1
precision = "float32"
[measure]
pairs = 10
[cluster]
workers = 1
[artifacts]
pt2 = false
uri = "{artifacts}"
endpoint_url = "{endpoint}"
[tracking]
uri = "{tracking}"
experiment = "services"
"""


@dataclass(frozen=True)
class Searched:
    """A study that was searched in `folder`, and where its results went."""

    folder: Path
    artifacts: str
    tracking: str
    s3: S3Server
    rows: list[dict[str, Any]]
    said: str


def environment(s3: S3Server, **changed: str) -> dict[str, str]:
    """Credentials only: the study file, or an option, names the server."""
    keys = {k: v for k, v in s3.environment().items() if k != "AWS_ENDPOINT_URL"}
    return {k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | keys | changed


def outcome(
    *arguments: str, folder: Path, env: dict[str, str], seconds: float = 240
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [PROGRAM, *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def prunefront(*arguments: str, folder: Path, env: dict[str, str]) -> str:
    """Runs the program and returns its stdout: a search as a person would, what only reads in this process."""
    search = arguments[0] == "search"
    done: Any = (outcome if search else command)(*arguments, folder=folder, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bucket(ceph_s3: S3Server) -> str:
    name = f"studies-{uuid.uuid4()}"
    ceph_s3.make_bucket(name)
    return name


@pytest.fixture(scope="module")
def searched(ceph_s3: S3Server, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    folder, server = tmp_path_factory.mktemp("searched"), tmp_path_factory.mktemp("mlflow")
    with mlflow_server(server) as running, proxied(ceph_s3.endpoint) as proxy:
        artifacts = f"s3://{bucket}/studies/remote"
        (folder / "s.toml").write_text(
            STUDY.format(
                candidates=CANDIDATES, artifacts=artifacts, endpoint=proxy.endpoint, tracking=running.uri
            )
        )
        env = environment(ceph_s3)
        said = searched_through_an_outage(folder, env, proxy)
        rows = json.loads(prunefront("front", "remote", "--json", folder=folder, env=env))
        yield Searched(folder, artifacts, running.uri, ceph_s3, rows, said)


def searched_through_an_outage(folder: Path, env: dict[str, str], proxy: Proxy) -> str:
    """What a search says whose store is busy, then gone, from before the first network is published until some wait."""
    study = folder / "studies/remote"
    with (folder / "said.txt").open("w") as out:
        search = subprocess.Popen([PROGRAM, "search", "s.toml"], cwd=folder, env=env, stdout=out, stderr=out)
    try:
        happened(lambda: any(e["event"] == "promoted" for e in read_events(study / "journal.jsonl")), search)
        proxy.fault = "503"
        happened(lambda: Spool(study / "spool").entries(), search)
        proxy.fault = "down"
        happened(lambda: any(e["event"] == "trained" for e in read_events(study / "journal.jsonl")), search)
        happened(lambda: "the search continues" in (folder / "said.txt").read_text(), search)
        proxy.fault = ""
        code = search.wait(timeout=240)
    finally:
        search.kill()
        search.wait()
    said = (folder / "said.txt").read_text()
    assert code == 0, said
    return said


def happened(met: Callable[[], object], search: "subprocess.Popen[bytes]") -> None:
    """Waits for it; fails where the search ends before."""
    while not met():
        assert search.poll() is None, "the search ended too early"
        time.sleep(0.05)


def test_every_point_of_the_front_lies_in_the_bucket(searched: Searched) -> None:
    assert len(searched.rows) >= 2
    for row in searched.rows:
        assert row["artifact"].startswith(f"{searched.artifacts}/{row['key']}-")
    assert not (searched.folder / "studies/remote/artifacts").exists()


def test_the_outage_is_said_and_nothing_is_left_waiting(searched: Searched) -> None:
    assert "the search continues, results wait in" in searched.said
    assert "answers again; waiting objects that were sent" in searched.said
    assert not Spool(searched.folder / "studies/remote/spool").entries()
    events = read_events(searched.folder / "studies/remote/journal.jsonl")
    trained = [e for e in events if e["event"] == "trained"]
    assert len({e["name"] for e in trained}) == len(trained) == 4
    assert not any("failure" in e["outcome"] for e in trained)


def test_a_point_is_fetched_and_verified_on_another_machine(searched: Searched, tmp_path: Path) -> None:
    """Nothing is there but the address of the bucket: neither study file nor study."""
    bound = sorted(row["macs"] for row in searched.rows)[-2]
    expected = max(row["accuracy"] for row in searched.rows if row["macs"] <= bound)
    env = environment(searched.s3)
    wanted = ("--under", f"macs={bound}", "--best", "accuracy", "-o", "best/")
    prunefront(
        "fetch", searched.artifacts, *wanted, "--endpoint-url", searched.s3.endpoint, folder=tmp_path, env=env
    )
    assert json.loads((tmp_path / "best/measurement.json").read_text())["accuracy"] == expected
    found = json.loads(prunefront("verify", "best/", "--json", folder=tmp_path, env=env))
    assert found["ok"]
    assert {"accuracy (onnx)", "accuracy (torch)", "outputs (onnx)"} <= {c["name"] for c in found["checks"]}


def test_what_was_scored_lies_there_for_the_next_study(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(searched.s3).items():
        monkeypatch.setenv(name, value)
    rows = read(searched.artifacts, searched.s3.endpoint).rows
    assert len({row.key for row in rows}) == len(rows) == CANDIDATES
    assert all(isinstance(row.outcome, Measurement) for row in rows)


def test_the_study_file_is_address_enough(searched: Searched) -> None:
    """And `dense` means that row, though another one is called `dense-finetuned`."""
    env = environment(searched.s3)
    prunefront("fetch", "s.toml", "--key", "dense", "-o", "dense/", folder=searched.folder, env=env)
    assert json.loads((searched.folder / "dense/plan.json").read_text())["model"]["options"]["width"] == 8


def test_the_mlflow_server_holds_the_study_and_its_candidates(searched: Searched, tmp_path: Path) -> None:
    client = MlflowClient(searched.tracking)
    experiment = client.get_experiment_by_name("services")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (r for r in runs if "mlflow.parentRunId" not in r.data.tags)
    assert (parent.info.run_name, parent.info.status) == ("remote", "FINISHED")
    stages: dict[str, list[Any]] = {"score": [], "finetune": []}
    for run in runs:
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id:
            stages[run.data.tags["prunefront.stage"]].append(run)
    assert len(stages["score"]) == CANDIDATES
    assert len(stages["finetune"]) == 4  # two candidates, the dense network, and that fine-tuned as well
    for run in stages["finetune"]:
        assert run.data.tags["prunefront.artifact"].startswith(f"{searched.artifacts}/")
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "front.json", "study.json"} <= files
    front = Path(client.download_artifacts(parent.info.run_id, "front.json", str(tmp_path)))
    assert json.loads(front.read_text()) == searched.rows


def test_a_search_goes_on_where_its_folder_never_was(
    searched: Searched, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, its folder deleted: another machine takes over from the store alone, and nothing is scored twice."""
    artifacts, env = f"s3://{bucket}/studies/moved", environment(searched.s3)
    text = STUDY.format(
        artifacts=artifacts, endpoint=searched.s3.endpoint, tracking=searched.tracking, candidates=CANDIDATES
    ).replace('"remote"', '"moved"')
    text = text.replace("candidates = 2\nepochs = 1", "candidates = 1\nepochs = 0")
    for machine in ("first", "second"):
        (tmp_path / machine).mkdir()
        (tmp_path / machine / "s.toml").write_text(text)
    for name, value in env.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    store = open_store(artifacts, searched.s3.endpoint)
    driver = subprocess.Popen(
        [PROGRAM, "search", "s.toml"],
        cwd=tmp_path / "first",
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        place = _scored_in_store(store, driver, at_least=3)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    shutil.rmtree(tmp_path / "first" / "studies")
    there = tmp_path / "second"
    refused = outcome("search", "s.toml", "--resume", folder=there, env=env)
    assert refused.returncode == 2
    assert "is running elsewhere" in refused.stderr
    store.delete(place.heartbeat_key)  # a minute later
    snapshot = place.latest().snapshot
    assert snapshot is not None
    known = fetch_events(place, snapshot)
    out = prunefront("search", "s.toml", "--resume", folder=there, env=env)
    assert f"the study's folder was updated to its state in {place.uri}: run 1 on " in out
    events = read_events(there / "studies/moved/journal.jsonl")
    assert events[: len(known)] == known
    told = [e["key"] for e in events if e["event"] == "told"]
    assert len(told) == len(set(told)) == CANDIDATES
    front = ParetoFront(front_objectives(ACCURACY))
    for event in events:
        if event["event"] == "trained":
            front.add(event["name"], Measurement.from_json(event["outcome"]))
    rows = json.loads((there / "studies/moved/front.json").read_text())
    assert {row["key"] for row in rows} == {*front.members, "dense"}
    assert read_stored_front(store) == rows

    # what was published before the test figures came goes, and the front is as good as before
    look = ("gc", artifacts, "--endpoint-url", searched.s3.endpoint, "--older-than", "0s", "--json")
    found = json.loads(prunefront(*look, folder=tmp_path, env=env))
    superseded = {i["what"] for i in found["items"] if i["kind"] == "superseded"}
    firsts = {e["name"]: e["artifact"] for e in events if e["event"] == "trained"}
    assert superseded == {firsts[row["key"]] for row in rows}
    assert json.loads(prunefront(*look, "--delete", folder=tmp_path, env=env))["deleted"]
    assert json.loads(prunefront(*look, folder=tmp_path, env=env))["items"] == []
    prunefront("fetch", "s.toml", "--key", "dense", "-o", "dense/", folder=there, env=env)


def _scored_in_store(store: ArtifactStore, driver: "subprocess.Popen[bytes]", *, at_least: int) -> StateStore:
    """Where a running search keeps its state, once so many were scored in what is there."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert driver.poll() is None, "the search ended before it could be killed"
        if (owner := read_owner(store)) is not None:
            place = StateStore(store, owner.id)
            stored = place.latest()
            events = [] if stored.snapshot is None else fetch_events(place, stored.snapshot)
            if sum(e["event"] == "told" for e in events) >= at_least:
                return place
        time.sleep(0.2)
    raise AssertionError("nothing was scored in time")


@pytest.mark.parametrize(
    ("changed", "there", "says"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, True, "does not accept the credentials"),
        ({}, False, "there is no bucket 'no-such-bucket'"),
    ],
    ids=["wrong secret", "no bucket"],
)
def test_a_bucket_that_cannot_be_used_ends_a_search_before_anything_is_spent(
    searched: Searched, changed: dict[str, str], there: bool, says: str
) -> None:
    """Also before --fresh deletes what was found earlier."""
    text = (searched.folder / "s.toml").read_text()
    if not there:
        text = text.replace(searched.artifacts, "s3://no-such-bucket/p")
    (searched.folder / "wrong.toml").write_text(text)
    done = outcome(
        "search",
        "wrong.toml",
        "--fresh",
        folder=searched.folder,
        env=environment(searched.s3, **changed),
        seconds=110,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert says in line
    assert json.loads((searched.folder / "studies/remote/front.json").read_text()) == searched.rows
