"""The nodes of a cluster: their resources and machines, and a check that a study can be measured on them."""

import platform
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import ClusterSection, MeasureSection
from prunefront.text import did_you_mean

PROBE_SECONDS = 60.0
"""Seconds that nodes may take to describe themselves: a process starts there and imports PyTorch."""

RAYS_OWN = re.compile(r"^(CPU|GPU|TPU|memory|object_store_memory|node:.*|accelerator_type:.*|.*_group_.*)$")
"""Names of the resources that Ray itself gives nodes, and of those of placement groups."""

SLIVER = 0.001
"""Fraction of a GPU to request: enough to see it, too little to displace a worker."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node. id: Ray's. address: its IP address. resources: name -> amount, in use or free."""

    id: str
    address: str
    resources: dict[str, float]

    def room(self, section: ClusterSection) -> int:
        """Returns the number of workers that fit on the node. A fraction of a GPU is one of a single GPU."""
        by_cpu = int(self.resources.get("CPU", 0) // section.cpus_per_worker)
        each, gpus = section.gpus_per_worker, self.resources.get("GPU", 0)
        if each == 0:
            return by_cpu
        by_gpu = int(gpus // each) if each >= 1 else int(gpus) * int(1 / each + 1e-9)
        return min(by_cpu, by_gpu)


@dataclass(frozen=True, slots=True)
class Machine:
    """A node's description of itself. missing: the part of the study's runtime it lacks. cuda: torch sees a GPU."""

    host: str
    processor: str
    machine: str
    missing: str | None
    cuda: bool

    def __str__(self) -> str:
        return f"{self.host} ({self.processor or self.machine})"


def live_nodes() -> list[Node]:
    """Returns the live nodes of the cluster that this process is connected to."""
    return [
        Node(n["NodeID"], n.get("NodeManagerAddress", ""), dict(n.get("Resources", {})))
        for n in ray.nodes()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        if n["Alive"]
    ]


def custom_resources(nodes: Sequence[Node]) -> list[str]:
    """Returns the names of the resources that people gave nodes, sorted."""
    return sorted({name for node in nodes for name in node.resources if not RAYS_OWN.match(name)})


def check_nodes(measure: MeasureSection, cluster: ClusterSection) -> list[str]:
    """Returns lines to show before a study is measured on the cluster's nodes; none where the nodes are alike.

    Raises PrunefrontError where no node is the study's device, where the device does not answer, and where a node on
    which networks will be timed lacks the runtime.
    """
    nodes = live_nodes()
    workers = [node for node in nodes if node.room(cluster)]
    if measure.device is not None:
        return [*_device(measure, nodes), *_gpus(measure, cluster, workers)]
    if len(workers) < 2:
        return _gpus(measure, cluster, workers)
    lines, answers = [], _ask(workers, measure.runtime)
    machines = [machine for machine in answers.values() if isinstance(machine, Machine)]
    _check_runtime(measure, machines)
    for node in workers:
        if isinstance(answer := answers[node.id], str):
            lines.append(f"node {node.address} did not say what it is: {answer}")
    if len({(m.processor, m.machine) for m in machines}) > 1:
        lines.append(
            f"the nodes differ: {', '.join(sorted({str(m) for m in machines}))}; each network is compared with the "
            "dense one on the node that trained it, so ratios are of different processors; set measure.device to have "
            "all measured on one (docs/placement.md)"
        )
    return lines + _gpus(measure, cluster, workers)


def _device(measure: MeasureSection, nodes: Sequence[Node]) -> list[str]:
    asked, there = measure.device, custom_resources(nodes)
    assert asked is not None
    if asked not in there:
        raise PrunefrontError(
            f"no node of the cluster has the resource of measure.device = {asked!r}; "
            f"{did_you_mean(asked, there)}there are: "
            f"{', '.join(there) or 'none'}; the device joins with `ray start --address=HEAD:6379 --num-cpus=0 "
            f"--resources='{{\"{asked}\": 1}}'`"
        )
    holders = [node for node in nodes if asked in node.resources]
    answers = _ask(holders, measure.runtime)
    for node in holders:
        if isinstance(answer := answers[node.id], str):
            raise PrunefrontError(
                f"measure.device = {asked!r}, node {node.address}, cannot be used: {answer}; it needs the same "
                "prunefront, Ray and minor version of Python as here"
            )
    machines = [machine for machine in answers.values() if isinstance(machine, Machine)]
    _check_runtime(measure, machines)
    lines = [f"latency is measured on {asked!r}: {', '.join(sorted({str(m) for m in machines}))}"]
    if len({(m.processor, m.machine) for m in machines}) > 1:
        lines.append(
            f"more than one node is {asked!r} and they differ, so ratios are of different processors"
        )
    return lines


def _check_runtime(measure: MeasureSection, machines: Sequence[Machine]) -> None:
    for machine in machines:
        if machine.missing is not None:
            raise PrunefrontError(
                f"measure.runtime = {measure.runtime!r} cannot be used on {machine}: {machine.missing}; install it "
                "there, or choose another (`prunefront list runtimes`)"
            )


def _gpus(measure: MeasureSection, cluster: ClusterSection, workers: Sequence[Node]) -> list[str]:
    """Returns a line for each machine that shall train on GPUs and cannot."""
    if cluster.gpus_per_worker == 0:
        return []
    answers = _ask(workers, measure.runtime, gpus=SLIVER)
    without = [m for m in answers.values() if isinstance(m, Machine) and not m.cuda]
    return [
        f"{machine}: [cluster] gpus_per_worker = {cluster.gpus_per_worker:g}, but torch sees no CUDA GPU there, so its "
        "workers train on CPUs"
        for machine in without
    ]


def _ask(nodes: Sequence[Node], runtime: str, gpus: float = 0.0) -> dict[str, Machine | str]:
    """Returns node id -> its description, or the reason why there is none. All nodes are asked at once."""
    tasks: dict[Any, str] = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        tasks[_describe.options(scheduling_strategy=there, num_gpus=gpus).remote(runtime)] = node.id
    done, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=PROBE_SECONDS)
    answers: dict[str, Machine | str] = {
        tasks[task]: f"no answer within {PROBE_SECONDS:g} s" for task in late
    }
    for task in done:
        try:
            answers[tasks[task]] = ray.get(task)
        except (RayError, RuntimeError) as error:  # RuntimeError: its process could not import this module
            answers[tasks[task]] = str(error).strip().splitlines()[-1]
    return answers


@ray.remote(num_cpus=0, max_retries=1)
def _describe(runtime: str) -> Machine:
    import torch

    from prunefront.pipelines.measure.environment import processor
    from prunefront.pipelines.measure.runtimes import runtimes

    return Machine(
        socket.gethostname(),
        processor(),
        platform.machine(),
        runtimes[runtime].missing(),
        torch.cuda.is_available(),
    )
