"""Workers that die, with real processes."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from pipelines.config import ClusterSection
from pipelines.pool import Scored, ScoringPool
from search.measurement import Failure, Measurement, Outcome


class Mortal:
    """Takes (name, file) for a plan. Dies of `always`, and of `once` when it sees its file for the first time."""

    def __init__(self, bench: None, threads: int) -> None:
        self.scored = 0

    def score(self, plan: Any, parent: None = None) -> Scored:
        name, file = plan
        if name == "always" or (name == "once" and not Path(file).exists()):
            Path(file).touch()
            os._exit(9)
        self.scored += 1
        return Scored(Measurement({"accuracy": 0.5}), 0.25)


@pytest.fixture
def pool() -> Iterator[ScoringPool]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    pool = ScoringPool(ray.put(None), 2, ClusterSection(), worker=Mortal)
    yield pool
    pool.close()
    ray.shutdown()


def test_a_candidate_whose_worker_died_is_handed_out_once_more_and_then_it_failed(
    pool: ScoringPool, tmp_path: Path
) -> None:
    found: dict[str, Outcome] = {}
    waiting: list[Any] = [(name, str(tmp_path / name)) for name in ("once", "always", "never", "never again")]
    while waiting or pool.in_flight:
        while waiting and pool.free:
            plan = waiting.pop(0)
            pool.submit(plan[0], plan)
        finished = pool.next(timeout=1.0)
        if finished is not None:
            name, outcome, _ = finished
            assert name not in found
            found[name] = outcome
    lost = found.pop("always")
    assert isinstance(lost, Failure)
    assert lost.kind == "crashed"
    assert "twice" in lost.reason
    assert found == dict.fromkeys(("once", "never", "never again"), Measurement({"accuracy": 0.5}))
    assert (pool.lost, pool.free, pool.busy_seconds) == (3, 2, 0.75)
