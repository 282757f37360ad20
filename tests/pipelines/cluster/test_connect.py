"""What is said when Ray can be neither started nor joined."""

import signal
import socket
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import ray

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster import connect as cluster
from prunefront.pipelines.cluster.connect import Cluster, check_metrics_port, connect, fewer_workers
from prunefront.pipelines.cluster.stopping import Stopped, stop_on_signal
from prunefront.pipelines.config.sections import ClusterSection

TRACEBACK = """\
Initialization failure from server:
Traceback (most recent call last):
  File "proxier.py", line 1, in Datapath
RuntimeError: Starting Ray client server failed. See ray_client_server_23000.err for detailed logs.
"""


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
