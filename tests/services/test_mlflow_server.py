"""A real MLflow server receives a study, goes away in the middle of another and comes back."""

import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from prunefront.pipelines.tracking.tracker import MlflowTracker
from prunefront.search.outcomes.measurement import Failure, Measurement
from tests.services.conftest import require
from tests.services.mlflow_server import mlflow_server
from tests.services.ports import free_port
from tests.services.postgres import postgres

pytestmark = [pytest.mark.services, pytest.mark.slow]

STUDY = {"name": "digits", "seed": 7, "search": {"candidates": 4}}
GOOD = Measurement({"accuracy": 0.9, "macs": 1e6}, {"accuracy": 0.01})


def names(uri: str, run_id: str) -> dict[str, str]:
    client = MlflowClient(uri)
    found = client.search_runs(
        [client.get_run(run_id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"
    )
    assert len({run.info.run_name for run in found}) == len(found), "a run is there twice"
    return {run.info.run_name: run.info.status for run in found}


def test_a_database_that_is_restarted_behind_the_server_loses_nothing(tmp_path: Path) -> None:
    """The server answers meanwhile, that it cannot; and afterwards, for every connection that it still had."""
    require("pg_ctlcluster")
    with postgres() as database, mlflow_server(tmp_path, store=database.uri) as server:
        tracker = MlflowTracker(server.uri, "pruning", tmp_path, patience=60)
        run_id = tracker.start(STUDY)
        keys = [f"c{number}" for number in range(12)]
        for number, key in enumerate(keys):
            tracker.log(key, {"ratio/conv1": 0.5}, GOOD)
            tracker.log_progress(number, 0.1 * number, 1)
            if number == 4:
                database.stop()
            if number == 8:
                database.start()
            time.sleep(0.2)
        assert tracker.finish() == ()
        assert names(server.uri, run_id) == dict.fromkeys(keys, "FINISHED")
        client = MlflowClient(server.uri)
        steps = [metric.step for metric in client.get_metric_history(run_id, "front_size")]
        assert steps == list(range(12))


def test_a_server_receives_a_study_and_an_outage_loses_nothing(tmp_path: Path) -> None:
    port = free_port()
    front = tmp_path / "front.html"
    front.write_text("<p>the front</p>")
    with mlflow_server(tmp_path, port) as server:
        tracker = MlflowTracker(server.uri, "pruning", tmp_path, patience=60)
        run_id = tracker.start(STUDY)
        tracker.log("a1", {"ratio/conv1": 0.5}, GOOD)
        tracker.log("b2", {"ratio/conv1": 0.9}, Failure("crashed", "worker died"))
        tracker.log_front([{"key": "a1", "accuracy": 0.9}], [front])
        deadline = time.monotonic() + 30
        while names(server.uri, run_id) != {"a1": "FINISHED", "b2": "FAILED"} and time.monotonic() < deadline:
            time.sleep(0.2)
        before = names(server.uri, run_id)
    assert before == {"a1": "FINISHED", "b2": "FAILED"}

    started = time.perf_counter()
    tracker.log("c3", {"ratio/conv1": 0.1}, GOOD)
    tracker.log_progress(3, 0.5, 2)
    assert time.perf_counter() - started < 0.1, "the search waited for the server"
    deadline = time.monotonic() + 60
    while not tracker.errors and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "waiting for the store" in tracker.errors[0]

    with mlflow_server(tmp_path, port) as server:
        errors = tracker.finish()
        assert all("waiting for the store" in error for error in errors)
        assert names(server.uri, run_id) == {"a1": "FINISHED", "b2": "FAILED", "c3": "FINISHED"}
        client = MlflowClient(server.uri)
        run = client.get_run(run_id)
        assert (run.info.status, run.data.metrics["front_size"]) == ("FINISHED", 2)
        assert {file.path for file in client.list_artifacts(run_id)} == {
            "study.json",
            "front.json",
            "front_table.json",
            "front.html",
        }
        downloaded = client.download_artifacts(run_id, "front.html", str(tmp_path / "artifacts"))
        assert Path(downloaded).read_text() == "<p>the front</p>"
