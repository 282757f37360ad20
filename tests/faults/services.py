"""Faults of what a study is recorded in: the MLflow server, and the PostgreSQL behind it."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from mlflow.tracking import MlflowClient

from tests.faults.study import CANDIDATES, Events, Fault, Study
from tests.services.mlflow_server import MlflowServer, mlflow_server
from tests.services.postgres import Postgres, postgres, programs

AWAY_SECONDS = 60.0


def recorded(study: Study) -> tuple[MlflowServer, Postgres]:
    """A study that is recorded in an MLflow server with PostgreSQL behind it."""
    database = study.stack.enter_context(postgres())
    folder = study.folder / "mlflow"
    folder.mkdir()
    server = study.stack.enter_context(mlflow_server(folder, store=database.uri))
    study.more = f'[tracking]\nuri = "{server.uri}"\nexperiment = "faults"\n'
    study.records = lambda events: compared(events, server.uri)
    return server, database


def compared(events: Events, uri: str) -> tuple[int, int]:
    """How many records of a journal MLflow lacks, has otherwise or out of order, and how many it has more than once."""
    client = MlflowClient(uri)
    (parent,) = {event["run"] for event in events if event["event"] == "tracking"}
    experiment = client.get_run(parent).info.experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=1000)
    there = {(run.data.tags["prunefront.key"], run.data.tags["prunefront.stage"]): run for run in runs}
    count = Counter((run.data.tags["prunefront.key"], run.data.tags["prunefront.stage"]) for run in runs)
    told = {(e["key"], "score"): e["outcome"] for e in events if e["event"] == "told"}
    told |= {(e["name"], "finetune"): e["outcome"] for e in events if e["event"] in ("trained", "stopped")}
    lost = sum(not (name in there and agrees(there[name], outcome)) for name, outcome in told.items())
    # the writer hands them over in the journal's order, and the ends of runs keep it
    order = [there[name].info.end_time for name in told if name in there]
    lost += sum(a > b for a, b in pairwise(order))
    steps = [metric.step for metric in client.get_metric_history(parent, "front_size")]
    # until the dense network is scored there is nothing to measure a front by
    scored = [name for name, stage in told if stage == "score"]
    lost += len(set(range(scored.index("dense") + 1, len(scored) + 1)) - set(steps))
    return lost, sum(count.values()) - len(count)


def agrees(run: Any, outcome: dict[str, Any]) -> bool:
    """Whether a run ended as its outcome, with its values."""
    if "failure" in outcome:
        return bool(run.info.status == "FAILED")
    values = outcome["values"]
    return run.info.status == "FINISHED" and all(run.data.metrics.get(k) == v for k, v in values.items())


def away(leave: Callable[[MlflowServer], None], come_back: Callable[[MlflowServer], None]) -> Any:
    """A fault: the server is not there for a minute, in the middle of a study that goes on meanwhile."""

    def strikes(study: Study, n: int, rng: random.Random) -> None:
        server, _ = recorded(study)
        study.start()
        if not study.wait_for("told", 2 + rng.randrange(CANDIDATES // 4)):
            return
        before, since = len(study.events()), time.monotonic()
        leave(server)
        study.strike()
        study.wait_until_it_goes_on(since, before)
        time.sleep(AWAY_SECONDS)
        come_back(server)
        assert study.search is not None
        study.search.wait()
        if (
            "--resume makes up for" in study.said
        ):  # it came back too late, and this is what a person is told to do
            study.start()

    return strikes


def database_restarted(study: Study, n: int, rng: random.Random) -> None:
    """PostgreSQL is stopped as by a crash, and started again some seconds later."""
    _, database = recorded(study)
    study.start()
    for i in range(n):
        if not study.wait_for("told", 2 + i * (CANDIDATES - 4) // n):
            return
        before, since = len(study.events()), time.monotonic()
        database.stop()
        study.strike()
        study.wait_until_it_goes_on(since, before)
        time.sleep(4 * rng.random())
        database.start()


def driver_dies_meanwhile(study: Study, n: int, rng: random.Random) -> None:
    """The server is away, and the driver is killed with all that it has yet to record; then both come back."""
    server, _ = recorded(study)
    study.start()
    for kind, count in (("told", 3), ("trained", 1))[:n]:
        if not study.wait_for(kind, count):
            return
        server.kill()
        if not study.wait_for(kind, count + 2):
            return
        assert study.search is not None
        study.search.kill()
        study.search.wait()
        study.strike()
        server.start()
        study.go_on()


def needs_postgres() -> str:
    return "" if programs() else "needs PostgreSQL (scripts/install-test-services.sh)"


FAULTS = {
    "mlflow-silent": Fault(
        "MLflow hangs for 60 s (SIGSTOP)",
        away(lambda s: s.signal(signal.SIGSTOP), lambda s: s.signal(signal.SIGCONT)),
        2,
        needs_postgres,
    ),
    "mlflow-dead": Fault(
        "MLflow away for 60 s (SIGKILL)", away(MlflowServer.kill, MlflowServer.start), 2, needs_postgres
    ),
    "mlflow-driver": Fault("SIGKILL of the driver, MLflow away", driver_dies_meanwhile, 2, needs_postgres),
    "postgres": Fault("PostgreSQL behind MLflow restarted", database_restarted, 3, needs_postgres),
}
