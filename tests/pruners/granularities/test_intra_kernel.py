"""Intra-kernel strided sparsity: worked examples, both ways to compute it, and which patterns are chosen."""

import copy
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.formats.onnx_export import check, export
from prunefront.pruners.granularities import intra_kernel, layer_granularities
from prunefront.pruners.granularities.intra_kernel import StridedConv2d
from prunefront.pruners.granularities.strided_patterns import (
    boxes_of,
    choose_patterns,
    chosen_sizes,
    knapsack,
    patterns_by_size,
    reachable_counts,
    tap_count,
)
from prunefront.pruners.graph.layers import Layer

GRANULARITY = layer_granularities["intra_kernel"]


def layer_of(conv: nn.Conv2d, positions: int = 1) -> Layer:
    bias = conv.bias is not None
    return Layer("l.weight", "l", tuple(conv.weight.shape), positions, conv.groups, conv.stride, bias)


def built(conv: nn.Conv2d, patterns: list[tuple[int, int]]) -> tuple[StridedConv2d, nn.Module]:
    """Compact and masked module."""
    pattern = {
        "stride": torch.tensor([t for t, _ in patterns]),
        "offset": torch.tensor([o for _, o in patterns]),
    }
    layer, count = layer_of(conv), sum(tap_count(p, conv.kernel_size) for p in patterns)
    compact = GRANULARITY.compact(layer, count, pattern, conv)
    assert isinstance(compact, StridedConv2d)
    return compact, GRANULARITY.masked(layer, count, pattern, conv)


