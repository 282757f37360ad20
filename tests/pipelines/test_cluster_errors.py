"""What is said when Ray can be neither started nor joined."""

import pytest
import ray

from pipelines.cluster import connected
from pipelines.config import ClusterSection
from pruners.errors import PrunefrontError

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
    ],
)
def test_the_reason_is_the_first_and_the_last_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(PrunefrontError) as refused, connected(None, ClusterSection()):
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
    monkeypatch.setattr("pipelines.cluster._reach", lambda address: None)
    with connected("ray://head:10001", ClusterSection()) as cluster:
        assert cluster.workers == 3
    assert asked == ["ray://head:10001"] * 2
