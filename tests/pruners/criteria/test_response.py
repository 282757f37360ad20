import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.criteria.activations.nisp import nisp
from prunefront.pruners.statistics import collect
from prunefront.pruners.statistics.response import infinite_selection
from prunefront.pruners.units.view import UnitView
from tests.nets import NETS
from tests.pruners.fixtures import (
    CLASSES,
    Functional,
    Grouped,
    Plain,
    Residual,
    batches,
    graph_of,
    group,
    made,
    norm,
    part,
)
from tests.pruners.plans import traced


def response_of(model, data, graph=None):
    found = collect(model, graph or model.graph(), data, {"response"}, lambda y, _: y.square().mean())
    return found.values["response"]


# the final responses


@settings(max_examples=25)
@given(c=st.integers(1, 8), images=st.integers(3, 12), seed=st.integers(0, 2**32))
def test_infinite_selection_is_its_formula_and_its_series(c, images, seed):
    generator = np.random.default_rng(seed)
    features = generator.integers(0, 6, (images, c)).astype(float) + np.arange(images)[:, None] * 0.01 * (
        c > 2
    )
    features[:, 0] = np.arange(images)  # never constant; the rest have ties
    keep = features.std(0) > 0
    features = features[:, keep]
    size = features.shape[1]
    rho = np.array([[spearmanr(a, b).statistic for b in features.T] for a in features.T])
    spread = features.std(0)
    affinity = 0.5 * np.maximum(spread[:, None], spread) + 0.5 * (1 - np.abs(rho))
    r = 0.9 / np.abs(np.linalg.eigvalsh(affinity)).max()
    closed = np.linalg.inv(np.eye(size) - r * affinity).sum(1) - 1
    found = infinite_selection(torch.tensor(features))
    np.testing.assert_allclose(found, closed / closed.max())
    series, power = np.zeros(size), np.ones(size)
    for _ in range(400):
        power = r * affinity @ power
        series += power
    np.testing.assert_allclose(found, series / series.max())


def test_constant_features_gain_nothing_by_being_different():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    features[:, 2] = 3.0
    scores = infinite_selection(features)
    assert scores.argmin() == 2
    assert torch.equal(infinite_selection(torch.ones(5, 3)), torch.ones(3, dtype=torch.float64))


# propagation


class Linear(nn.Module):
    """Three linear maps and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(48, 6, bias=False), nn.Linear(6, 4, bias=False)
        self.three = nn.Linear(4, CLASSES, bias=False)

    def forward(self, x):
        return self.three(self.two(self.one(x.flatten(1))))

    def graph(self):
        return graph_of(
            self,
            group("one", part("one.weight", 0, "out", 6), part("two.weight", 1, "in", 6)),
            group("two", part("two.weight", 0, "out", 4), part("three.weight", 1, "in", 4)),
        )


def test_a_linear_network_gives_products_of_absolute_weights():
    model, data = made(Linear), batches(5)
    found = response_of(model, data)
    features = model.two(model.one(torch.cat([x for x, _ in data]).flatten(1))).detach()
    s = infinite_selection(features)
    torch.testing.assert_close(found["two"], s)
    torch.testing.assert_close(found["one"], model.two.weight.detach().abs().T @ s)
    view = UnitView(torch.zeros(6, 0), response=found["one"])
    assert torch.equal(nisp(view), found["one"])


def test_uniform_scores_and_weights_that_are_not_negative_give_column_sums():
    model, (x, y) = made(Linear), batches(1)[0]
    with torch.no_grad():
        model.two.weight.abs_()
    found = response_of(
        model, [(x[:1].expand(6, -1, -1, -1), y[:1].expand(6))]
    )  # constant features: all ones
    torch.testing.assert_close(found["one"], model.two.weight.detach().sum(0))


def absolute(model):
    """A copy with |W|, no bias, and norms that only scale, by |γ|/√(σ² + ε)."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.abs_()
                module.running_mean.zero_()
                module.bias.zero_()
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.abs_()
                if module.bias is not None:
                    module.bias.zero_()
    return model


def features_of(model, module, data):
    seen = []
    with torch.no_grad():
        handle = module.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
        model(torch.cat([x for x, _ in data]))
        handle.remove()
    return seen[0]