@pytest.fixture(params=["rows", "boxes", "boxes, sample by sample"])
def way(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either way to compute a layer, whatever its size."""
    monkeypatch.setattr(intra_kernel, "PATCHES", 2**60 if request.param == "rows" else 0)
    monkeypatch.setattr(intra_kernel, "OUTPUTS", 1 if request.param.endswith("sample") else 2**60)
    return str(request.param)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_worked_example_has_12_patch_rows_of_27(
    stride: int, padding: int, dilation: int, way: str
) -> None:
    """methods.md §2.1: (2,0), (2,1) and (3,1) of 3×3 keep 5 + 4 + 3."""
    conv = nn.Conv2d(3, 4, 3, stride, padding, dilation)
    compact, masked = built(conv, [(2, 0), (2, 1), (3, 1)])
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(compact(x), masked(x))
    assert compact.weight.shape == (4, 12)
    assert (masked.weight != 0).sum() == 4 * 12
    layer = layer_of(conv, positions=20)
    assert GRANULARITY.macs(layer, 12) == 12 * 4 * 20
    assert GRANULARITY.kept_share(layer, 12) == 12 / 27


@st.composite
def cases(draw: Any) -> tuple[nn.Conv2d, list[tuple[int, int]], Tensor]:
    """A convolution with a pattern for each map, any at all, and an input that may be channels_last."""
    kernel = draw(st.sampled_from([(3, 3), (5, 5), (2, 2), (4, 3), (1, 3), (3, 1), (2, 5)]))
    dilation = draw(st.sampled_from([1, 2, (1, 3)]))
    step = draw(st.sampled_from([1, 2, (2, 1), 3]))
    padding = draw(st.sampled_from(["valid", 0, 1, (2, 0), (1, 3), *(["same"] if step == 1 else [])]))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular", "replicate"]))
    inputs, taps = draw(st.integers(1, 5)), kernel[0] * kernel[1]
    patterns = [
        (t, draw(st.integers(0, t - 1)))
        for t in draw(st.lists(st.integers(1, taps), min_size=inputs, max_size=inputs))
    ]
    torch.manual_seed(draw(st.integers(0, 99)))
    conv = nn.Conv2d(inputs, 3, kernel, step, padding, dilation, 1, draw(st.booleans()), mode)
    x = torch.randn(draw(st.integers(1, 3)), inputs, 13, 14)
    last = draw(st.booleans())
    return conv, patterns, x.contiguous(memory_format=torch.channels_last) if last else x


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@settings(max_examples=60)
@given(case=cases(), rows=st.booleans())
def test_any_patterns_equal_the_masked_layer_with_its_gradients(case: Any, rows: bool) -> None:
    conv, patterns, x = case
    compact, masked = built(conv, patterns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intra_kernel, "PATCHES", 2**60 if rows else 0)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        made, expected = compact(ours), masked(theirs)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
        for out in (made, expected):
            out.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    conv.weight = nn.Parameter(masked.weight.grad)
    torch.testing.assert_close(
        compact.weight.grad, built(conv, patterns)[0].weight.data, rtol=1e-4, atol=1e-4
    )


def test_stride_one_is_the_dense_layer(way: str) -> None:
    conv = nn.Conv2d(6, 5, 3, 2, 1)
    compact, _ = built(conv, [(1, 0)] * 6)
    x = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(compact(x), conv(x))


def test_a_window_may_lie_wholly_in_the_padding(way: str) -> None:
    conv = nn.Conv2d(2, 3, 3, 1, 2, 2)
    compact, masked = built(conv, [(9, 0), (9, 8)])
    x = torch.randn(2, 2, 1, 1)
    torch.testing.assert_close(compact(x), masked(x))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_the_odd_one_of_same_padding_goes_behind(way: str) -> None:
    compact, masked = built(nn.Conv2d(2, 3, (4, 2), padding="same"), [(2, 0), (3, 2)])
    x = torch.randn(2, 2, 5, 6)
    torch.testing.assert_close(compact(x), masked(x))


def test_the_memory_format_stays(way: str) -> None:
    compact, _ = built(nn.Conv2d(6, 4, 3, 1, 1), [(2, 0), (2, 1), (1, 0)] * 2)
    x = torch.randn(2, 6, 8, 8)
    assert compact(x).is_contiguous()
    assert compact(x.contiguous(memory_format=torch.channels_last)).is_contiguous(
        memory_format=torch.channels_last
    )


def test_it_exports_with_a_free_batch_and_copies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    compact, _ = built(nn.Conv2d(6, 4, 3, 2, 1), [(2, 0), (3, 0), (2, 1), (1, 0), (4, 1), (3, 2)])
    x = torch.randn(5, 6, 8, 9)
    export(compact, x, tmp_path / "m.onnx")
    check(compact, tmp_path / "m.onnx", x)
    free = {0: torch.export.Dim("batch")}
    program = torch.export.export(compact.eval(), (x,), dynamic_shapes=(free,))
    torch.testing.assert_close(program.module()(x[:3]), compact(x[:3]))
    assert torch.equal(copy.deepcopy(compact)(x), compact(x))


@given(kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)), data=st.data())
def test_boxes_are_the_pattern_and_few(kernel: tuple[int, int], data: Any) -> None:
    taps = kernel[0] * kernel[1]
    t = data.draw(st.integers(1, taps))
    o = data.draw(st.integers(0, t - 1))
    kept = sorted(r * kernel[1] + c for b in boxes_of((t, o), kernel) for r in b.rows for c in b.columns)
    assert kept == [p for p in range(taps) if p >= o and (p - o) % t == 0]
    assert len(kept) == tap_count((t, o), kernel) == ceil((taps - o) / t)
    assert len(boxes_of((t, o), kernel)) <= kernel[0]


def test_what_3x3_patterns_are_chosen_from() -> None:
    chosen = dict(patterns_by_size((3, 3)))
    assert {tuple(range(o, 9, t)) for t, o in chosen.pop(1)} == {(p,) for p in range(9)}
    assert chosen == {
        2: ((6, 0), (6, 1), (6, 2)),
        3: ((3, 0), (3, 1), (3, 2)),
        4: ((2, 1),),
        5: ((2, 0),),
        9: ((1, 0),),
    }


@pytest.mark.parametrize(
    ("kernel", "maps"), [((3, 3), 1), ((3, 3), 4), ((5, 5), 2), ((1, 3), 5), ((2, 2), 3)]
)
def test_counts_are_every_sum_below_the_whole(kernel: tuple[int, int], maps: int) -> None:
    sums = {sum(sizes) for sizes in product(patterns_by_size(kernel), repeat=maps)}
    assert set(reachable_counts(kernel, maps)) == sums - {maps * kernel[0] * kernel[1]}
    for count in reachable_counts(kernel, maps):
        sizes = chosen_sizes(kernel, maps, count)
        assert count in {sum(s) for s in product(sizes, repeat=maps)}
        assert sizes[0] * maps <= count <= sizes[-1] * maps


@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=5),
    st.sets(st.integers(1, 9), min_size=3, max_size=3),
    st.data(),
)
def test_the_knapsack_is_exact_and_prefers_the_first(
    values: list[list[int]], sizes: set[int], data: Any
) -> None:
    ascending = sorted(sizes)
    sums: dict[int, list[tuple[int, ...]]] = {}
    for picks in product(range(3), repeat=len(values)):
        sums.setdefault(sum(ascending[p] for p in picks), []).append(picks)
    count = data.draw(st.sampled_from(sorted(sums)))
    found = knapsack(np.array(values, float), ascending, count)
    best = max(sum(v[p] for v, p in zip(values, picks, strict=True)) for picks in sums[count])
    assert sum(ascending[p] for p in found) == count
    assert sum(v[p] for v, p in zip(values, found, strict=True)) == best
    assert knapsack(np.zeros((len(values), 2)), [1, 2], len(values) + 1) == [1] + [0] * (len(values) - 1)


@given(st.integers(0, 99), st.integers(1, 5), st.sampled_from([(3, 3), (1, 3), (2, 2)]), st.data())
def test_no_choice_of_the_same_patterns_keeps_more(
    seed: int, maps: int, kernel: tuple[int, int], data: Any
) -> None:
    taps = kernel[0] * kernel[1]
    scores = np.random.default_rng(seed).random((maps, taps))
    count = data.draw(st.sampled_from(reachable_counts(kernel, maps)))
    chosen = choose_patterns(scores, kernel, count)
    assert sum(tap_count(p, kernel) for p in chosen) == count
    offers = [patterns_by_size(kernel)[size] for size in chosen_sizes(kernel, maps, count)]
    few = {p for same in offers for p in same if len(same) <= 3 or p in chosen}
    best = {0: 0.0}  # sum of sizes -> the most that can be kept
    for row in scores:
        longer: dict[int, float] = {}
        for total, kept in best.items():
            for t, o in few:
                size = total + tap_count((t, o), kernel)
                longer[size] = max(longer.get(size, 0.0), kept + row[o::t].sum())
        best = longer
    assert sum(row[o::t].sum() for row, (t, o) in zip(scores, chosen, strict=True)) == pytest.approx(
        best[count]
    )


@pytest.mark.parametrize(
    "planted", [[(2, 0), (2, 1)], [(1, 0), (2, 0)], [(2, 1), (3, 0), (3, 2)], [(3, 1), (6, 2)]]
)
def test_planted_patterns_are_found(planted: list[tuple[int, int]]) -> None:
    """From the weights alone, by the L1 norm of each unit."""
    torch.manual_seed(0)
    patterns = [planted[c % len(planted)] for c in range(24)]
    conv = nn.Conv2d(24, 8, 3, bias=False)
    _, masked = built(conv, patterns)
    layer, count = layer_of(conv), sum(tap_count(p, (3, 3)) for p in patterns)
    scores = GRANULARITY.units(layer, masked.weight.detach().double()).abs().sum(1)
    found = GRANULARITY.pattern(layer, count, scores)
    assert list(zip(found["stride"].tolist(), found["offset"].tolist(), strict=True)) == patterns


def test_a_layer_has_few_distinct_patterns() -> None:
    scores = np.random.default_rng(0).random((512, 9))
    for share, most in ((0.5, 2), (0.75, 3), (0.25, 6)):
        assert len(set(choose_patterns(scores, (3, 3), round(512 * 9 * share)))) <= most


def test_restoring_refuses_patterns_that_do_not_fit() -> None:
    compact, _ = built(nn.Conv2d(2, 3, 3), [(2, 0), (2, 1)])
    state, layer = compact.state_dict(), layer_of(nn.Conv2d(2, 3, 3))
    for stride, offset, message in (
        (2, 2, "each offset in 0 to its stride"),
        (0, 0, "in 1 to 9"),
        (3, 1, "keep 8"),
    ):
        wrong = {**state, "stride": torch.tensor([2, stride]), "offset": torch.tensor([0, offset])}
        with pytest.raises(PrunefrontError, match=message):
            GRANULARITY.restore(layer, 9, wrong, nn.Conv2d(2, 3, 3))


@pytest.mark.parametrize(
    ("shape", "groups", "reason"),
    [((4, 4), 1, "linear"), ((4, 4, 1, 1), 1, "1×1"), ((4, 2, 3, 3), 2, "2 conv groups")],
)
def test_layers_that_cannot_take_it_are_told_why(shape: tuple[int, ...], groups: int, reason: str) -> None:
    assert reason in str(GRANULARITY.why_not(Layer("l.weight", "l", shape, 1, groups)))
