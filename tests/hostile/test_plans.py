"""Pruning plans and whole plan.json files, against the network that they are said to be of."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given
from torch import nn

from prunefront.choice import GroupChoice
from prunefront.pipelines.artifacts.card import card
from prunefront.pruners.cut import surgery
from prunefront.pruners.cut.prune import prune
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.saved import PLAN, WEIGHTS, pack_network, plan_document, read_plan, rebuild
from prunefront.pruners.trace.tracer import trace
from tests.hostile.strategies import answered, as_lists, changed, documents, fuzzed


class Net(nn.Module):
    """Two convolutions, a residual block that can go, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.a(x)))
        return self.out(torch.relu(self.b(x)).mean((2, 3)))


@cache
def network() -> tuple[nn.Module, ChannelGraph]:
    torch.manual_seed(0)
    net = Net().eval()
    return net, trace(net, torch.zeros(2, 1, 8, 8))


@cache
def genuine() -> tuple[dict[str, Any], Path]:
    """plan.json and weights.safetensors of a network with fewer channels, fewer weights and fewer bits."""
    net, graph = network()
    scores = {"l1": {g.name: np.arange(g.units, dtype=float) for g in graph.groups}}
    choices = {graph.groups[0].name: GroupChoice("l1", 0.5)}
    kinds = iter(("element", "kernel", "low_rank"))
    for layer in graph.layers:
        choices[layer.name] = GroupChoice("magnitude", 0.5, next(kinds), 8)
    cut = plan(graph, choices, scores)
    folder = Path(tempfile.mkdtemp(prefix="prunefront-hostile-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    pack_network(prune(net, graph, cut), graph, cut, folder / WEIGHTS)
    description = {"model": {"factory": "digits_cnn"}, "data": {}, "input_shape": [1, 8, 8], "classes": 3}
    return json.loads(json.dumps({**plan_document(graph, cut), **description})), folder / WEIGHTS


@given(content=documents(genuine()[0]))
@fuzzed
def test_plans(tmp_path: Path, content: bytes) -> None:
    """Read, named, carried out on the dense network, and filled with the stored weights."""
    net, graph = network()
    file, weights = tmp_path / PLAN, genuine()[1]
    file.write_bytes(content)
    found = answered(lambda: read_plan(file))
    if found is None:
        return
    cut, removed = found
    assert cut.key().isalnum()
    assert PruningPlan.from_json(json.loads(json.dumps(cut.to_json(), allow_nan=False))) == cut
    assert all(0.0 <= ratio <= 1.0 for ratio in cut.achieved_ratios().values())
    answered(lambda: surgery.apply(net, graph, cut))
    made = answered(lambda: rebuild(net, cut, removed, weights))
    if made is not None:
        with torch.no_grad():
            assert made(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


@given(
    description=changed(genuine()[0]),
    measurement=changed({"key": "a", "accuracy": 0.5, "latency": {"ms": 1.0}}),
)
@fuzzed
def test_cards(description: Any, measurement: Any) -> None:
    answered(lambda: card(as_lists(description), as_lists(measurement), program=True))
