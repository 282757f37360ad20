"""Scores agree with those of torch-pruning 1.6.1 where both name the same formula.

By itself torch-pruning takes the mean over all members of a group, consumers and norms among them, and divides by the
mean over units. `first` takes the root alone, which is the filter that produces the unit; without a normaliser the
scores are then the formula's own.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from prunefront.pruners.scoring import score
from prunefront.pruners.trace.tracer import trace
from tests.nets import NETS

GROUPS = ("features.0.0", "features.2.0")  # conv, norm, pool, read by a conv; the same, read by a linear
ROOT: dict[str, Any] = {"group_reduction": "first", "normalizer": None}
importance = tp.importance


def network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model, _ = NETS["VggBn"]()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 8, 8, generator=generator)
    return model, images, torch.randint(5, (16,), generator=generator)


def theirs(
    model: nn.Module, images: torch.Tensor, name: str, judge: Callable[[tp.Group], torch.Tensor]
) -> np.ndarray:
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=images[:1])
    root = model.get_submodule(name)
    group = graph.get_pruning_group(root, tp.prune_conv_out_channels, list(range(root.out_channels)))
    return judge(group).numpy()


def ours(
    criterion: str, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, name: str
) -> np.ndarray:
    """Scores of the group that the named convolution makes, from a single mini-batch."""
    graph = trace(model, images[:2])
    where = next(
        g for g in graph.groups if any(m.tensor == f"{name}.weight" and m.role == "out" for m in g.members)
    )
    return score(model, graph, (criterion,), [(images, labels)])[criterion][where.name]


def with_gradients(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    F.cross_entropy(model(images), labels).backward()
    return model


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize(
    ("criterion", "judge", "power"),
    [
        ("l1", importance.GroupMagnitudeImportance(p=1, **ROOT), 1),
        ("l2", importance.GroupMagnitudeImportance(p=2, **ROOT), 2),  # theirs is squared
        ("bn_scale", importance.BNScaleImportance(normalizer=None), 1),
    ],
)
def test_weights_and_scales(criterion: str, judge: Any, power: int, name: str) -> None:
    model, images, labels = network()
    np.testing.assert_allclose(
        ours(criterion, model, images, labels, name) ** power, theirs(model, images, name, judge), rtol=1e-5
    )


@pytest.mark.parametrize("name", GROUPS)
def test_geometric_median_where_no_weight_is_negative(name: str) -> None:
    """torch-pruning takes distances between |w|ᵖ, the paper between w: the same for p = 1 and weights above zero."""
    judge = importance.FPGMImportance(p=1, **ROOT)
    model, images, labels = network()
    as_it_is = ours("geometric_median", model, images, labels, name)
    assert not np.allclose(as_it_is, theirs(model, images, name, judge), rtol=1e-2)
    with torch.no_grad():
        model.get_submodule(name).weight.abs_()
    np.testing.assert_allclose(
        ours("geometric_median", model, images, labels, name), theirs(model, images, name, judge), rtol=1e-4
    )


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize(
    ("criterion", "judge", "power"),
    [
        # what they call Taylor, Σ |w g|, is SNIP's sum; with `multivariable`, |Σ w g|, it is GDP's
        ("snip", importance.GroupTaylorImportance(**ROOT), 1),
        ("gdp", importance.GroupTaylorImportance(multivariable=True, **ROOT), 1),
        ("taylor_joint", importance.GroupTaylorImportance(multivariable=True, **ROOT), 2),
        # what they call Hessian, Σ w² g² with squared gradients for curvature, is the weight form of Taylor
        ("taylor_weight", importance.GroupHessianImportance(**ROOT), 1),
    ],
)
def test_gradients_of_one_batch(criterion: str, judge: Any, power: int, name: str) -> None:
    model, images, labels = network()
    mine = ours(criterion, model, images, labels, name)
    with_gradients(model, images, labels)
    if isinstance(judge, importance.GroupHessianImportance):
        judge.zero_grad()
        judge.accumulate_grad(model)
    np.testing.assert_allclose(mine, theirs(model, images, name, judge) ** power, rtol=1e-4, atol=1e-9)


def test_activation_of_a_convolution_that_reads() -> None:
    """Behind a flatten theirs sees a column per position and sums over images: only the first group is the same."""
    model, images, labels = network()
    judge = importance.ActivationImportance(**ROOT, target_types=[nn.Conv2d])
    with judge.compute_importance(model):
        model(images)
    np.testing.assert_allclose(
        ours("activation", model, images, labels, GROUPS[0]),
        theirs(model, images, GROUPS[0], judge),
        rtol=1e-5,
    )
