import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.units import masks
from prunefront.pruners.units.masks import erdos_renyi_kernel, keep_largest, n_of_m, whole_counts
from tests.nets import NETS
from tests.pruners.fixtures import MODELS, Functional, made
from tests.pruners.plans import traced
from tests.pruners.training import density

SHAPES = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(1, 5)),
)


def scores_of(seed: int, levels: int) -> dict[str, torch.Tensor]:
    """Tensors with many ties."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (4, 3, 3), "b": (7,), "c": (2, 5)}
    return {name: torch.randint(levels, shape, generator=generator).float() for name, shape in shapes.items()}


@given(seed=st.integers(0, 999), levels=st.integers(1, 9), density=st.floats(0.001, 1.0))
def test_keep_largest_counts_exactly_and_breaks_ties_by_index(seed, levels, density):
    scores = scores_of(seed, levels)
    kept = keep_largest(scores, density)
    flat = torch.cat([t.flatten() for t in scores.values()]).tolist()
    number = math.ceil(round(density * len(flat), 9))
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:number]
    stays = torch.cat([kept[name].flatten() for name in scores])
    assert set(stays.nonzero().flatten().tolist()) == set(order)
    for name, mask in keep_largest(scores, density, globally=False).items():
        assert int(mask.sum()) == math.ceil(round(density * mask.numel(), 9))
        assert mask.shape == scores[name].shape


def test_a_second_score_decides_among_equals_only():
    first = {"a": torch.tensor([1.0, 0.0, 0.0, 0.0])}
    second = {"a": torch.tensor([0.0, 1.0, 3.0, 2.0])}
    assert keep_largest(first, 0.5, ties=second)["a"].tolist() == [True, False, True, False]


@given(seed=st.integers(0, 999), density=st.floats(0.15, 1.0))
def test_a_floor_keeps_every_tensor_alive_at_the_same_total(seed, density):
    scores = {
        name: k * t for k, (name, t) in enumerate(scores_of(seed, 9).items())
    }  # the first has nothing to offer
    free, kept = keep_largest(scores, density), keep_largest(scores, density, floor=0.1)
    assert sum(int(m.sum()) for m in kept.values()) == sum(int(m.sum()) for m in free.values())
    for name, mask in kept.items():
        assert int(mask.sum()) >= math.ceil(0.1 * density * mask.numel()) >= 1
        if not mask.all():
            assert scores[name][mask].min() >= scores[name][~mask].max()
    with pytest.raises(PrunefrontError, match="leaves 1 weights to 3 layers"):
        keep_largest(scores, 0.01, floor=0.1)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01])
def test_density_has_a_range(density):
    with pytest.raises(PrunefrontError, match=r"in \(0, 1\]"):
        keep_largest({"a": torch.ones(3)}, density)
    with pytest.raises(PrunefrontError, match=r"in \(0, 1\]"):
        erdos_renyi_kernel({"a": (3, 3)}, density)


def test_a_count_is_not_off_by_a_rounding_error():
    assert masks.kept_count(0.07, 100) == 7  # 0.07 · 100 is a little above 7
    assert masks.kept_count(0.1, 1000) == 100


@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=8),
    density=st.floats(0.01, 1.0),
)
def test_erdos_renyi_kernel_makes_the_density_and_follows_its_law(shapes, density):
    named = {str(i): shape for i, shape in enumerate(shapes)}
    size = {name: math.prod(shape) for name, shape in named.items()}
    found = erdos_renyi_kernel(named, density)
    assert sum(found[n] * size[n] for n in named) == pytest.approx(density * sum(size.values()))
    assert all(0 < share <= 1 + 1e-9 for share in found.values())
    raw = {n: sum(named[n]) / size[n] for n in named}
    epsilons = [found[n] / raw[n] for n in named if found[n] < 1 - 1e-9]
    if epsilons:  # one ε for all; what is full would be more than full
        assert epsilons == pytest.approx([epsilons[0]] * len(epsilons))
        assert all(epsilons[0] * raw[n] >= 1 - 1e-9 for n in named if found[n] >= 1)
    whole = whole_counts(named, found)
    assert 0 <= sum(whole.values()) - density * sum(size.values()) < 1 + 1e-6
    assert all(abs(whole[n] - found[n] * size[n]) < 1 and whole[n] <= size[n] for n in named)


def test_erdos_renyi_kernel_by_hand():
    # ε (2+2)/4 · 4 + ε (10+10)/100 · 100 = 24 ε = 0.5 · 104, so that the first is full and ε = 48 / 20 for the second
    found = erdos_renyi_kernel({"small": (2, 2), "large": (10, 10)}, 0.5)
    assert found == {"small": 1.0, "large": pytest.approx(0.48)}


@given(
    seed=st.integers(0, 99),
    rows=st.integers(1, 5),
    teams=st.integers(1, 4),
    m=st.integers(1, 5),
    data=st.data(),
)
def test_n_of_m_keeps_the_largest_of_every_group_along_the_inputs(seed, rows, teams, m, data):
    n = data.draw(st.integers(1, m))
    weight = torch.randn(rows, teams * m, 3, 2, generator=torch.Generator().manual_seed(seed))
    mask = n_of_m(weight, n, m)
    for j, team, y, x in (
        torch.cartesian_prod(*map(torch.arange, (rows, teams, 3, 2))).reshape(-1, 4).tolist()
    ):
        part = slice(team * m, team * m + m)
        kept, size = mask[j, part, y, x], weight[j, part, y, x].abs()
        assert int(kept.sum()) == n
        assert n == m or size[kept].min() > size[~kept].max()
    turned = n_of_m(weight.transpose(0, 1), n, m, axis=0)
    assert torch.equal(turned, mask.transpose(0, 1))


def test_n_of_m_with_ties_and_without_groups():
    assert n_of_m(torch.zeros(1, 8), 2, 4).tolist() == [[True, True, False, False] * 2]
    assert n_of_m(torch.ones(2, 6), 2, 4).all()
    with pytest.raises(PrunefrontError, match="5 of 4"):
        n_of_m(torch.ones(2, 8), 5, 4)


@pytest.mark.parametrize("kind", MODELS)
def test_the_weights_of_a_graph_by_hand(kind):
    model = made(kind)
    found = masks.weights(model, model.graph())
    assert set(found) == {n for n, p in model.named_parameters() if p.ndim > 1}
    assert density(found.values()) == 1.0


def test_weights_are_those_of_products_alone():
    model, _ = NETS["VisionTransformer"]()
    found = masks.weights(model, traced("VisionTransformer"))
    others = {n for n, p in model.named_parameters() if p.ndim > 1} - set(found)
    assert others  # a class token and a position embedding have several axes too
    assert all(not n.endswith("weight") for n in others)
    frozen = made(Functional).requires_grad_(False)
    with pytest.raises(PrunefrontError, match="trains no weight"):
        masks.weights(frozen, frozen.graph())


@pytest.mark.parametrize("name", ["UpDown", "Mlp", "GroupedConv", "MobileNet", "Sequence"])
def test_the_output_axis_is_that_of_the_module(name):
    model, _ = NETS[name]()
    graph = traced(name)
    for weight in masks.weights(model, graph):
        module = masks.owner(model, weight)
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and weight.endswith(".weight"):
            transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
            assert masks.output_axis(model, graph, weight) == int(
                transposed and module.groups == 1
            )  # depthwise: 0
