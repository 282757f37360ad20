"""`prunefront search --address`: a study driven from outside a cluster, and clusters that are not there."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster.connect import ANSWER_SECONDS, connect
from prunefront.pipelines.config.sections import ClusterSection
from tests.services.conftest import require
from tests.services.host import PROGRAMS, Host, host
from tests.services.ports import free_port

pytestmark = [pytest.mark.services, pytest.mark.slow]

CHECKOUT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
STUDY = """\
name = "outside"
[model]
factory = "mine:Mine"
[dense]
epochs = 1
[space]
criteria = ["l1"]
calibration_images = 128
[search]
searcher = "random"
candidates = 6
[training]
candidates = 2
epochs = 1
precision = "float32"
[measure]
pairs = 10
[artifacts]
pt2 = false
[cluster]
workers = 1
"""
# a network that the cluster does not have: it comes with the driver's working folder
MINE = """\
from torch import nn

class Mine(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
        )
"""


@dataclass(frozen=True)
class Head:
    """A running Ray head on another machine. environment: of a user who has its token."""

    machine: Host
    environment: dict[str, str]

    @property
    def address(self) -> str:
        return f"ray://{self.machine.address}:10001"


def needs_namespaces() -> None:
    require(*PROGRAMS)
    if os.geteuid() != 0 and os.environ.get("PRUNEFRONT_REQUIRE_SERVICES") != "1":
        pytest.skip("needs root to make a machine out of namespaces")  # where required, the attempt fails


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Ray on another machine, with a token, as cluster.yaml starts it."""
    needs_namespaces()
    folder = tmp_path_factory.mktemp("client")
    home = folder / "home"
    home.mkdir()
    bashrc = f'export PATH="{BIN}:$PATH" PYTHONPATH="{CHECKOUT}" RAY_AUTH_MODE=token\n'
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    subprocess.run(
        [BIN / "ray", "get-auth-token", "--generate"], env=environment, check=True, capture_output=True
    )
    with host(folder / "machine", bashrc=bashrc) as machine:
        shutil.copytree(home / ".ray", machine.home / ".ray")
        machine.ssh("ray start --head --num-cpus=2 --include-dashboard=false --disable-usage-stats")
        yield Head(machine, environment)


def search(
    folder: Path, address: str, environment: dict[str, str], *, wrapper: tuple[str, ...] = ()
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*wrapper, BIN / "prunefront", "search", "s.toml", "--address", address],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def refused(done: "subprocess.CompletedProcess[str]") -> str:
    """The only line that a search says that could not begin."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a study and its network."""
    (tmp_path / "s.toml").write_text(STUDY)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def test_a_study_is_driven_through_the_ray_client(head: Head, project: Path) -> None:
    (project / "s.toml").write_text(STUDY.replace("pt2 = false", "pt2 = false\nshared = true"))
    environment = head.environment | {"RAY_RUNTIME_ENV": json.dumps({"working_dir": "."})}
    done = search(project, head.address, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    study = project / "studies/outside"
    events = [json.loads(line) for line in (study / "journal.jsonl").read_text().splitlines()]
    assert sum(e["event"] == "told" for e in events) == 6
    trained = {e["name"]: e for e in events if e["event"] == "trained"}
    assert len(trained) == 4  # two candidates, the dense network, and that fine-tuned as well
    for event in trained.values():
        assert "failure" not in event["outcome"], event
        assert (study / "artifacts" / event["artifact"] / "manifest.json").exists()
    rows = json.loads((study / "front.json").read_text())
    assert "dense" in {row["key"] for row in rows}
    assert not (study / "tune").exists(), "Tune ran here and not over there"


def test_a_folder_that_the_cluster_may_not_see_is_refused(head: Head, project: Path) -> None:
    assert "shared = true" in refused(search(project, head.address, head.environment))
    assert not (project / "studies/outside/prepared").exists()


def test_a_cluster_that_wants_a_token_says_so(head: Head, project: Path, tmp_path: Path) -> None:
    nobody = head.environment | {"RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}
    assert "token" in refused(search(project, head.address, nobody)).lower()


@pytest.mark.parametrize("address", ["ray://127.0.0.1:{port}", "127.0.0.1:{port}"])
def test_nobody_is_waited_for(address: str) -> None:
    """Ray alone would ask for half a minute."""
    asked, begun = address.format(port=free_port()), time.monotonic()
    with (
        pytest.raises(PrunefrontError, match=f"at --address {asked}: Connection refused; start one with"),
        connect(asked, ClusterSection()),
    ):
        raise AssertionError("there is a cluster")
    assert time.monotonic() - begun < ANSWER_SECONDS


def test_nothing_is_spent_before_the_cluster_answers(project: Path) -> None:
    asked = f"ray://127.0.0.1:{free_port()}"
    assert f"no Ray cluster at --address {asked}" in refused(search(project, asked, without_ray()))
    assert not (project / "studies/outside/prepared").exists()


def test_auto_where_no_ray_runs(project: Path) -> None:
    """In a namespace of its own, as Ray looks for its processes on the whole machine."""
    needs_namespaces()
    environment = without_ray() | {"RAY_TMPDIR": str(project)}
    alone = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    line = refused(search(project, "auto", environment, wrapper=alone))
    assert "no Ray cluster at --address auto: Could not find any running Ray instance" in line
    assert not (project / "studies/outside/prepared").exists()


def without_ray() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
