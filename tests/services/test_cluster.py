"""cluster.yaml, pipelines/job.py and `prunefront submit` against a real sshd, by the steps of docs/cluster.md."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.services.conftest import require
from tests.services.host import PROGRAMS, Host, host

pytestmark = [pytest.mark.services, pytest.mark.slow]

CHECKOUT = Path(__file__).parents[2]
STUDY = """\
name = "{name}"
folder = "{folder}"
[model]
factory = "digits_cnn"
options = {{ width = 8 }}
[dense]
epochs = 2
[space]
criteria = ["l1"]
calibration_images = 128
[search]
searcher = "random"
candidates = 6
[training]
candidates = 1
epochs = 1
precision = "float32"
[measure]
pairs = 10
[artifacts]
pt2 = false
[cluster]
workers = 1
"""
MINE = """\
from torch import nn
from layers import layer

class Mine(nn.Sequential):
    def __init__(self, width):
        super().__init__(*layer(1, width), *layer(width, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
"""
LAYERS = """\
from torch import nn

def layer(before, after):
    return nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
"""


@dataclass(frozen=True)
class Cluster:
    """A cluster of one machine, and the folder that its user works in."""

    machine: Host
    project: Path
    environment: dict[str, str]

    def run(self, *line: str, seconds: float = 180) -> str:
        """What a command of this environment prints, run in the project. Fails the test if it fails."""
        done = self.outcome(*line, seconds=seconds)
        assert done.returncode == 0, f"{' '.join(line)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def outcome(self, *line: str, seconds: float = 180) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            line,
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )

    def front(self, study: Path) -> dict[str, dict[str, Any]]:
        """A study's front.json on that machine, by key; `study` is relative to the home folder there."""
        rows = json.loads((self.machine.home / study / "front.json").read_text())
        return {row["key"]: row for row in rows}


def copy_project(cluster_file: dict[str, Any], to: Path) -> None:
    """What cluster.yaml copies, as a clone has it, without the rest of this working tree."""
    for source in cluster_file["file_mounts"].values():
        path = CHECKOUT / source
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, to / source, symlinks=True, ignore=ignored)
        elif path.is_file():
            shutil.copy(path, to / source)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """`ray up` on a fresh machine, with nothing changed in cluster.yaml but its name, address and key.

    One line is added: the person's own module `search`, in which the network of study.toml is.
    """
    require(*PROGRAMS)
    if os.geteuid() != 0 and os.environ.get("PRUNEFRONT_REQUIRE_SERVICES") != "1":
        pytest.skip("needs root to make a machine out of namespaces")  # where required, the attempt fails
    folder = tmp_path_factory.mktemp("cluster")
    project, home = folder / "project", folder / "home"
    project.mkdir()
    home.mkdir()
    programs = Path(sys.executable).parent
    # The machine shares this virtual environment and takes the sources from what `ray up` copied there.
    bashrc = f'export PATH="{programs}:$PATH" PYTHONPATH="$HOME/prunefront-source/src"\n'
    with host(folder / "machine", bashrc=bashrc) as machine:
        cluster_file = yaml.safe_load((CHECKOUT / "cluster.yaml").read_text())
        copy_project(cluster_file, project)
        text = STUDY.format(name="submitted", folder="studies")
        (project / "study.toml").write_text(text.replace("digits_cnn", "search.mine:Mine"))
        (project / "own/search").mkdir(parents=True)
        (project / "own/search/mine.py").write_text(MINE.replace("layers", "search.layers"))
        (project / "own/search/layers.py").write_text(LAYERS)
        cluster_file["file_mounts"]["~/prunefront/search"] = "own/search"
        cluster_file["cluster_name"] = f"test-{os.getpid()}"
        cluster_file["provider"]["head_ip"] = machine.address
        cluster_file["auth"]["ssh_private_key"] = str(machine.private_key)
        (project / "cluster.yaml").write_text(yaml.safe_dump(cluster_file))

        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment = inherited | {
            "HOME": str(home),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "RAY_TMPDIR": str(folder),  # where the launcher notes the state of its clusters
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        running = Cluster(machine, project, environment)
        running.run("ray", "get-auth-token", "--generate")
        running.run("ray", "up", "-y", "cluster.yaml")
        yield running


def assert_front(rows: dict[str, dict[str, Any]]) -> None:
    assert "dense" in rows
    assert len(rows) >= 2
    for row in rows.values():
        assert 0 <= row["accuracy"] <= 1
        assert row["macs"] <= rows["dense"]["macs"]


def test_ray_submit_searches_on_the_cluster(cluster: Cluster) -> None:
    """The code is the copy that `ray up` made, links and all, and the network is in the person's own `search`."""
    found = cluster.machine.ssh("python -c 'import prunefront.search as s; print(s.__file__)'")
    assert found.strip() == f"{cluster.machine.home}/prunefront-source/src/prunefront/search/__init__.py"
    cluster.run("ray", "submit", "cluster.yaml", "pipelines/job.py", "study.toml")
    assert_front(cluster.front(Path("prunefront/studies/submitted")))


def test_ray_submit_of_a_study_that_is_not_there_says_what_to_do(cluster: Cluster) -> None:
    done = cluster.outcome("ray", "submit", "cluster.yaml", "pipelines/job.py", "other.toml")
    assert done.returncode != 0
    assert "ray rsync-up cluster.yaml other.toml" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.fixture(scope="module")
def jobs(cluster: Cluster) -> Iterator[Cluster]:
    """The same cluster, its jobs server reached through `ray dashboard`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = cluster.environment | {
        "RAY_AUTH_MODE": "token",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}",
    }
    tunnel = subprocess.Popen(
        ["ray", "dashboard", "cluster.yaml", "--port", str(port)],
        cwd=cluster.project,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for_port(port, seconds=60)
        yield Cluster(cluster.machine, cluster.project, environment)
    finally:
        os.killpg(tunnel.pid, 15)
        tunnel.wait()


def test_prunefront_submit_searches_on_the_cluster(jobs: Cluster) -> None:
    """With a network that only this side has."""
    text = STUDY.format(name="job", folder="studies")
    (jobs.project / "job.toml").write_text(text.replace("digits_cnn", "mine:Mine"))
    (jobs.project / "mine.py").write_text(MINE)
    (jobs.project / "layers.py").write_text(LAYERS)
    log = jobs.run("prunefront", "submit", "job.toml")
    assert "are sent: job.toml, mine.py, layers.py\n" in log
    assert "measuring" in log, "the log is followed"
    assert log.splitlines()[-1].endswith(": succeeded")
    assert_front(jobs.front(Path("prunefront/studies/job")))

    again = jobs.outcome("prunefront", "submit", "job.toml")
    assert again.returncode == 2
    assert "--resume continues it" in again.stdout


def test_a_job_that_is_stopped_ends_cleanly(jobs: Cluster) -> None:
    text = STUDY.format(name="stopped", folder="studies").replace("candidates = 6", "candidates = 5000")
    (jobs.project / "stopped.toml").write_text(text)
    jobs.run("prunefront", "submit", "stopped.toml", "--detach")
    server = jobs.environment["RAY_API_SERVER_ADDRESS"]
    journal = jobs.machine.home / "prunefront/studies/stopped/journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and '"told"' in journal.read_text()):
        assert time.monotonic() < deadline, jobs.outcome(
            "prunefront", "logs", "stopped", "--no-follow"
        ).stdout
        time.sleep(0.5)
    found = json.loads(jobs.run("prunefront", "status", "stopped.toml", "--jobs-server", server, "--json"))
    assert (found["study"], found["state"]) == ("stopped", "RUNNING")
    second = jobs.outcome("prunefront", "submit", "stopped.toml", "--resume")
    assert second.returncode == 2
    assert f"study 'stopped' is running there as job {found['id']}" in second.stdout

    assert "--resume continues" in jobs.run("prunefront", "stop", "stopped")
    assert jobs.outcome("prunefront", "logs", found["id"]).returncode == 143
    with closing(sqlite3.connect(journal.parents[1] / "mlflow.db")) as database:
        runs = "select status from runs where name = 'stopped'"
        assert database.execute(runs).fetchall() == [("KILLED",)]


def test_a_jobs_server_wants_the_token(jobs: Cluster, tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("0" * 64)
    for changes, said in (
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE=token is not set"),
        ({"HOME": str(tmp_path)}, "does not accept this token"),
    ):
        other = Cluster(jobs.machine, jobs.project, jobs.environment | changes)
        done = other.outcome("prunefront", "stop", "job")
        assert done.returncode == 2
        (line,) = done.stdout.splitlines()
        assert said in line


def wait_for_port(port: int, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, f"nothing listens on port {port} after {seconds} s"
        time.sleep(0.5)


def test_ray_down_leaves_no_ray_process(cluster: Cluster) -> None:
    """Last in the file: it stops what the others use."""
    assert "gcs_server" in cluster.machine.ssh("ps -eo args")
    cluster.run("ray", "down", "-y", "cluster.yaml")
    assert "gcs_server" not in cluster.machine.ssh("ps -eo args")
