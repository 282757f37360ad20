"""Random networks of random operators: what is cut equals what is masked, the rest is frozen with a reason."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor, nn

from prunefront.pruners.cut import surgery
from prunefront.pruners.trace.held import Held
from prunefront.pruners.trace.tracer import trace
from tests.corpus.random_graphs import networks
from tests.pruners.plans import keeping

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)


def check(model: nn.Module, x: Tensor) -> int:
    """Traces, cuts at random and compares, on weights and inputs that the trace has not seen. Returns the groups."""
    graph = trace(model, x)
    assert all(f.reason for f in graph.frozen)
    if not graph.groups:
        assert graph.frozen
        return 0
    rng = np.random.default_rng(0)
    for _ in range(2):
        kept = [
            sorted(rng.choice(g.units, rng.integers(1, g.units + 1), replace=False).tolist())
            for g in graph.groups
        ]
        plan = keeping(graph, kept)
        double = surgery.rebuilt(
            model, {}, lambda _, t: t.double() + 0.01 if t.is_floating_point() else t.clone()
        )
        with torch.random.fork_rng():
            torch.manual_seed(1)
            fresh = torch.randn(x.shape, dtype=torch.float64)
        held = Held()
        with torch.no_grad(), held:
            true = surgery.mask(double, graph, plan)(fresh)
        cut = surgery.apply(double, graph, plan)
        inexact = any(g.name in graph.inexact for g in plan.groups if not g.dense)
        with torch.no_grad():
            if inexact:
                with Held(held.record):
                    made = cut(fresh)
            else:
                made = cut(fresh)
        for mine, right in zip(made, true, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-7, atol=1e-8)
    return len(graph.groups)


@given(networks())
@settings(max_examples=30, derandomize=True, database=None, suppress_health_check=SLOW)
def test_random_networks(made: tuple[nn.Module, Tensor]) -> None:
    check(*made)


@pytest.mark.long
@given(networks())
@settings(max_examples=5000, database=None, suppress_health_check=SLOW, phases=[Phase.generate, Phase.shrink])
def test_many_random_networks(made: tuple[nn.Module, Tensor]) -> None:
    check(*made)