def slopes(model, classifier, s, readers):
    """Derivative of s · (inputs of the classifier) at each reader's input, through it alone, summed over space."""
    inputs, final = {}, []

    def alias(name):
        def look(_module, arguments):
            inputs[name] = arguments[0].view_as(arguments[0])
            return (inputs[name],)

        return look

    for name in readers:
        model.get_submodule(name).register_forward_pre_hook(alias(name))
    classifier.register_forward_pre_hook(lambda _m, arguments: final.append(arguments[0]))
    model(torch.ones(1, 3, 4, 4, dtype=torch.float64))  # positive everywhere, so that ReLUs change nothing
    found = torch.autograd.grad((final[0] * s).sum(), [inputs[n] for n in readers])
    return {n: f[0].view(len(f[0]), -1).sum(1) for n, f in zip(readers, found, strict=True)}


def test_norms_convolutions_and_flattened_inputs():
    model, data = made(Plain), batches(5)
    found = response_of(model, data)
    s = infinite_selection(features_of(model, model.fc, data))
    twin = absolute(model)
    torch.testing.assert_close(found["one"], slopes(twin, twin.fc, s, ["conv2"])["conv2"])
    torch.testing.assert_close(found["two"], s.view(4, 4).sum(1))


def test_scores_are_copied_to_every_branch_and_summed_over_consumers():
    model, data = made(Residual), batches(5)
    found = response_of(model, data)
    s = infinite_selection(features_of(model, model.fc, data))
    twin = absolute(model)
    expected = slopes(twin, twin.fc, s, ["conv1", "conv2"])
    torch.testing.assert_close(found["inner"], expected["conv2"])
    torch.testing.assert_close(found["stream"], expected["conv1"] + s)


def test_conv_groups_and_tied_channels():
    model, data = made(Grouped), batches(5)
    found = response_of(model, data)
    s = infinite_selection(features_of(model, model.fc, data))
    twin = absolute(model)
    torch.testing.assert_close(found["one"], slopes(twin, twin.fc, s, ["conv2"])["conv2"].view(2, 4).sum(0))
    torch.testing.assert_close(found["two"], s.view(2, 2).sum(0))


def test_tokens_are_positions():
    model, data = made(Functional), batches(5)
    x = torch.cat([x for x, _ in data])
    tokens = x.flatten(2).unflatten(2, (-1, 2)).transpose(1, 2).flatten(2)
    s = infinite_selection(F.linear(tokens, model.first, model.shift).mean(1).detach())
    torch.testing.assert_close(response_of(model, data)["hidden"], s * tokens.shape[1])


class Pooled(nn.Module):
    """conv → conv → norm → (pooling) → classifier."""

    def __init__(self, pool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 1)
        self.conv, self.bn, self.fc = nn.Conv2d(5, 6, 1), nn.BatchNorm2d(6), nn.Linear(6, CLASSES)
        self.pool = pool

    def forward(self, x):
        return self.fc(self.pool(self.bn(self.conv(self.first(x)))))

    def graph(self):
        return graph_of(
            self,
            group(
                "zero",
                part("first.weight", 0, "out", 5),
                part("first.bias", 0, "out", 5),
                part("conv.weight", 1, "in", 5),
            ),
            group(
                "one",
                part("conv.weight", 0, "out", 6),
                part("conv.bias", 0, "out", 6),
                *norm("bn", 6),
                part("fc.weight", 1, "in", 6),
            ),
        )


def overwritten(x):
    y = x * -2.0
    y.add_(torch.ones(6, 1, 1, dtype=x.dtype))  # a bias
    y += x
    y.sub_(x, alpha=3)
    y.relu_()
    return (1.0 - y).mean((2, 3)) / 2.0


