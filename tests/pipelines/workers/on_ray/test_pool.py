"""Workers that die, with real processes."""

import time
from collections import deque
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.cluster_utils import Cluster

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster.patience import NoWorkers, Patience
from prunefront.pipelines.config.sections import ClusterSection
from prunefront.pipelines.measure import time_limit
from prunefront.pipelines.workers.failures import failure
from prunefront.pipelines.workers.on_ray.pool import STILLBORN, ScoringPool
from prunefront.pipelines.workers.on_ray.trials import WaitForWorkers
from prunefront.pipelines.workers.scoring import Scored
from prunefront.search.outcomes.measurement import Failure, Measurement, Outcome
from tests.pipelines.workers.on_ray.light_workers import Mortal, Placed, Stillborn


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("two_cpus")
def test_a_candidate_whose_worker_died_is_handed_out_once_more_and_then_it_failed(tmp_path: Path) -> None:
    pool = ScoringPool(ray.put(None), 2, ClusterSection(), worker=Mortal)
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
    wait_until(pool, lambda: pool.free == 2)
    assert (pool.lost, pool.busy_seconds) == (3, 0.75)
    pool.close()


class Endless:
    """Takes a name for a plan. Of "sleeps" it waits for ever, of "native" it never gives the interpreter back."""

    def __init__(self, bench: None, threads: int) -> None:
        time_limit.GRACE_SECONDS = 0.2

    def score(self, plan: Any, parent: None = None) -> Scored:
        try:
            with time_limit.time_limit(LIMIT, "scoring"):
                if plan == "sleeps":
                    time.sleep(600)
                if plan == "native":
                    deque(repeat(0), maxlen=0)
        except time_limit.TimedOut as error:
            return Scored(failure(error), LIMIT)
        return Scored(Measurement({"accuracy": 0.5}), 0.25)


LIMIT = 1.0


@pytest.mark.usefixtures("two_cpus")
def test_a_candidate_that_never_ends_costs_its_limit_and_nothing_else() -> None:
    pool = ScoringPool(ray.put(None), 2, ClusterSection(), worker=Endless, limit=LIMIT)
    found: dict[str, Outcome] = {}
    waiting: list[Any] = ["sleeps", "native", "fine", "fine too"]
    deadline = time.monotonic() + 300
    while waiting or pool.in_flight:
        assert time.monotonic() < deadline, "the pool waits for ever"
        while waiting and pool.free:
            name = waiting.pop(0)
            pool.submit(name, name)
        if (finished := pool.next(timeout=1.0)) is not None:
            found[finished[0]] = finished[1]
    pool.close()
    for name, says in (("sleeps", "scoring took longer than 1 s"), ("native", "and its process was ended")):
        outcome = found.pop(name)
        assert isinstance(outcome, Failure)
        assert outcome.kind == "timed_out"
        assert says in outcome.reason
    assert found == dict.fromkeys(("fine", "fine too"), Measurement({"accuracy": 0.5}))
    assert pool.lost == 1, "the native one is not tried again"


def wait_until(pool: ScoringPool, met: Any, seconds: float = 60) -> list[str]:
    """Names of what the pool returned until then."""
    found = []
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "the pool waits for ever"
        if (finished := pool.next(timeout=0.1)) is not None:
            assert isinstance(finished[1], Measurement), finished
            found.append(finished[0])
    return found


@pytest.mark.usefixtures("two_cpus")
def test_a_pool_without_a_worker_is_not_waited_for_for_ever() -> None:
    said: list[str] = []
    section = ClusterSection(cpus_per_worker=3)
    patience = Patience(section, said.append, 0.5)
    crowded = ScoringPool(ray.put(None), 1, section, worker=Mortal, patience=patience)
    with pytest.raises(PrunefrontError, match="2 CPUs, 2 of them free; one asks for 3 CPUs"):
        wait_until(crowded, lambda: crowded.free)
    crowded.close()
    (line,) = said
    assert "waiting for one" in line
    broken = ScoringPool(ray.put(None), 1, ClusterSection(), worker=Stillborn)
    with pytest.raises(PrunefrontError, match="no worker process stays alive"):
        wait_until(broken, lambda: broken.free)
    assert broken.lost == STILLBORN
    broken.close()


class Never(tune.Trainable):
    """A trial that finds no place."""


@pytest.mark.usefixtures("two_cpus")
def test_trials_without_a_worker_are_not_waited_for_for_ever(tmp_path: Path) -> None:
    """Ray Tune alone would."""
    patience = Patience(ClusterSection(cpus_per_worker=3), seconds=0.5)
    run = tune.RunConfig(storage_path=str(tmp_path), verbose=0, callbacks=[WaitForWorkers(patience)])
    with pytest.raises(NoWorkers, match=r"one asks for 3 CPUs .* continue with --resume"):
        tune.Tuner(tune.with_resources(Never, {"cpu": 3}), run_config=run).fit()


@pytest.fixture
def no_ray() -> None:
    """Before a test that starts a cluster of its own."""
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_a_node_that_dies_keeps_nobody_waiting_and_one_that_joins_works(tmp_path: Path) -> None:
    """12 s. The candidate of the dead node goes to the other one, though a worker in its place finds no room."""
    impatient = {
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 500,
        "health_check_failure_threshold": 3,
    }
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": impatient}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    pool = ScoringPool(ray.put(None), 2, ClusterSection(), worker=Placed)
    try:
        wait_until(pool, lambda: pool.free == 2)
        names = ["wait 1", "wait 2"]
        for name in names:
            pool.submit(name, (name, str(tmp_path)))
        wait_until(pool, lambda: len(list(tmp_path.iterdir())) == 2)
        cluster.remove_node(second, allow_graceful=False)
        (tmp_path / f"go, {cluster.head_node.node_id}").touch()
        assert sorted(wait_until(pool, lambda: not pool.in_flight)) == names
        assert (pool.free, pool.lost) == (1, 1)
        cluster.add_node(num_cpus=1)
        wait_until(pool, lambda: pool.free == 2)
    finally:
        pool.close()
        ray.shutdown()
        cluster.shutdown()
