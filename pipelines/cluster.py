"""Starting Ray on this machine, or joining a cluster."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.config import ClusterSection
from pruners.errors import PrunefrontError


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is to work with. workers: processes that the study will use. nodes: machines that are alive.

    remote: the study itself runs outside the cluster, through ray://.
    """

    workers: int
    nodes: int
    remote: bool


@contextmanager
def connected(address: str | None, section: ClusterSection) -> Iterator[Cluster]:
    """Ray for the length of a study; what was started here is ended here.

    address: None means RAY_ADDRESS, which Ray sets within a submitted job, else Ray on this machine alone. Raises
    PrunefrontError when a cluster does not answer, or has no room for one worker.
    """
    # Tune's CSV, JSON and TensorBoard files cost the driver two thirds of its time and nobody reads them
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # its banner and its result table, which our own display replaces
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # a user's `module:callable` is imported from the folder that the search was started in
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
        if section.workers is not None:
            options["num_cpus"] = max(section.workers * section.cpus_per_worker, 1)
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise PrunefrontError(
            f"no Ray cluster at --address {address}: {line}; start one with `ray start --head` or `ray up "
            "cluster.yaml`, or leave --address out to use this machine"
        ) from error
    try:
        yield _room(section, remote=(address or "").startswith("ray://"))
    finally:
        ray.shutdown()


def _room(section: ClusterSection, *, remote: bool) -> Cluster:
    import ray

    resources = ray.cluster_resources()
    by_cpu = int(resources.get("CPU", 0) // section.cpus_per_worker)
    gpus = section.gpus_per_worker
    room = by_cpu if gpus == 0 else min(by_cpu, int(resources.get("GPU", 0) / gpus))
    if room < 1:
        raise PrunefrontError(
            f"Ray has {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs, but one worker asks for "
            f"{section.cpus_per_worker} and {gpus:g}; lower [cluster] cpus_per_worker or gpus_per_worker"
        )
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return Cluster(min(section.workers or room, room), nodes, remote)