POOLS = {  # what reaches the sum over a channel's 16 positions, from each of them
    "global average": (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), 1.0),
    "global maximum": (lambda x: F.adaptive_max_pool2d(x, 1).flatten(1), 16.0),
    "maximum of axes": (lambda x: x.amax((2, 3)), 16.0),
    "windows": (lambda x: F.max_pool2d(x, 2).mean((2, 3)), 4.0),
    "overlapping windows": (lambda x: F.max_pool2d(x, 3, stride=1).sum((2, 3)), 36.0),
    "padded windows": (lambda x: F.max_pool2d(x, 3, stride=1, padding=1).sum((2, 3)), 100.0),
    "average windows": (lambda x: F.avg_pool2d(x, 2).mean((2, 3)), 1.0),
    "1-d windows": (lambda x: F.max_pool1d(x.flatten(2), 4).sum(2), 16.0),
    "rectifiers": (lambda x: F.gelu(F.silu(F.leaky_relu(-F.elu(x)))).mean((2, 3)), 1.0),
    "branches": (lambda x: (torch.cat([x, x], 2) - 3.0).chunk(2, 2)[1].sub(x).mean((2, 3)), 2.0),
    "in place": (overwritten, (2.0 + 1.0 + 3.0) / 2.0),
    "padded and turned": (lambda x: F.pad(x, (1, 2)).flip(3).roll(1, 2)[:, :, 1:].sum((2, 3)), 12.0),
    "resized": (lambda x: F.interpolate(x, scale_factor=2).mean((2, 3)), 1.0),
}


@pytest.mark.parametrize("name", POOLS)
def test_operators_have_the_rules_of_the_paper(name):
    pool, total = POOLS[name]
    torch.manual_seed(0)
    model, data = Pooled(pool).double().eval(), batches(5)
    with torch.no_grad():
        model.bn.weight.normal_()
        model.bn.running_var.uniform_(0.5, 2.0)
    s = infinite_selection(features_of(model, model.fc, data))
    scale = (model.bn.weight.abs() / (model.bn.running_var + model.bn.eps).sqrt()).detach()
    found, weight = response_of(model, data), model.conv.weight.detach()[:, :, 0, 0]
    torch.testing.assert_close(found["one"], s)
    torch.testing.assert_close(found["zero"], weight.abs().T @ (s * scale * total))


def test_a_classifier_that_is_a_convolution_scores_every_position():
    model, inputs = NETS["RollFlip"]()
    model, data = model.double(), [(inputs[0].double(), None)]
    found = response_of(model, data, traced("RollFlip"))
    assert {g.name for g in traced("RollFlip").groups} == found.keys()
    assert all((scores > 0.0).all() for scores in found.values())


def test_a_weight_with_two_names_goes_by_that_of_the_graph():
    model, inputs = NETS["Shared"]()
    found = response_of(model, [(inputs, None)], traced("Shared"))
    assert {g.name for g in traced("Shared").groups} == found.keys()


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("SqueezeExcite", "sigmoid"),
        ("Gated", "sigmoid"),
        ("VisionTransformer", "layer_norm"),
        ("WindowAttention", "scaled_dot_product_attention"),
    ],
)
def test_an_operator_without_a_rule_is_named(name, operator):
    model, inputs = NETS[name]()
    with pytest.raises(PrunefrontError, match=f"operator '?torch.*{operator}.* no rule for propagating"):
        response_of(model, [(inputs, None)], traced(name))


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        (lambda x: (x * x).mean((2, 3)), r"two branches that both depend on the input \(a gate\)"),
        (lambda x: (1.0 / x).mean((2, 3)), "__rtruediv__"),
        (lambda x: (x @ x).mean((2, 3)), r"multiplies two branches.*\(attention\)"),
        (lambda x: F.max_pool2d(x, 2, ceil_mode=True).mean((2, 3)), "ceil_mode"),
        (lambda x: F.adaptive_max_pool2d(x, 2).mean((2, 3)), "adaptive max pooling to more than one place"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic").mean((2, 3)), "bicubic"),
        (lambda x: torch.einsum("nchw->nc", x), "einsum"),
        (lambda x: F.batch_norm(x, None, None, training=True).mean((2, 3)), "without running statistics"),
    ],
)
def test_what_has_no_rule_is_said(pool, said):
    with pytest.raises(PrunefrontError, match=said):
        response_of(Pooled(pool).double().eval(), batches(2))


def test_operators_after_the_final_responses_do_not_matter():
    class Soft(Plain):
        def forward(self, x):
            return super().forward(x).softmax(1).sigmoid()

    soft, plain = response_of(made(Soft), batches(5)), response_of(made(Plain), batches(5))
    assert all(torch.equal(soft[name], plain[name]) for name in plain)
