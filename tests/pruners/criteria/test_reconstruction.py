"""ThiNet, its addition form and channel pruning by LASSO, and the contributions on which they rest."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.criteria import criteria
from prunefront.pruners.criteria.reconstruction.lasso import lasso, path
from prunefront.pruners.criteria.reconstruction.thinet import removal_turns, rescale, thinet
from prunefront.pruners.criteria.reconstruction.thinet_add import addition_turns, thinet_add
from prunefront.pruners.scoring import available, why_not
from prunefront.pruners.statistics import collect, run, tasks
from prunefront.pruners.statistics.contributions import POSITIONS, matrix, output_positions, patches
from prunefront.pruners.units.view import UnitView, producers
from prunefront.pruners.units.watch import Watch
from tests.nets import NETS
from tests.pruners.fixtures import Functional, Grouped, Plain, batches, graph_of, group, made, part
from tests.pruners.plans import traced


def normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def view(contribution: torch.Tensor) -> UnitView:
    return UnitView(weight=torch.zeros(len(contribution), 0), contribution=contribution)


def error_without(contribution: torch.Tensor, going) -> float:
    return float(contribution[list(going)].sum(dim=0).square().sum())


# patches: every output is its weights times its patch

X = normal(3, 6, 8, 9)
TOKENS = X.flatten(2).transpose(1, 2)
CALLS = {
    "strided": (F.conv2d, X, (5, 6, 3, 3), {"stride": 2, "padding": (1, 2)}),
    "dilated": (F.conv2d, X, (5, 6, 3, 3), {"stride": (1, 2), "padding": 2, "dilation": (2, 1)}),
    "grouped": (F.conv2d, X, (4, 3, 3, 3), {"padding": 1, "groups": 2}),
    "depthwise": (F.conv2d, X, (12, 1, 3, 3), {"groups": 6}),
    "same": (F.conv2d, X, (5, 6, 2, 3), {"padding": "same"}),
    "valid": (F.conv2d, X, (5, 6, 3, 3), {"padding": "valid"}),
    "one axis": (F.conv1d, X.flatten(2), (5, 6, 4), {"stride": 3, "padding": 2}),
    "three axes": (F.conv3d, X.reshape(3, 6, 8, 3, 3), (5, 6, 2, 3, 1), {"padding": (0, 1, 1)}),
    "flat": (F.linear, X.flatten(1), (5, 6 * 72), {}),
    "tokens": (F.linear, TOKENS, (5, 6), {}),
    "matmul": (torch.matmul, TOKENS, (6, 5), {}),
    "several calls an image": (F.conv2d, X.reshape(6, 6, 4, 9), (5, 6, 3, 3), {}),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("call", CALLS)
def test_an_output_is_its_weights_times_its_patch(call):
    function, x, shape, options = CALLS[call]
    weight, seen, images = normal(*shape, seed=1), [], 3
    with Watch({"w": weight}, on_output=lambda product, y: seen.append((product, y))):
        function(x, weight, **options)
    product, y = seen[0]
    count = output_positions(product, y, images)
    image, site = torch.arange(images).repeat_interleave(count), torch.arange(count).repeat(images)
    found = patches(product, y, images, image, site)
    by_group = matrix(product).unflatten(0, (found.shape[1], -1))
    outputs = torch.einsum("rgit,goit->rgo", found, by_group).flatten(1)
    torch.testing.assert_close(outputs.view(images, count, -1).transpose(1, 2), product.outputs(y, images))


# the statistic


def outputs_of(model, name, data):
    """Outputs of a layer without its bias, [images, positions · channels]."""
    seen = []
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda _m, _i, y: seen.append(y))
    with torch.no_grad():
        model(torch.cat([x for x, _ in data]))
    handle.remove()
    shift = module.bias if module.bias is not None else torch.zeros(seen[0].shape[1])
    return (seen[0] - shift.view(1, -1, *[1] * (seen[0].ndim - 2))).flatten(1).detach()


@pytest.mark.parametrize(
    ("kind", "where", "consumer"),
    [(Plain, "one", "conv2"), (Plain, "two", "fc"), (Grouped, "one", "conv2"), (Grouped, "two", "fc")],
)
def test_contributions_sum_to_sampled_outputs_without_bias(kind, where, consumer):
    model, data = made(kind), batches()
    found = collect(model, model.graph(), data, {"contribution"}).values["contribution"][where]
    outputs = outputs_of(model, consumer, data)
    assert found.shape == (model.graph().group(where).units, len(outputs) * POSITIONS)
    assert found.dtype == torch.float64
    totals = found.sum(dim=0).view(len(outputs), POSITIONS)
    nearest = (totals[:, :, None] - outputs[:, None]).abs().amin(dim=2)
    assert nearest.max() < 1e-12
    assert totals.std() > 0.01


def test_a_contribution_is_what_goes_with_the_unit():
    """Cutting the consumer's column changes every sampled total by minus the contribution."""
    model, data = made(Functional), batches()
    graph = model.graph()
    before = collect(model, graph, data, {"contribution"}).values["contribution"]["hidden"]
    with torch.no_grad():
        model.second[:, 2] = 0.0
    after = collect(model, graph, data, {"contribution"}).values["contribution"]["hidden"]
    torch.testing.assert_close(after.sum(0), before.sum(0) - before[2])
    assert (after[2] == 0.0).all()


