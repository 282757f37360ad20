"""Statistics of the dense network, gathered by the workers of a study."""

from collections.abc import Mapping, Sequence, Set
from typing import Any, cast

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import ClusterSection, ModelSection, TaskSection
from prunefront.pipelines.models import build
from prunefront.pipelines.tasks import make_task
from prunefront.pipelines.workers.workbench import on_device
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.statistics import Batch, Statistics, Task, Values, merge, run, tasks

PARTS = 2
"""Tasks for each worker, so that one that is done early has something to do."""


def gather(
    section: ModelSection,
    classes: int | None,
    input_shape: tuple[int, ...] | None,
    weights: Mapping[str, NDArray[np.generic]],
    graph: ChannelGraph,
    asked: TaskSection,
    batches: Sequence[Batch],
    needs: Set[str],
    *,
    workers: int,
    cluster: ClusterSection,
) -> Statistics:
    """Gathers statistics as `statistics.collect` does, on the cluster; values do not depend on the number of workers.

    Workers build the network from its factory, so none travels. Raises PrunefrontError where something cannot be seen.
    """
    found = tasks(graph, needs, batches, parts=PARTS * workers)
    shared = ray.put((section, classes, input_shape, dict(weights), graph, asked, list(batches)))
    remote = _run.options(num_cpus=cluster.cpus_per_worker, num_gpus=cluster.gpus_per_worker)
    device = "cuda" if cluster.gpus_per_worker > 0 else "cpu"  # where the worker has one
    pending = [remote.remote(task, shared, cluster.cpus_per_worker, device) for task in found]
    try:
        # where one fails, the others end with the driver: Ray aborts a driver whose ray.cancel meets the task's answer
        results = cast(list[Values], ray.get(pending))
    except RayTaskError as error:
        if isinstance(error.cause, PrunefrontError):
            raise error.cause from None
        raise
    return merge(zip(found, results, strict=True))


@ray.remote
def _run(task: Task, shared: Any, threads: int, device: str) -> Values:
    section, classes, input_shape, weights, graph, asked, batches = shared
    torch.set_num_threads(threads)
    device = device if torch.cuda.is_available() else "cpu"
    model = build(section, classes=classes, input_shape=input_shape)
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
    return run(task, model.to(device).eval(), graph, on_device(batches, device), make_task(asked).loss)
