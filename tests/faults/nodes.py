"""Faults of a cluster: its nodes, its head, and a machine at the other end of a cable."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable

from tests.faults.ray_nodes import COMMON, RAY, RayNodes, ray_nodes
from tests.faults.study import CANDIDATES, TRAINS, Fault, Study
from tests.services.host import PROGRAMS, Host, host

SHARED = """
[artifacts]
shared = true
"""


def on_nodes(study: Study) -> RayNodes:
    """A cluster of three nodes, one CPU each, that the study uses; they see the same folder."""
    cluster = study.stack.enter_context(ray_nodes())
    study.parallel, study.more = 3, SHARED
    study.address, study.environment = cluster.address, cluster.environment
    return cluster


def node_that_scores(study: Study, n: int, rng: random.Random) -> None:
    """One of the two nodes beside the head dies, and later another comes in its place."""
    cluster = on_nodes(study)
    study.start()
    for i in range(n):
        if not study.wait_for("told", 3 + i * max(1, (CANDIDATES - 6) // n)):
            return
        kill_node(study, cluster, "ray::ScoringWorker", rng)
        cluster.join()


def node_that_trains(study: Study, n: int, rng: random.Random) -> None:
    """Likewise, while it fine-tunes."""
    cluster = on_nodes(study)
    study.start()
    for i in range(n):
        if not study.wait_for("trained", 1 + 2 * i):
            return
        kill_node(study, cluster, f"ray::{TRAINS}", rng)
        cluster.join()


def kill_node(study: Study, cluster: RayNodes, doing: str, rng: random.Random) -> None:
    """Once one of the nodes beside the head does what is asked."""
    deadline = time.monotonic() + 60
    while study.running and time.monotonic() < deadline:
        if busy := [node for node in cluster.others if node.called(doing)]:
            node = rng.choice(busy)
            before = len(study.events())
            node.kill()
            cluster.others.remove(node)
            since = time.monotonic()
            study.strike()
            study.wait_until_it_goes_on(since, before)
            return
        time.sleep(0.05)


def head(study: Study, n: int, rng: random.Random) -> None:
    """The head's machine dies; the search ends with a line, and goes on on a new cluster."""
    lose_cluster(study, n, rng, lambda cluster: cluster.head.kill() if cluster.head else None)


def gcs(study: Study, n: int, rng: random.Random) -> None:
    """Only the cluster's own server on the head dies."""

    def kill(cluster: RayNodes) -> None:
        assert cluster.head is not None
        (server,) = cluster.head.called("gcs_server")
        server.kill()

    lose_cluster(study, n, rng, kill)


def client(study: Study, n: int, rng: random.Random) -> None:
    """The head's machine dies, while the study is driven from outside through ray://."""
    lose_cluster(study, n, rng, lambda cluster: cluster.head.kill() if cluster.head else None, outside=True)


def lose_cluster(
    study: Study, n: int, rng: random.Random, kill: Callable[[RayNodes], None], *, outside: bool = False
) -> None:
    cluster = on_nodes(study)
    if outside:
        study.address = f"ray://127.0.0.1:{cluster.client_port}"
    study.start()
    for i in range(n):
        kind, count = ("told", 3 + rng.randrange(CANDIDATES // 2)) if i % 2 == 0 else ("trained", 1)
        if not study.wait_for(kind, count):
            return
        kill(cluster)
        study.strike()
        study.wait_until_it_ends()
        cluster.kill()
        cluster.start_head()
        cluster.join()
        study.go_on()


def with_a_second_host(study: Study) -> Host:
    """A cluster of this machine and one in namespaces of its own, at the end of a virtual cable."""
    machine = study.stack.enter_context(host(study.folder / "machine"))
    # the head's address outlives the cable, as it would with a switch between the two
    own = ("address", "add", f"{machine.outside}/32", "dev", "lo")
    subprocess.run(["ip", *own], check=True)
    study.stack.callback(subprocess.run, ["ip", "address", "del", *own[2:]], check=True)
    cluster = study.stack.enter_context(ray_nodes(0, ip=machine.outside))
    names = ("PATH", "PYTHONPATH", "OMP_NUM_THREADS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    exports = " ".join(f"{name}='{cluster.environment[name]}'" for name in names)
    machine.ssh(f"{exports} {RAY} start --address={cluster.address} --num-cpus=1 {' '.join(COMMON)}")
    study.more, study.address, study.environment = SHARED, cluster.address, cluster.environment
    return machine


def host_off(study: Study, n: int, rng: random.Random) -> None:
    """The second machine loses its power."""
    lose_host(study, rng, Host.switch_off)


def host_silent(study: Study, n: int, rng: random.Random) -> None:
    """Its cable is pulled out: it works on, and nobody hears of it."""
    lose_host(study, rng, Host.unplug)


def lose_host(study: Study, rng: random.Random, lose: Callable[[Host], None]) -> None:
    machine = with_a_second_host(study)
    study.start()
    if not study.wait_for("told", 4 + rng.randrange(8)):
        return
    before = len(study.events())
    lose(machine)
    since = time.monotonic()
    study.strike()
    study.wait_until_it_goes_on(since, before)


def needs_namespaces() -> str:
    if os.geteuid() != 0:
        return "needs root to make a machine out of namespaces"
    missing = [p for p in PROGRAMS if not shutil.which(p, path=os.environ["PATH"] + ":/usr/sbin:/sbin")]
    return f"needs {' '.join(missing)}" if missing else ""


FAULTS = {
    "node-scores": Fault("a node of three dies, scoring", node_that_scores, 4),
    "node-trains": Fault("a node of three dies, fine-tuning", node_that_trains, 2),
    "head": Fault("the head's machine dies", head, 2),
    "gcs": Fault("SIGKILL of the cluster's own server", gcs, 2),
    "client": Fault("the head behind ray:// dies", client, 2),
    "host-off": Fault("a second host loses its power", host_off, 2, needs_namespaces),
    "host-silent": Fault("a second host's cable is pulled", host_silent, 2, needs_namespaces),
}
