"""Trained PyTorch networks made smaller and faster: traced, cut, searched, measured.

One network, by hand:

>>> import torch
>>> import prunefront as pf
>>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
>>> inputs = torch.randn(4, 8)
>>> graph = pf.trace(net, inputs)  # which channels can only go together
>>> [(group.name, group.units) for group in graph.groups]
[('0', 16)]
>>> small = pf.shrink(net, [(inputs, torch.tensor([0, 1, 0, 1]))], kept_macs=0.5, criterion="l1")
>>> small.model[0].out_features
8

A whole search, in this process or on a Ray cluster, and the network that one wants of its front:

    front = pf.search("study.toml")
    front.best(under={"latency_ms": 2})

Names are imported when they are used: `import prunefront` loads neither torch nor Ray.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunefront.door import load_front, load_study
    from prunefront.errors import PrunefrontError
    from prunefront.pipelines.data.samples import Batch, Inputs, Parts
    from prunefront.pipelines.data.tensors import Tensors
    from prunefront.pipelines.fronts.front import Front
    from prunefront.pipelines.tasks.task import Task
    from prunefront.pruners.cut.prune import prune
    from prunefront.pruners.plan.cost import cost
    from prunefront.pruners.plan.decide import plan
    from prunefront.pruners.saved import load_network, save_network
    from prunefront.pruners.scoring import score
    from prunefront.pruners.shrink import shrink
    from prunefront.pruners.trace.tracer import trace
    from prunefront.search.outcomes.measurement import Metric

__all__ = [
    "Batch",
    "Front",
    "Inputs",
    "Metric",
    "Parts",
    "PrunefrontError",
    "Task",
    "Tensors",
    "cost",
    "load_front",
    "load_network",
    "load_study",
    "plan",
    "prune",
    "save_network",
    "score",
    "search",
    "shrink",
    "trace",
]

_HOMES = {
    "Batch": "prunefront.pipelines.data.samples",
    "Inputs": "prunefront.pipelines.data.samples",
    "Metric": "prunefront.search.outcomes.measurement",
    "Parts": "prunefront.pipelines.data.samples",
    "Task": "prunefront.pipelines.tasks.task",
    "Tensors": "prunefront.pipelines.data.tensors",
    "Front": "prunefront.pipelines.fronts.front",
    "PrunefrontError": "prunefront.errors",
    "cost": "prunefront.pruners.plan.cost",
    "load_front": "prunefront.door",
    "load_network": "prunefront.pruners.saved",
    "load_study": "prunefront.door",
    "plan": "prunefront.pruners.plan.decide",
    "prune": "prunefront.pruners.cut.prune",
    "save_network": "prunefront.pruners.saved",
    "score": "prunefront.pruners.scoring",
    "shrink": "prunefront.pruners.shrink",
    "trace": "prunefront.pruners.trace.tracer",
}
"""Public name -> module that holds it. `search` is a package that can be called, see its docstring."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "search":
        return importlib.import_module("prunefront.search")
    if name == "__version__":
        from importlib.metadata import version

        return version("prunefront")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
