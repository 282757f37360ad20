"""What is said when Ray can be neither started nor joined."""

import ast
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import FunctionType, SimpleNamespace

import pytest
import ray

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cli import main
from prunefront.pipelines.cluster import connect as cluster
from prunefront.pipelines.cluster.connect import Cluster, check_metrics_port, connect, fewer_workers
from prunefront.pipelines.cluster.nodes import live_nodes
from prunefront.pipelines.cluster.patience import Patience
from prunefront.pipelines.cluster.ray_token import guarded_token
from prunefront.pipelines.cluster.stopping import Stopped, stop_on_signal
from prunefront.pipelines.config.sections import ClusterSection
from prunefront.pipelines.workers.on_ray.pool import ScoringPool
from prunefront.pipelines.workers.on_ray.workers import ActorProcess, RayWorkers, failures_said

ROOT = Path(__file__).parents[3]

TRACEBACK = """\
Initialization failure from server:
Traceback (most recent call last):
  File "proxier.py", line 1, in Datapath
RuntimeError: Starting Ray client server failed. See ray_client_server_23000.err for detailed logs.
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token; and nothing waits."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster, "START_PAUSE", 0.0)
    return tmp_path


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no room."), "on this machine: no room"),
        (
            ConnectionAbortedError(TRACEBACK),
            "server: RuntimeError: Starting Ray client server failed. See ray_",
        ),
        (
            RuntimeError("Failed to start GCS.\n.\nUnauthenticated"),
            "on this machine: Failed to start GCS: Unauthenticated",
        ),
        # of no narrower class: what Ray raises on a machine too busy to start it within 30 s
        (
            Exception("The current node timed out during startup."),
            "on this machine: The current node timed out",
        ),
    ],
)
def test_the_reason_is_the_first_and_the_last_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(PrunefrontError) as refused, connect(None, ClusterSection()):
        raise AssertionError("there is a cluster")
    (line,) = str(refused.value).splitlines()
    assert said in line


def test_a_head_that_could_not_serve_a_client_is_asked_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def init(**options: object) -> None:
        asked.append(options["address"])
        if len(asked) == 1:
            raise ConnectionAbortedError(TRACEBACK)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "a", "Alive": True, "Resources": {"CPU": 3.0}}])
    monkeypatch.setattr("prunefront.pipelines.cluster.connect._reach", lambda address: None)
    with connect("ray://head:10001", ClusterSection()) as cluster:
        assert cluster.workers == 3
    assert asked == ["ray://head:10001"] * 2


def test_metrics_are_exported_here_at_a_free_port_or_it_is_said_before_anything_is_spent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PrunefrontError, match=f"at port {port}: Address already in use"):
            check_metrics_port(None, port)
    check_metrics_port(None, port)
    with pytest.raises(PrunefrontError, match="ray start --metrics-export-port"):
        check_metrics_port("auto", port)


SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.mark.parametrize("slow", [1, 2, 3])
def test_a_start_that_is_too_slow_is_tried_again_and_then_one_line(
    slow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray raises a plain Exception where its node does not come up in time."""
    asked, said = [], list[str]()

    def init(**options: object) -> None:
        asked.append(options)
        if len(asked) <= slow:
            raise Exception(SLOW)  # as Ray does

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=""))
    monkeypatch.setattr(cluster, "watch_head", lambda address: nullcontext())
    monkeypatch.setattr(cluster, "_room", lambda section, *, remote: Cluster(1, 1, remote))
    refused = pytest.raises(
        PrunefrontError, match="could not be started on this machine: The current node timed out"
    )
    with nullcontext() if slow < 3 else refused, connect(None, ClusterSection(), say=said.append):
        assert len(asked) == slow + 1
    assert len(asked) == min(slow + 1, 3)
    assert sum("tried again" in line for line in said) == min(slow, 2)


def test_what_a_failed_start_left_is_ended() -> None:
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "ray-left"])
    other = subprocess.Popen(["sleep", "60"])
    try:
        found = cluster._children()
        assert {left.pid, other.pid} <= found
        cluster._end({left.pid, other.pid})
        assert left.wait(10) == -signal.SIGKILL
        assert other.poll() is None, "it is not Ray's"
    finally:
        other.kill()
        other.wait()


