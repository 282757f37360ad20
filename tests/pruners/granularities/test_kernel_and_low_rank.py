"""Kernels in clusters of equal supports, and singular directions: what they promise, on worked examples."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.formats.onnx_export import check, export
from prunefront.pruners.granularities import LayerGranularity, layer_granularities
from prunefront.pruners.granularities.kernel import cluster_count, select_channels
from prunefront.pruners.graph.layers import Layer

KERNEL, LOW_RANK = layer_granularities["kernel"], layer_granularities["low_rank"]


def described(module: nn.Conv2d | nn.Linear, positions: int = 1) -> Layer:
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    return Layer("l.weight", "l", tuple(module.weight.shape), positions, groups, bias=module.bias is not None)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, kernel, **options).eval()


def norms(granularity: LayerGranularity, layer: Layer, weight: Tensor) -> Tensor:
    return granularity.units(layer, weight.detach().double()).norm(dim=1)


def compacted(granularity: LayerGranularity, module: nn.Conv2d | nn.Linear, count: int) -> nn.Module:
    """By the norms of its units."""
    layer = described(module)
    pattern = granularity.pattern(layer, count, norms(granularity, layer, module.weight))
    return granularity.compact(layer, count, pattern, module).eval()


@pytest.mark.parametrize("granularity", [KERNEL, LOW_RANK], ids=["kernel", "low_rank"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_paddings_of_every_kind_are_kept(granularity: LayerGranularity, mode: Any) -> None:
    module = conv(6, 5, padding="same", padding_mode=mode, dilation=2)
    layer, x = described(module), torch.randn(2, 6, 9, 8)
    pattern = granularity.pattern(layer, 3, norms(granularity, layer, module.weight))
    masked = granularity.masked(layer, 3, pattern, module)
    with torch.no_grad():
        torch.testing.assert_close(granularity.compact(layer, 3, pattern, module)(x), masked(x))
        assert not torch.allclose(masked(x), module(x), atol=1e-2)


# kernel


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Linear(4, 4), "is a linear layer"),
        (nn.Conv2d(4, 4, 3, groups=4), "has 4 conv groups"),
        (nn.Conv2d(4, 4, 1), "has 1×1 kernels"),
        (nn.Conv2d(1, 4, 3), "has a single input channel"),
        (nn.Conv2d(4, 1, 3), "has a single output channel"),
        (nn.Conv2d(2, 2, (1, 2)), None),
    ],
)
def test_kernels_exist_where_a_convolution_has_several_on_both_sides(
    module: nn.Conv2d | nn.Linear, reason: str | None
) -> None:
    found = KERNEL.why_not(described(module))
    assert found is None if reason is None else (found or "").startswith(reason)


def test_the_number_of_clusters_follows_the_outputs() -> None:
    found = {
        n: cluster_count(Layer("l.weight", "l", (n, 9, 3, 3), 1)) for n in (2, 5, 255, 256, 511, 512, 2048)
    }
    assert found == {2: 2, 5: 2, 255: 2, 256: 4, 511: 4, 512: 8, 2048: 8}


def test_padding_rows_are_counted_and_stored() -> None:
    """Five outputs in two clusters of three rows, one of which is padding."""
    module = conv(4, 5)
    layer = described(module, positions=7)
    assert KERNEL.macs(layer, 2) == 6 * 2 * 9 * 7
    assert KERNEL.kept_share(layer, 2) == 2 / 4
    shapes = {name: part.shape for name, part in KERNEL.parts(layer, 2).items()}
    assert shapes == {"layer.weight": (6, 2, 3, 3), "layer.bias": (6,), "index": (4,), "order": (5,)}
    state = compacted(KERNEL, module, 2).state_dict()
    (padding,) = set(range(6)) - set(state["order"].tolist())
    assert not state["layer.weight"][padding].any()
    assert not state["layer.bias"][padding].any()


def test_a_block_diagonal_layer_becomes_a_plain_grouped_convolution() -> None:
    module, grouped = conv(8, 6, padding=1), conv(8, 6, padding=1, groups=2)
    with torch.no_grad():
        module.weight.zero_()
        module.weight[:3, :4], module.weight[3:, 4:] = grouped.weight[:3], grouped.weight[3:]
    made = compacted(KERNEL, module, 4)
    state, x = made.state_dict(), torch.randn(2, 8, 5, 5)
    assert state["index"].tolist() == list(range(8))
    assert state["order"].tolist() == list(range(6))
    assert torch.equal(state["layer.weight"], grouped.weight)
    with torch.no_grad():
        assert torch.equal(made(x), made.layer(x))  # without selections
        torch.testing.assert_close(made(x), module(x))


def planted(outputs: int, inputs: int, d: int, noise: float) -> tuple[Layer, Tensor, Tensor]:
    """A layer, scores [outputs, inputs] and which are high: d random columns for each of P equal sets of rows."""
    generator = torch.Generator().manual_seed(outputs)
    layer = Layer("l.weight", "l", (outputs, inputs, 3, 3), 1)
    p = cluster_count(layer)
    supports = torch.rand(p, inputs, generator=generator).argsort(dim=1)[:, :d]
    high = torch.zeros(p, inputs, dtype=torch.bool).scatter_(1, supports, True)
    high = high[torch.randperm(outputs, generator=generator) % p]
    table = noise * torch.rand(outputs, inputs, generator=generator, dtype=torch.float64)
    return layer, table + high * (1 + torch.rand(outputs, inputs, generator=generator)), high


def kept_kernels(layer: Layer, pattern: Any) -> Tensor:
    """[outputs, inputs], by a dense layer of ones."""
    module = nn.Conv2d(layer.inputs, layer.outputs, 3, bias=False)
    nn.init.ones_(module.weight)
    d = len(pattern["index"]) // cluster_count(layer)
    masked = KERNEL.masked(layer, d, pattern, module)
    assert isinstance(masked.weight, Tensor)
    return masked.weight.detach()[:, :, 0, 0].bool()


@pytest.mark.parametrize(
    ("outputs", "inputs", "d"), [(10, 8, 2), (64, 48, 12), (256, 96, 48), (512, 512, 128)]
)
@pytest.mark.parametrize("noise", [0.0, 0.9, 2.0])
def test_planted_clusters_are_found(outputs: int, inputs: int, d: int, noise: float) -> None:
    """Exactly where the noise stays below what is planted; otherwise far better than clusters at random."""
    layer, table, high = planted(outputs, inputs, d, noise)
    kept = kept_kernels(layer, KERNEL.pattern(layer, d, table.flatten()))
    assert (kept.sum(1) == d).all()
    assert len(kept.unique(dim=0)) <= cluster_count(layer)
    if noise < 1:
        assert torch.equal(kept, high)
    random = torch.randperm(outputs, generator=torch.Generator().manual_seed(1)) % cluster_count(layer)
    assert float((table * kept).sum()) > 1.1 * _kept_score(table, random, d)


@given(
    st.integers(2, 9), st.integers(2, 9), st.integers(0, 99), st.sampled_from(["equal", "coarse", "signed"])
)
def test_the_kept_score_is_never_below_that_of_consecutive_rows(
    outputs: int, inputs: int, seed: int, kind: str
) -> None:
    """Nor do ties, negative scores or widths that no power of two divides make the form of the pattern wrong."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    table = {"equal": table * 0, "coarse": table.abs().round(), "signed": table}[kind]
    layer = Layer("l.weight", "l", (outputs, inputs, 3, 3), 1)
    d = 1 + seed % (inputs - 1)
    pattern = KERNEL.pattern(layer, d, table.flatten())
    kept = kept_kernels(layer, pattern)
    rows = torch.arange(outputs) // -(-outputs // cluster_count(layer))
    assert float((table * kept).sum()) >= _kept_score(table, rows, d) - 1e-9
    assert (kept.sum(1) == d).all()
    again = KERNEL.pattern(layer, d, table.flatten())
    assert all(torch.equal(pattern[name], again[name]) for name in pattern)