@pytest.mark.parametrize("kind", [Plain, Grouped, Functional])
def test_samples_do_not_depend_on_how_images_fall_into_batches(kind):
    model, data = made(kind), batches(count=4)
    whole = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    streamed = collect(model, model.graph(), data, {"contribution"}).values["contribution"]
    at_once = collect(model, model.graph(), whole, {"contribution"}).values["contribution"]
    for name in streamed:
        torch.testing.assert_close(streamed[name], at_once[name])


def test_several_consumers_and_calls_lie_side_by_side_in_every_image():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.make, self.read, self.other = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(4, 2)

        def forward(self, a, b):
            return torch.cat([self.read(self.make(a)), self.read(self.make(b)), self.other(self.make(a))], 1)

    model = made(Twice)
    members = (part("make.weight", 0, "out", 4), part("make.bias", 0, "out", 4))
    readers = (part("read.weight", 1, "in", 4), part("other.weight", 1, "in", 4))
    graph = graph_of(model, group("hidden", *members, *readers))
    a, b = normal(6, 3), normal(6, 3, seed=1)
    data = [((a, b), torch.zeros(6, dtype=torch.int64))]
    found = collect(model, graph, data, {"contribution"}).values["contribution"]["hidden"]
    totals = found.sum(dim=0).view(6, 3, POSITIONS).detach()
    parts = model(a, b) - torch.cat([model.read.bias, model.read.bias, model.other.bias])
    for call, outputs in enumerate(parts.detach().split([5, 5, 2], dim=1)):
        assert (totals[:, call, :, None] - outputs[:, None]).abs().amin(dim=2).max() < 1e-12
    halves = [((x[:3], y[:3]), t[:3]) for (x, y), t in data] + [((x[3:], y[3:]), t[3:]) for (x, y), t in data]
    torch.testing.assert_close(
        collect(model, graph, halves, {"contribution"}).values["contribution"]["hidden"], found
    )


@pytest.mark.parametrize("name", ["VggBn", "Sequence", "UpDown", "QkvNoNorm", "ChannelShuffle"])
def test_interior_groups_have_contributions_and_the_others_a_reason(name):
    model, inputs = NETS[name]()
    graph = traced(name)
    found = [run(t, model, graph, [(inputs, None)]) for t in tasks(graph, {"contribution"}, [(inputs, None)])]
    there = set().union(*(values["contribution"] for values in found))
    assert there == {g.name for g in graph.groups if why_not(thinet, g, graph) is None}
    for values in found:
        for where, tensor in values["contribution"].items():
            assert len(tensor) == graph.group(where).units
            assert tensor.isfinite().all()
            assert tensor.any()


