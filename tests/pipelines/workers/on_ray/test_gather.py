"""Statistics by real Ray workers are those of this process."""

import pytest
import ray
import torch

from prunefront.pipelines.cluster.connect import connect
from prunefront.pipelines.config.sections import ClusterSection, ModelSection, TaskSection
from prunefront.pipelines.models import build
from prunefront.pipelines.workers.on_ray.gather import gather
from prunefront.pipelines.workers.workbench import arrays
from prunefront.pruners.statistics import collect
from prunefront.pruners.trace.tracer import trace

pytestmark = pytest.mark.slow

NEEDS = {"gate_gradient", "activation", "contribution", "loss_change", "gradient_gram", "weight"}


def test_workers_gather_what_one_process_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    # a cancel that met its task's answer ended a search in CI: "Tried to complete task that was not pending"
    monkeypatch.delattr(ray, "cancel")
    section, shape = ModelSection(factory="digits_cnn", options={"width": 4}), (1, 8, 8)
    model = build(section, classes=10, input_shape=shape).eval()
    graph = trace(model, torch.zeros(2, *shape))
    draw = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(32, *shape, generator=draw), torch.randint(10, (32,), generator=draw)) for _ in range(5)
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers
    alone = collect(model, graph, batches, NEEDS).values
    torch.set_num_threads(threads)
    cluster, asked = ClusterSection(workers=2), TaskSection()
    with connect(None, cluster):
        for workers in (1, 2):
            found = gather(
                section,
                10,
                shape,
                arrays(model),
                graph,
                asked,
                batches,
                NEEDS,
                workers=workers,
                cluster=cluster,
            ).values
            assert found.keys() == alone.keys() == NEEDS - {"weight"}
            for name, groups in alone.items():
                assert found[name].keys() == groups.keys()
                assert all(torch.equal(found[name][g], groups[g]) for g in groups), name
        wrong = [(x[:, :0], y) for x, y in batches]
        with pytest.raises(ray.exceptions.RayTaskError, match="expected input"):
            gather(section, 10, shape, arrays(model), graph, asked, wrong, NEEDS, workers=2, cluster=cluster)