def _kept_score(table: Tensor, members: Tensor, d: int) -> float:
    """Returns the score of given clusters, each with the d inputs that are best for it."""
    sums = [table[members == m].sum(0).topk(d).values.sum() for m in members.unique()]
    return float(torch.stack(sums).sum())


@pytest.mark.parametrize(
    ("key", "place", "value", "message"),
    [("index", 1, 0, "must ascend within 4"), ("order", 0, 4, "must be distinct rows of the 6")],
)
def test_a_pattern_of_another_form_is_refused(key: str, place: int, value: int, message: str) -> None:
    """An input that is read twice, and a row that would be two outputs, are within their ranges all the same."""
    module = conv(4, 5)
    state = compacted(KERNEL, module, 2).state_dict()
    state["order"] = torch.arange(5)
    KERNEL.restore(described(module), 2, state, module)
    state[key] = state[key].clone()
    state[key][place] = state[key][0] if key == "index" else value
    with pytest.raises(PrunefrontError, match=f"layer 'l': .*{message}"):
        KERNEL.restore(described(module), 2, state, module)


def test_loading_another_pattern_brings_the_selections_back() -> None:
    module, x = conv(8, 6), torch.randn(2, 8, 5, 5)
    layer = described(module)
    blocks = torch.zeros(6, 8, dtype=torch.float64)
    blocks[:3, :4] = blocks[3:, 4:] = 1.0
    made = KERNEL.compact(layer, 4, KERNEL.pattern(layer, 4, blocks.flatten()), module)
    other = KERNEL.compact(layer, 4, KERNEL.pattern(layer, 4, blocks.roll((1, 1), (0, 1)).flatten()), module)
    with torch.no_grad():
        assert not torch.allclose(made(x), other(x))
        made.load_state_dict(other.state_dict())
        assert torch.equal(made(x), other(x))


