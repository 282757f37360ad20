"""The MLflow server of examples/mlflow, started as its page says: who may record, and what others are told."""

import importlib.util
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from prunefront.pipelines.tracking.reach import TrackingError
from prunefront.pipelines.tracking.tracker import MlflowTracker
from prunefront.search.outcomes.measurement import Measurement
from tests.services.test_mlflow_server import free_port

pytestmark = [pytest.mark.services, pytest.mark.slow]

EXAMPLE = Path(__file__).parents[2] / "examples" / "mlflow"
ADMIN = "Hx7-admin-password"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if importlib.util.find_spec("flask_wtf") is None:
        reason = "needs pip install 'prunefront[mlflow-auth]'"
        if os.environ.get("PRUNEFRONT_REQUIRE_SERVICES") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    environment = os.environ | {"PYTHON": sys.executable, "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [EXAMPLE / "serve.sh", folder, str(port)],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urlopen(f"{uri}/health", timeout=2):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((folder / "log").read_text()[-2000:]) from None
                time.sleep(0.2)
        yield uri
        for name in ("users.db", "records.db", "session.key"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def user(uri: str, name: str) -> dict[str, str]:
    """A new user's variables, as add-user.py prints them."""
    environment = os.environ | {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": ADMIN}
    command = [sys.executable, "-W", "ignore", EXAMPLE / "add-user.py", uri, name]
    line = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return dict(part.split("=", 1) for part in line.removeprefix("export ").split())


def start(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> MlflowTracker:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracker = MlflowTracker(uri, "pruning", folder, patience=30)
    tracker.start({"name": "digits"})
    return tracker


def test_who_has_a_password_records_and_nobody_else(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, eve = user(server, "ada"), user(server, "eve")
    tracker = start(server, tmp_path, monkeypatch, ada)
    tracker.log("a1", {"ratio/conv1": 0.5}, Measurement({"accuracy": 0.9}))
    assert tracker.finish() == ()
    wrong = {**ada, "MLFLOW_TRACKING_PASSWORD": "Hx7-wrong-password"}
    for variables, says in (
        ({}, "asks for a name and password"),
        (wrong, "does not accept the name and password"),
        (eve, "this user may not record here"),
    ):
        with pytest.raises(TrackingError, match=says) as caught:
            start(server, tmp_path, monkeypatch, variables)
        assert str(caught.value).isprintable()
        assert not any(
            secret in str(caught.value) for n, secret in variables.items() if n.endswith("PASSWORD")
        )