def test_the_token_is_for_its_owner_alone(home: Path) -> None:
    token, before = home / ".ray" / "auth_token", os.umask(0)
    try:
        assert "only you can read" in guarded_token(create=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(first := token.read_text()) == 64
    assert guarded_token(create=True) == guarded_token(create=False) == ""
    for mode in (0o644, 0o640, 0o604, 0o666):
        token.chmod(mode)
        assert f"mode {mode:o}" in guarded_token(create=False)
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() == first


def test_a_token_that_cannot_be_guarded_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = home / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    assert guarded_token(create=True) == ""
    assert not other.exists(), "Ray says so"
    os.mkfifo(other)
    with pytest.raises(PrunefrontError, match="is not a file"):
        guarded_token(create=True)
    other.unlink()
    other.write_text("0" * 64)
    other.chmod(0o644)

    def not_ours(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", not_ours)
    with pytest.raises(PrunefrontError, match="others can read"):
        guarded_token(create=True)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    assert guarded_token(create=True) == ""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "can run code" in guarded_token(create=True)


def rays_own(error: BaseException) -> Callable[..., None]:
    """A function of Ray's, as far as a traceback tells, that raises the error."""

    def raises(*_: object, **__: object) -> None:
        raise error

    return FunctionType(raises.__code__, {"__name__": "ray._private.worker"}, closure=raises.__closure__)


def made_free(self: ScoringPool) -> ScoringPool:
    self._free.append(SimpleNamespace(score=SimpleNamespace(remote=lambda *_: "task")))
    self.submit("a", None)  # type: ignore[arg-type]  # nobody looks at it
    return self


def pool() -> ScoringPool:
    return ScoringPool(None, 0, ClusterSection(), patience=Patience(ClusterSection()))


CALLS: dict[str, Callable[[RayWorkers], object]] = {
    "wait": lambda workers: made_free(pool()).next(0.1),
    "remote": lambda workers: pool(),
    "put": lambda workers: workers.equip(None),  # type: ignore[arg-type]
    "get": lambda workers: ActorProcess(SimpleNamespace(f=SimpleNamespace(remote=lambda: 1))).call("f"),
    "kill": lambda workers: made_free(pool()).close(),
    "is_initialized": lambda workers: pool().close(),
    "get_runtime_context": lambda workers: workers.refuge(Path()),
    "nodes": lambda workers: live_nodes(),
    "cluster_resources": lambda workers: Patience(ClusterSection(), seconds=0.0).no_worker_ready(),
    "available_resources": lambda workers: Patience(ClusterSection(), seconds=0.0).no_worker_ready(),
    "init": lambda workers: connect(None, ClusterSection()).__enter__(),
}
"""Ray's functions that we call -> a place that does."""

ERRORS = [
    Exception("plain"),
    RuntimeError("runtime"),
    AssertionError("assertion"),
    KeyError("key"),
    ray.exceptions.RaySystemError("system"),
    ray.exceptions.GetTimeoutError("late"),
    ray.exceptions.RayActorError(),
]


def test_every_function_of_rays_that_we_call_is_listed() -> None:
    """So that a new call has its failure tried below; `shutdown` may fail in silence, as Ray is over then."""
    called = {
        node.func.attr
        for path in (ROOT / "pipelines").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "ray"
    }
    assert called == CALLS.keys() | {"shutdown"}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_call_of_ray_raises_is_one_line(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def option(**_: object) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *_, **__: SimpleNamespace())

    monkeypatch.setattr(ray, "remote", lambda made: SimpleNamespace(options=option))
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray, name, rays_own(error))
    workers = RayWorkers(Cluster(1, 1, remote=False), ClusterSection())
    with (
        pytest.raises(PrunefrontError, match=r"^Ray (failed|could not be started)") as refused,
        failures_said(),
    ):
        CALLS[name](workers)
    assert "\n" not in str(refused.value)
    assert "Traceback" not in str(refused.value)


def test_an_error_of_our_own_is_not_called_rays() -> None:
    with pytest.raises(KeyError), failures_said():
        raise KeyError("ours")


def test_what_ray_raises_outside_of_a_search_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "app", rays_own(Exception("boom\nwith lines")))
    with pytest.raises(SystemExit, match="2"):
        main.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert "Ray failed: boom with lines" in line


def test_a_handler_of_sigterm_survives_rays_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def init(**options: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=""))
    monkeypatch.setattr(cluster, "watch_head", lambda address: nullcontext())
    monkeypatch.setattr(cluster, "_room", lambda section, *, remote: Cluster(1, 1, remote))
    try:
        with stop_on_signal(), connect(None, ClusterSection()), pytest.raises(Stopped, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, before)


def test_fewer_workers_than_asked_for_are_said() -> None:
    room = Cluster(workers=3, nodes=1, remote=False)
    (line,) = fewer_workers(ClusterSection(workers=8), room)
    assert "workers = 8, but Ray has room for 3" in line
    assert fewer_workers(ClusterSection(workers=3), room) == fewer_workers(ClusterSection(), room) == []