def test_channels_last_stays_channels_last() -> None:
    x = torch.randn(3, 7, 4, 5).contiguous(memory_format=torch.channels_last)
    index = torch.tensor([5, 0, 0, 6])
    found = select_channels(x, index)
    assert torch.equal(found, x.index_select(1, index))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert select_channels(x.contiguous(), index).is_contiguous()
    assert select_channels(x[:0], index).shape == (0, 4, 4, 5)
    odd = x[:, :, ::2, 1:]
    assert torch.equal(select_channels(odd, index), odd.index_select(1, index))
    module = compacted(KERNEL, conv(7, 9, padding=1), 3).to(memory_format=torch.channels_last)
    assert module(x).is_contiguous(memory_format=torch.channels_last)


# low rank


@pytest.mark.parametrize(
    "module",
    [conv(5, 7), conv(3, 40), nn.Linear(12, 9)],
    ids=["wide", "tall", "linear"],
)
def test_the_residual_is_that_of_eckart_and_young(module: nn.Conv2d | nn.Linear) -> None:
    """By their norms the largest singular values stay; any other choice leaves more."""
    module = module.double()
    layer = described(module)
    values = torch.linalg.svdvals(module.weight.detach().flatten(1))
    scores = norms(LOW_RANK, layer, module.weight)
    torch.testing.assert_close(scores, values)
    for count in LOW_RANK.counts(layer):
        best = LOW_RANK.pattern(layer, count, scores)
        assert _residual(layer, count, best, module) == pytest.approx(float(values[count:].norm()))
        worst = LOW_RANK.pattern(layer, count, -scores)
        assert _residual(layer, count, worst, module) == pytest.approx(float(values[:-count].norm()))


def _residual(layer: Layer, count: int, pattern: Any, module: nn.Conv2d | nn.Linear) -> float:
    masked = LOW_RANK.masked(layer, count, pattern, module)
    assert isinstance(masked.weight, Tensor)
    return float((module.weight - masked.weight).detach().norm())


def test_a_layer_of_rank_three_needs_three_directions() -> None:
    module, x = conv(8, 6, stride=2, padding=1).double(), torch.randn(2, 8, 7, 6, dtype=torch.float64)
    with torch.no_grad():
        weight = torch.randn(6, 3, dtype=torch.float64) @ torch.randn(3, 72, dtype=torch.float64)
        module.weight.copy_(weight.view(6, 8, 3, 3))
        torch.testing.assert_close(compacted(LOW_RANK, module, 3)(x), module(x))
        assert not torch.allclose(compacted(LOW_RANK, module, 2)(x), module(x), atol=1e-2)


def test_both_factors_carry_the_root_of_the_singular_value() -> None:
    module = conv(5, 7).double()
    state = compacted(LOW_RANK, module, 3).state_dict()
    values = torch.linalg.svdvals(module.weight.detach().flatten(1))[:3]
    torch.testing.assert_close(state["reduce.weight"].flatten(1).norm(dim=1), values.sqrt())
    torch.testing.assert_close(state["expand.weight"].flatten(1).norm(dim=0), values.sqrt())
    assert list(state) == ["reduce.weight", "expand.weight", "expand.bias"]


def test_a_weight_and_its_negative_have_the_same_directions() -> None:
    """The sign of a singular vector is free; ours depends on the vector alone."""
    layer, weight = described(conv(5, 7)), conv(5, 7).weight.detach()
    units = LOW_RANK.units(layer, weight)
    torch.testing.assert_close(LOW_RANK.units(layer, -weight), units)
    assert (units.gather(1, units.abs().argmax(1, keepdim=True)) > 0).all()


def test_counts_end_where_the_factors_are_no_smaller() -> None:
    layer = described(conv(16, 16))
    counts = list(LOW_RANK.counts(layer))
    assert counts == list(range(1, 15))  # 14 · 160 = 2,240 of 2,304 weights; 15 directions have 2,400
    assert LOW_RANK.kept_share(layer, 14) == 2_240 / 2_304
    assert all(b - a == 160 * layer.positions for a, b in pairwise(LOW_RANK.macs(layer, c) for c in counts))
    assert list(LOW_RANK.counts(described(conv(64, 64)))) == [16, 32, 48]  # up to 57 would be smaller
    exact = described(nn.Linear(4, 4))
    assert list(LOW_RANK.counts(exact)) == [1]  # two directions have just as many weights
    assert "any two factors" in (LOW_RANK.why_not(described(nn.Linear(9, 1))) or "")
    assert "4 conv groups" in (LOW_RANK.why_not(described(nn.Conv2d(4, 4, 3, groups=4))) or "")


def test_both_are_exported_to_onnx_with_a_free_batch_size(tmp_path: Path) -> None:
    first, second, examples = conv(8, 6, padding=1), conv(6, 9, padding=1, stride=2), torch.randn(3, 8, 6, 6)
    network = nn.Sequential(compacted(KERNEL, first, 3), compacted(LOW_RANK, second, 4))
    export(network.to(memory_format=torch.channels_last), examples, tmp_path / "network.onnx")
    assert check(network, tmp_path / "network.onnx", examples) < 1e-5
    operators = [node.op_type for node in onnx.load(tmp_path / "network.onnx").graph.node]
    assert operators == ["Gather", "Conv", "Gather", "Conv", "Conv"]