def test_groups_to_which_it_does_not_apply_say_why():
    graph = traced("UpDown")
    reasons = {why_not(lasso, g, graph) for g in graph.groups}
    assert "is read by the transposed convolution 'up2.weight'" in reasons
    graph = traced("ResNetOptionA")
    fitting = {"thinet", "thinet_add", "lasso", "random_dcp"}
    for where, names in available(graph).items():
        several = len(producers(graph.group(where), graph.shapes)) > 1
        assert fitting & set(names) == (set() if several else fitting)


def test_a_weight_that_no_call_takes_is_named():
    class Hidden(Functional):
        def forward(self, x):
            return x.flatten(1)[:, :6] @ self.first.T @ (2 * self.second).T

    model = made(Hidden)
    with pytest.raises(PrunefrontError, match=r"'second'.*'hidden'"):
        collect(model, model.graph(), batches(), {"contribution"})


# criteria


@settings(max_examples=30, deadline=None)
@given(units=st.integers(1, 8), columns=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_greedy_removal_takes_the_smallest_step_and_is_no_better_than_the_best_subset(units, columns, seed):
    x = normal(units, columns, seed=seed)
    order = removal_turns(x @ x.T).argsort().tolist()
    for count in range(1, units + 1):
        here = error_without(x, order[:count])
        steps = [error_without(x, [*order[: count - 1], c]) for c in order[count - 1 :]]
        assert here == pytest.approx(min(steps), rel=1e-6, abs=1e-9)
        best = min(error_without(x, going) for going in itertools.combinations(range(units), count))
        assert here >= best - 1e-9


@settings(max_examples=20, deadline=None)
@given(units=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_greedy_removal_is_exact_for_orthogonal_contributions(units, seed):
    x = torch.linalg.qr(normal(9, units, seed=seed))[0].T * normal(units, 1, seed=seed + 1)
    scores = thinet(view(x))
    order = scores.argsort().tolist()
    for count in range(1, units + 1):
        best = min(error_without(x, going) for going in itertools.combinations(range(units), count))
        assert error_without(x, order[:count]) == pytest.approx(best)
    assert order == x.norm(dim=1).argsort().tolist()
    assert order == thinet_add(view(x)).argsort().tolist()


@settings(max_examples=30, deadline=None)
@given(units=st.integers(1, 8), columns=st.integers(9, 14), seed=st.integers(0, 2**32))
def test_every_addition_lowers_the_least_squares_residual_most(units, columns, seed):
    x = normal(units, columns, seed=seed)
    target = x.sum(dim=0)

    def residual(kept):
        fitted = torch.linalg.lstsq(x[kept].T, target[:, None], driver="gelsd").solution
        return float((target - (x[kept].T @ fitted)[:, 0]).square().sum())

    order = addition_turns(x @ x.T).argsort().tolist()
    for count in range(1, units + 1):
        best = min(residual([*order[: count - 1], c]) for c in order[count - 1 :])
        assert residual(order[:count]) == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_addition_passes_over_what_the_chosen_ones_say_already():
    """The unit with the second largest contribution repeats the first at another scale."""
    a, b = normal(50), normal(50, seed=1)
    x = torch.stack([3 * a, 2 * a, 0.5 * b, torch.zeros(50, dtype=torch.float64)])
    assert thinet_add(view(x)).argsort(descending=True).tolist() == [0, 2, 1, 3]
    assert thinet(view(x)).argsort(descending=True).tolist() == [0, 1, 2, 3]


def test_units_that_cannot_be_told_apart_share_their_score():
    x = normal(7, 20)
    x[5], x[3] = x[0] * (1 + 1e-12), 0.0
    x[6] = 0.0
    for score in (thinet, thinet_add, lasso):
        scores = score(view(x))
        assert scores[5] == scores[0]
        assert scores[6] == scores[3] == scores.min()


@settings(max_examples=30, deadline=None)
@given(
    units=st.integers(2, 8), columns=st.integers(1, 30), keep=st.integers(1, 7), seed=st.integers(0, 2**32)
)
def test_the_residual_of_the_rescaled_is_at_right_angles_to_what_is_kept(units, columns, keep, seed):
    x = normal(units, columns, seed=seed)
    x[-1] = x[0]  # as many solutions as one likes
    kept = sorted({u % units for u in range(seed, seed + keep)})
    scale = rescale(x, kept)
    residual = x.sum(dim=0) - x[kept].T @ scale
    assert (x[kept] @ residual).abs().max() < 1e-8 * x.square().sum()
    if len(kept) == units:
        torch.testing.assert_close(scale, torch.ones(units, dtype=torch.float64))


def test_a_kept_unit_takes_over_for_its_scaled_twin():
    a, b = normal(20), normal(20, seed=1)
    x = torch.stack([a, 2 * a, b, torch.zeros(20, dtype=torch.float64)])
    torch.testing.assert_close(rescale(x, [0, 2, 3]), torch.tensor([3.0, 1.0, 1.0]).double())


@pytest.mark.parametrize("score", [thinet, thinet_add, lasso])
def test_planted_subset_is_found(score):
    """The outputs depend on three of ten units only; the others read the same inputs with weights near zero."""
    x = normal(10, 200)
    x[[0, 1, 2, 4, 6, 7, 8]] *= 0.03
    assert set(score(view(x)).topk(3).indices.tolist()) == {3, 5, 9}


@settings(max_examples=30, deadline=None)
@given(units=st.integers(1, 8), seed=st.integers(0, 2**32), share=st.floats(0.05, 1.5))
def test_an_orthonormal_design_gives_the_soft_threshold(units, seed, share):
    m = 12
    z = torch.linalg.qr(normal(m, units, seed=seed))[0].numpy() * m**0.5  # ZᵀZ/m = 1
    y = normal(m, seed=seed + 1).numpy()
    meets = z.T @ y / m
    penalty = share * np.abs(meets).max()
    (beta,) = path(z.T @ z / m, meets, [penalty])
    np.testing.assert_allclose(beta, np.sign(meets) * np.maximum(np.abs(meets) - penalty, 0), atol=1e-9)
    assert share < 1.0 or not beta.any()


@settings(max_examples=30, deadline=None)
@given(units=st.integers(1, 8), columns=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_the_path_fulfils_the_optimality_conditions(units, columns, seed):
    z = normal(columns, units, seed=seed).numpy()
    y = normal(columns, seed=seed + 1).numpy()
    second, meets = z.T @ z / columns, z.T @ y / columns
    penalties = np.abs(meets).max() * np.array([1.0 + 1e-12, 0.7, 0.4, 0.2])
    betas = list(path(second, meets, penalties))
    assert not betas[0].any()  # λ ≥ max|Zᵀy|/m
    for penalty, beta in zip(penalties, betas, strict=True):
        slope, least = meets - second @ beta, 1e-3 * penalties[0]
        assert (np.abs(slope) <= penalty + least).all()
        assert np.abs((slope - penalty * np.sign(beta))[beta != 0]).max(initial=0.0) <= least


def test_lasso_scores_are_the_penalties_at_which_units_enter():
    """Orthogonal contributions of norms n enter at n²/m, the largest of which nothing survives."""
    m, norms = 6, torch.tensor([3.0, 1.0, 2.0, 0.0]).double()
    x = torch.eye(m, dtype=torch.float64)[:4] * norms[:, None]
    scores = lasso(view(x))
    entered = norms.square() / m
    ratio = 1e3 ** (1 / 49)  # the grid's step
    assert (scores <= entered + 1e-12).all()
    assert (scores >= entered / ratio - 1e-12).all()


@settings(max_examples=30, deadline=None)
@given(units=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_units_that_never_enter_come_behind_those_that_do(units, columns, seed):
    x = normal(units, columns, seed=seed)
    scores = lasso(view(x))
    y = x.sum(dim=0)
    assert (scores >= 0.0).all()
    assert scores.max() <= float((x @ y).abs().max()) / columns * (1 + 1e-9)


def test_they_are_repaired_as_in_their_papers():
    kinds = {name: criteria[name].repair for name in ("thinet", "thinet_add", "lasso", "dcp", "random_dcp")}
    assert kinds == {
        "thinet": "rescale",
        "thinet_add": "rescale",
        "lasso": "refit",
        "dcp": "refit",
        "random_dcp": "refit",
    }
