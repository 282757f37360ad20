"""The contract of every granularity within layers, over the registry: masked == compact, counts, costs, round trip."""

from itertools import pairwise
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.granularities import LayerGranularity, layer_granularities
from prunefront.pruners.graph.layers import Layer

NAMES = sorted(layer_granularities)


@st.composite
def layers(draw: Any, *, fuses_norm: bool = False) -> tuple[Layer, nn.Module, Tensor]:
    """A convolution or linear layer with odd widths, strides, paddings and dilations, and an input for it."""
    torch.manual_seed(draw(st.integers(0, 99)))
    bias = draw(st.booleans())
    if draw(st.integers(0, 3)) == 0 and not fuses_norm:
        inputs, outputs = draw(st.integers(1, 17)), draw(st.integers(1, 9))
        linear = nn.Linear(inputs, outputs, bias)
        return Layer("l.weight", "l", (outputs, inputs), 1, bias=bias), linear, torch.randn(3, inputs)
    groups = draw(st.sampled_from([1, 1, 1, 2, 4]))
    inputs, outputs = groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 9))
    kernel = draw(st.sampled_from([(3, 3), (3, 3), (1, 1), (5, 5), (1, 3)]))
    stride, dilation = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2]))
    padding = draw(st.integers(0, 2))
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias)
    x = torch.randn(2, inputs, 11, 10)
    positions = prod(conv(x).shape[2:])
    module: nn.Module = conv
    if fuses_norm:
        norm = nn.BatchNorm2d(outputs)
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias, 0.0, 0.3)
        norm.running_mean.normal_(0.0, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
        module = nn.Sequential(conv, norm)
    layer = Layer(
        "l.weight",
        "l",
        tuple(conv.weight.shape),
        positions,
        groups,
        (stride, stride),
        bias,
        "n" if fuses_norm else "",
        reads=True,
        writes=True,
    )
    return layer, module.eval(), x


def drawn(data: Any, granularity: LayerGranularity) -> tuple[Layer, nn.Module, Tensor, int, Any]:
    """A layer that takes the granularity, a count and a pattern by random scores."""
    layer, module, x = data.draw(
        layers(fuses_norm=granularity.fuses_norm).filter(lambda found: granularity.why_not(found[0]) is None)
    )
    counts = granularity.counts(layer)
    count = counts[data.draw(st.integers(0, len(counts) - 1))]
    weight = (module[0] if granularity.fuses_norm else module).weight.detach().double()
    scores = torch.rand(len(granularity.units(layer, weight)), dtype=torch.float64)
    return layer, module, x, count, granularity.pattern(layer, count, scores)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(data=st.data())
def test_masked_equals_compact(name: str, data: Any) -> None:
    granularity = layer_granularities[name]
    layer, module, x, count, pattern = drawn(data, granularity)
    before = {k: t.clone() for k, t in module.state_dict().items()}
    masked = granularity.masked(layer, count, pattern, module).eval()
    compact = granularity.compact(layer, count, pattern, module).eval()
    with torch.no_grad():
        expected, got = masked(x), compact(x)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(t, before[k]) for k, t in module.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(data=st.data())
def test_the_state_dict_is_what_parts_says_and_restores_bit_for_bit(name: str, data: Any) -> None:
    granularity = layer_granularities[name]
    layer, module, x, count, pattern = drawn(data, granularity)
    compact = granularity.compact(layer, count, pattern, module).eval()
    state, parts = compact.state_dict(), granularity.parts(layer, count)
    assert {n: tuple(t.shape) for n, t in state.items()} == {n: p.shape for n, p in parts.items()}
    for key, part in parts.items():
        if part.kind == "index":
            assert state[key].dtype == torch.int64
            assert 0 <= int(state[key].min()) <= int(state[key].max()) < part.below
    restored = granularity.restore(layer, count, state, module).eval()
    assert restored.state_dict().keys() == state.keys()
    with torch.no_grad():
        assert torch.equal(restored(x), compact(x))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(data=st.data())
def test_counts_ascend_and_cost_less(name: str, data: Any) -> None:
    granularity = layer_granularities[name]
    layer, *_ = drawn(data, granularity)
    counts = list(granularity.counts(layer))
    assert counts == sorted(set(counts))
    kept = [0.0, *(granularity.kept_share(layer, c) for c in counts), 1.0]
    assert all(a < b for a, b in pairwise(kept))
    macs = [granularity.macs(layer, c) for c in counts]
    assert macs == sorted(macs)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(data=st.data())
def test_a_compact_layer_trains(name: str, data: Any) -> None:
    granularity = layer_granularities[name]
    layer, module, x, count, pattern = drawn(data, granularity)
    compact = granularity.compact(layer, count, pattern, module).train()
    optimizer = torch.optim.SGD(compact.parameters(), 0.1)
    compact(x).square().mean().backward()
    optimizer.step()
    state = compact.eval().state_dict()
    assert all(t.isfinite().all() for t in state.values())
    assert {n: tuple(t.shape) for n, t in state.items()} == {
        n: p.shape for n, p in granularity.parts(layer, count).items()
    }


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(data=st.data())
def test_an_index_out_of_range_is_refused(name: str, data: Any) -> None:
    granularity = layer_granularities[name]
    layer, module, _, count, pattern = drawn(data, granularity)
    state = granularity.compact(layer, count, pattern, module).state_dict()
    for key, part in granularity.parts(layer, count).items():
        if part.kind == "index":
            for wrong in (part.below, -1):
                hostile = {**state, key: state[key].clone()}
                hostile[key].view(-1)[-1] = wrong
                with pytest.raises(PrunefrontError, match="layer 'l'"):
                    granularity.restore(layer, count, hostile, module)
