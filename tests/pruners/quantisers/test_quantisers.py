"""The contract of every quantiser, over the registry; then what each paper says of its own."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunefront.errors import PrunefrontError, UnknownName
from prunefront.pruners.quantisers import Quantiser, quantisers
from prunefront.pruners.quantisers.fixed_point import improved_step, least_squares_step, sorted_sizes

NAMES = sorted(quantisers)
SHAPES = ((4, 3, 3, 3), (5, 700), (1, 6), (3, 1, 5, 5), (2, 3, 2), (2, 1))
EVERY = [(name, bits) for name in NAMES for bits in quantisers[name].bits]


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Gaussian or heavy-tailed weights of any size, some of them zero; a channel may be all one number, or zeros."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    weight = torch.randn(draw(st.sampled_from(SHAPES)), generator=generator)
    if draw(st.booleans()):
        weight = weight**3
    weight = weight * 10.0 ** draw(st.integers(-6, 3))
    weight[torch.rand(weight.shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.95]))] = 0.0
    if draw(st.booleans()):
        weight[0] = draw(st.sampled_from([0.0, 0.25, -3.0]))
    return weight


def fitted(
    name: str, weight: Tensor, bits: int, per_channel: bool
) -> tuple[Quantiser, Tensor, Tensor | None]:
    quantiser = quantisers[name]
    return quantiser, *quantiser.fit(weight, bits, per_channel)


def gaussian(count: int = 200_001) -> Tensor:
    """Quantiles of N(0, 1): what a sample would be without its noise."""
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.distributions.Normal(0.0, 1.0).icdf(share)


@pytest.mark.parametrize(("name", "bits"), EVERY)
@settings(max_examples=12)
@given(weight=weights(), per_channel=st.booleans())
def test_contract(name: str, bits: int, weight: Tensor, per_channel: bool) -> None:
    before = weight.clone()
    quantiser, scale, offset = fitted(name, weight, bits, per_channel)
    shape = (2**bits,) if quantiser.table else (len(weight) if per_channel else 1, *[1] * (weight.ndim - 1))
    assert tuple(scale.shape) == shape == quantiser.scale_shape(tuple(weight.shape), per_channel, bits)
    assert scale.dtype == torch.float32
    assert quantiser.table or bool((scale > 0).all())
    assert (offset is not None) == quantiser.offset
    assert offset is None or (offset.shape == scale.shape and offset.dtype == torch.float32)

    levels = quantiser.levels(bits)
    assert 2**bits // 2 < len(levels) <= 2**bits
    codes = quantiser.codes(quantiser.compand(weight, scale, bits), scale, offset, bits)
    assert codes.dtype == torch.int64
    assert codes.shape == weight.shape
    assert 0 <= int(codes.min()) <= int(codes.max()) < len(levels)

    values = quantiser.decoded(codes, scale, offset, bits)
    assert values.dtype == torch.float32
    assert torch.equal(quantiser.codes(values, scale, offset, bits), codes)
    assert torch.equal(quantiser.quantised(weight, scale, offset, bits), values)
    if quantiser.keeps_zero:
        assert not values[weight == 0].any()

    again = quantiser.fit(weight.clone(), bits, per_channel)
    assert torch.equal(again[0], scale)
    assert offset is None or torch.equal(again[1], offset)
    gradient = quantiser.gradient(weight, scale, bits, torch.ones_like(weight))
    assert gradient.shape == weight.shape
    assert gradient.dtype == weight.dtype
    assert bool(gradient.isfinite().all())
    assert quantiser.constrain(weight).shape == weight.shape
    assert torch.equal(weight, before)


@pytest.mark.parametrize(("name", "bits"), EVERY)
def test_any_machine_decodes_the_same_bits(name: str, bits: int) -> None:
    """numpy, in the two rounded steps that `decode` promises."""
    torch.manual_seed(bits)
    quantiser, scale, offset = fitted(name, torch.randn(3, 2, 3, 3), bits, True)
    levels = quantiser.levels(bits)
    codes = torch.randint(len(levels), (3, 40, 1, 1))
    if quantiser.table:
        expected = scale.numpy()[codes.numpy()]
    else:
        expected = np.asarray(levels, np.float32)[codes.numpy()] * scale.numpy()
    if offset is not None:
        expected = expected + offset.numpy()
    assert np.array_equal(quantiser.decoded(codes, scale, offset, bits).numpy(), expected)


@pytest.mark.parametrize(("name", "bits"), [(n, b) for n, b in EVERY if not quantisers[n].table])
def test_a_channel_is_fitted_as_if_alone(name: str, bits: int) -> None:
    torch.manual_seed(bits)
    weight = torch.randn(6, 4, 3, 3) * torch.logspace(-3, 2, 6)[:, None, None, None]
    _, scale, offset = fitted(name, weight, bits, True)
    for i in range(6):
        _, own, base = fitted(name, weight[i : i + 1], bits, False)
        torch.testing.assert_close(scale[i : i + 1], own, rtol=1e-6, atol=0)
        assert base is None or torch.equal(base, offset[i : i + 1])


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_done_is_refused(name: str) -> None:
    quantiser = quantisers[name]
    for bits in (quantiser.bits[0] - 1, quantiser.bits[-1] + 1):
        with pytest.raises(PrunefrontError, match=f"'a.weight' cannot have {bits} bits"):
            quantiser.check(bits, "a.weight")
    quantiser.check(quantiser.bits[0], "a.weight")
    if quantiser.keeps_zero:
        quantiser.check(quantiser.bits[0], "a.weight", zeros=True)
    else:
        with pytest.raises(PrunefrontError, match=r"zeros that must stay.*fixed_point"):
            quantiser.check(quantiser.bits[0], "a.weight", zeros=True)


def test_which_keep_zero() -> None:
    assert {name for name in NAMES if quantisers[name].keeps_zero} >= {"fixed_point", "twn"}
    assert not {name for name in NAMES if quantisers[name].keeps_zero} & {"affine", "bwn", "dorefa"}
    with pytest.raises(UnknownName, match="did you mean 'fixed_point'"):
        quantisers["fixed_points"]


# fixed point


def best_step(top: int) -> tuple[float, float]:
    """The step for N(0, 1) at which Δ Σ z² = Σ x z, by bisection of the closed form, and its squared error."""

    def sums(step: float) -> tuple[float, float]:
        xz = zz = 0.0
        for k in range(1, top + 1):
            low, high = (k - 0.5) * step, (k + 0.5) * step if k < top else math.inf
            tail = [0.5 * math.erfc(edge / math.sqrt(2)) for edge in (low, high)]
            density = [math.exp(-edge * edge / 2) / math.sqrt(2 * math.pi) for edge in (low, high)]
            xz += 2 * k * (density[0] - density[1])
            zz += 2 * k * k * (tail[0] - tail[1])
        return xz, zz

    low, high = 1.0 / top, 4.0 / top
    for _ in range(60):
        middle = (low + high) / 2
        xz, zz = sums(middle)
        low, high = (middle, high) if xz / zz > middle else (low, middle)
    xz, zz = sums(low)
    return low, 1 - 2 * low * xz + low * low * zz


@pytest.mark.parametrize(
    ("bits", "step", "error"),
    [(2, 1.2235, 0.1902), (3, 0.6509, 0.0469), (4, 0.3537, 0.0129), (5, 0.1928, 0.0037)],
)
def test_the_best_step_for_a_gaussian(bits: int, step: float, error: float) -> None:
    """Quantiles have no sampling noise; what is left is that the tails end, and where the alternation stops."""
    x = gaussian()[None]
    _, scale, _ = fitted("fixed_point", x, bits, False)
    values = quantisers["fixed_point"].quantised(x, scale, None, bits)
    exact, least = best_step(2 ** (bits - 1) - 1)
    assert scale.item() == pytest.approx(exact, rel=3e-4)
    assert scale.item() == pytest.approx(
        step, rel=3e-3
    )  # the published steps, which are themselves of a sample
    assert (values - x).square().mean().item() == pytest.approx(least, rel=1e-3)
    assert least == pytest.approx(error, abs=5e-5)


def naive_step(x: np.ndarray, top: int) -> float:
    """The method as it is written."""

    def levels(step: float) -> np.ndarray:
        return np.minimum(np.floor(x / step + 0.5), top)

    tried = [f * x.max() / top for f in np.linspace(0.05, 1.5, 100)]
    step = min(tried, key=lambda s: float(((x - s * levels(s)) ** 2).sum()))
    while True:
        z = levels(step)
        better = float((x * z).sum() / (z * z).sum())
        if abs(better - step) < 1e-6 * step:
            return better
        step = better


@pytest.mark.parametrize("top", [1, 3, 7, 15, 255])  # over few and over many values than levels
@pytest.mark.parametrize("count", [3, 40, 3000])
def test_the_step_is_that_of_the_method_as_written(top: int, count: int) -> None:
    rows = torch.randn(3, count, generator=torch.Generator().manual_seed(top), dtype=torch.float64).abs()
    rows[1] *= 1e-4
    rows[2] = 0.0
    found = least_squares_step(rows, top)
    for row, step in zip(rows[:2], found[:2], strict=True):
        assert step.item() == pytest.approx(naive_step(row.numpy(), top), rel=1e-9)
    assert found[2] == 0.0


@given(weight=weights(), top=st.sampled_from([1, 3, 7, 127]), factor=st.floats(0.01, 3.0))
def test_an_alternation_never_increases_the_error(weight: Tensor, top: int, factor: float) -> None:
    rows = weight.double().flatten(1).abs()
    rows = rows[rows.amax(1) > 0]
    assume(len(rows))
    step = rows.amax(1, keepdim=True) * factor / top

    def error(step: Tensor) -> Tensor:
        return (rows - (rows / step + 0.5).floor().clamp(max=top) * step).square().sum(1)

    for _ in range(4):
        better = improved_step(sorted_sizes(rows), step, top)
        assert bool((error(better) <= error(step) + 1e-12 * rows.square().sum(1)).all())
        step = better


@given(weight=weights(), bits=st.integers(2, 16), power=st.integers(-8, 8), per_channel=st.booleans())
def test_fixed_point_is_odd_and_scales_with_its_weights(
    weight: Tensor, bits: int, power: int, per_channel: bool
) -> None:
    quantiser, scale, _ = fitted("fixed_point", weight, bits, per_channel)
    with_ties = torch.cat([weight, 0.5 * scale * torch.ones_like(weight)], dim=1)
    values = quantiser.quantised(with_ties, scale, None, bits)
    assert torch.equal(quantiser.fit(-weight, bits, per_channel)[0], scale)
    assert torch.equal(quantiser.quantised(-with_ties, scale, None, bits), -values)
    other = quantiser.fit(weight * 2.0**power, bits, per_channel)[0]  # a power of two rounds nothing
    some = weight.flatten(1).any(1) if per_channel else weight.any()[None]
    assert torch.equal(other[some], scale[some] * 2.0**power)


def test_fixed_point_trains_what_levels_reach() -> None:
    weight = torch.tensor([[-3.2, -3.0, -1.0, 0.0, 3.0, 3.1]])
    quantiser = quantisers["fixed_point"]
    gradient = quantiser.gradient(weight, torch.ones(1, 1), 3, torch.full_like(weight, 2.0))
    assert gradient.tolist() == [[0.0, 2.0, 2.0, 2.0, 2.0, 0.0]]


# one bit


def test_bwn_has_the_best_scale() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[0, 0, 0, 0] = 0.0
    quantiser, scale, _ = fitted("bwn", weight, 1, True)
    values = quantiser.quantised(weight, scale, None, 1)
    assert values[0, 0, 0, 0] > 0
    signs = values / scale
    error = (weight - values).square().flatten(1).sum(1)
    for factor in (0.99, 1.01):
        assert bool(((weight - factor * scale * signs).square().flatten(1).sum(1) > error).all())


def test_bwn_leaves_of_a_gaussian_what_it_must() -> None:
    """1 − 2/π of its energy."""
    x = gaussian()[None]
    quantiser, scale, _ = fitted("bwn", x, 1, False)
    left = (x - quantiser.quantised(x, scale, None, 1)).square().mean()
    assert left.item() == pytest.approx(1 - 2 / math.pi, rel=1e-4)


def test_bwn_trains_as_in_the_paper() -> None:
    weight = torch.tensor([[0.5, -2.0], [0.25, 1.0]])
    scale = torch.tensor([[1.25], [0.625]])
    gradient = quantisers["bwn"].gradient(weight, scale, 1, torch.tensor([[2.0, 2.0], [1.0, 1.0]]))
    # g (α 1[|w| ≤ 1] + 1/n) with n = 2
    assert gradient.tolist() == [[2 * 1.75, 2 * 0.5], [1.125, 1.125]]
    kept = quantisers["bwn"].constrain(
        4 * torch.randn(3, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    )
    assert float(kept.abs().max()) == 1.0
    small = quantisers["bwn"].constrain(torch.tensor([[0.1, 0.3, 0.5]]))
    torch.testing.assert_close(small, torch.tensor([[-0.2, 0.0, 0.2]]))
    depthwise = torch.rand(3, 1, 3, 3)
    assert torch.equal(quantisers["bwn"].constrain(depthwise), depthwise)  # its mean over one input is itself


# three levels


def ternary_errors(x: Tensor) -> tuple[Tensor, Tensor]:
    """Every threshold, in multiples of mean |x|, and the error with the best scale: all with one sort."""
    size = x.abs().sort(descending=True).values
    count = torch.arange(1, len(size) + 1, dtype=torch.float64)
    error = size.square().sum() - size.cumsum(0).square() / count
    return size / size.mean(), error / len(size)


def test_the_ternary_threshold_lies_between_the_best_ones() -> None:
    thresholds, errors = ternary_errors(gaussian())
    best = errors.argmin()
    assert thresholds[best].item() == pytest.approx(0.767, abs=2e-3)
    assert thresholds[best].item() * math.sqrt(2 / math.pi) == pytest.approx(0.612, abs=2e-3)
    assert errors[best].item() == pytest.approx(0.190, abs=3e-4)
    thresholds, errors = ternary_errors(torch.linspace(-1, 1, 200_001, dtype=torch.float64))
    assert thresholds[errors.argmin()].item() == pytest.approx(0.667, abs=2e-3)


def test_twn_cuts_at_seven_tenths_of_the_mean_size() -> None:
    x = gaussian()[None]
    quantiser, scale, _ = fitted("twn", x, 2, False)
    values = quantiser.quantised(x, scale, None, 2)
    large = x.abs() > 0.7 * x.abs().mean()
    assert torch.equal(values != 0, large)
    assert scale.item() == pytest.approx(x.abs()[large].mean().item(), rel=1e-6)
    assert 0.1902 < (x - values).square().mean() < 0.1902 * 1.02


def test_pruned_weights_do_not_move_the_ternary_threshold() -> None:
    weight = torch.randn(2, 50, generator=torch.Generator().manual_seed(3))
    pruned = torch.cat([weight, torch.zeros(2, 450)], dim=1)
    for per_channel in (False, True):
        quantiser, scale, _ = fitted("twn", weight, 2, per_channel)
        assert torch.allclose(quantiser.fit(pruned, 2, per_channel)[0], scale)
        values = quantiser.quantised(pruned, scale, None, 2)
        assert torch.equal(values[:, :50], quantiser.quantised(weight, scale, None, 2))
        assert not values[:, 50:].any()


# DoReFa


@pytest.mark.parametrize("bits", range(1, 9))
def test_dorefa_is_the_formula_and_uses_its_levels(bits: int) -> None:
    x = torch.linspace(-2, 2, 4001)[None]
    quantiser, scale, _ = fitted("dorefa", x, bits, False)
    values = quantiser.quantised(x, scale, None, bits)
    assert len(values.unique()) == 2**bits
    if bits == 1:
        torch.testing.assert_close(values, torch.where(x >= 0, 1.0, -1.0) * x.abs().mean())
        return
    top = 2**bits - 1
    share = x.double().tanh() / (2 * x.double().tanh().abs().max()) + 0.5
    expected = 2 * (share * top + 0.5).floor() / top - 1
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-7)
    assert -values.min() == values.max() == 1.0  # exactly


def test_the_dorefa_gradient_goes_through_tanh() -> None:
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weight.requires_grad_()
    (weight.tanh() / weight.tanh().abs().max().detach()).sum().backward()
    quantiser, scale, _ = fitted("dorefa", weight.detach(), 3, False)
    gradient = quantiser.gradient(weight.detach(), scale, 3, torch.ones_like(weight))
    torch.testing.assert_close(gradient, weight.grad)


# affine


@pytest.mark.parametrize("bits", range(1, 9))
def test_affine_is_the_formula(bits: int) -> None:
    weight = torch.randn(3, 400, generator=torch.Generator().manual_seed(bits))
    quantiser, scale, offset = fitted("affine", weight, bits, True)
    values = quantiser.quantised(weight, scale, offset, bits)
    top, w = 2**bits - 1, weight.double()
    low, wide = w.amin(1, keepdim=True), w.amax(1, keepdim=True) - w.amin(1, keepdim=True)
    expected = wide * (top * (w - low) / wide + 0.5).floor() / top + low
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(values.amin(1), weight.amin(1))
    assert (values != 0).all()
