"""Quantised inputs: levels, gradients, calibration, the products of signs, and the way to a file."""

import copy
import math
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.formats.onnx_export import check, export
from prunefront.pruners.bits import activations
from prunefront.pruners.bits.activations import (
    INPUT_BITS,
    SAMPLE,
    QuantisedInput,
    calibrate_inputs,
    check_inputs,
    input_parts,
)
from prunefront.pruners.quantisers.fixed_point import least_squares_step


def batches(count: int = 3, images: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(images, 3, 6, 6, generator=generator), torch.zeros(images)) for _ in range(count)]


def network(bits: int = 4) -> nn.Sequential:
    """Two layers with quantised inputs: the images, of both signs, and what a ReLU leaves."""
    torch.manual_seed(1)
    return nn.Sequential(
        QuantisedInput(nn.Conv2d(3, 8, 3, padding=1), "fixed_point", bits),
        nn.ReLU(),
        QuantisedInput(nn.Conv2d(8, 4, 3, bias=False), "fixed_point", bits),
        nn.Flatten(),
        nn.Linear(4 * 16, 5),
    )


def seen_by(layer: QuantisedInput, model: nn.Module, x: Tensor) -> Tensor:
    """Returns the input of the layer behind the quantiser."""
    found: list[Tensor] = []
    handle = layer.layer.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    model(x)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_calibrated_inputs_take_their_levels(bits: int) -> None:
    model, data = network(bits), batches()
    images, hidden = model[0], model[2]
    x = torch.cat([x for x, _ in data])
    with torch.no_grad():
        before = model[:2](x)
    assert torch.equal(seen_by(images, model, x), x)  # float, before there are scales
    model.train()
    calibrate_inputs(model, iter(data))  # a pass is all there is
    assert all(m.training for m in model.modules())
    half, top = 2 ** (bits - 1) - 1, 2**bits - 1
    assert (images.signed.item(), hidden.signed.item()) == (1.0, 0.0)
    # all values fit into the sample, and the second layer is measured behind a first one in float
    expected = (
        least_squares_step(x.flatten()[None].abs(), half),
        least_squares_step(before.flatten()[None], top),
    )
    assert images.scale.item() == pytest.approx(expected[0].item(), rel=1e-6)
    assert hidden.scale.item() == pytest.approx(expected[1].item(), rel=1e-6)
    for layer, low, high in ((images, -half, half), (hidden, 0, top)):
        levels = seen_by(layer, model, 3 * x) / layer.scale
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-5 * top)
        assert round(levels.min().item()) == low
        assert round(levels.max().item()) == high
    once = hidden.scale.clone()
    calibrate_inputs(model, data)  # again in float, although both are quantised now
    assert torch.equal(hidden.scale, once)


def test_a_sample_is_bounded_and_finds_about_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def step(x: Tensor, top: int) -> Tensor:
        sizes.append(x.numel())
        return least_squares_step(x, top)

    monkeypatch.setattr(activations, "least_squares_step", step)
    generator = torch.Generator().manual_seed(2)
    data = [(torch.randn(400, 500, generator=generator), None) for _ in range(3)]
    model = nn.Sequential(QuantisedInput(nn.Linear(500, 1), "fixed_point", 4))
    calibrate_inputs(model, data)
    every = torch.cat([x for x, _ in data]).flatten()
    assert sizes == [SAMPLE]
    assert every.numel() > 9 * SAMPLE
    # the mean of a step's n squares has a relative deviation near 1/√n = 0.004; the step's own is smaller
    expected = least_squares_step(every.abs()[None], 7).item()
    assert model[0].scale.item() == pytest.approx(expected, rel=5 / math.sqrt(SAMPLE))


def test_the_gradient_goes_straight_through_the_range() -> None:
    layer = QuantisedInput(nn.Identity(), "fixed_point", 3)
    layer.load_state_dict({"scale": torch.tensor(0.5), "signed": torch.tensor(1.0)})
    x = torch.tensor([[-2.0, -1.5, -0.2, 0.0, 1.5, 1.6]], requires_grad=True)
    out = layer(x)
    assert out.tolist() == [[-1.5, -1.5, 0.0, 0.0, 1.5, 1.5]]
    out.sum().backward()
    assert x.grad.tolist() == [[0.0, 1.0, 1.0, 1.0, 1.0, 0.0]]
    layer.signed.fill_(0.0)
    assert layer(torch.tensor([-1.0, 0.6, 3.4, 9.0])).tolist() == [0.0, 0.5, 3.5, 3.5]


@pytest.mark.parametrize("bits", range(1, 9))
def test_dorefa_inputs(bits: int) -> None:
    layer = QuantisedInput(nn.Identity(), "dorefa", bits)
    x = torch.linspace(-0.5, 1.5, 4001, requires_grad=True)
    out = layer(x)
    assert len(out.unique()) == 2**bits
    torch.testing.assert_close(out, (x.clamp(0, 1) * (2**bits - 1)).round() / (2**bits - 1))
    out.sum().backward()
    assert torch.equal(x.grad, ((x >= 0) & (x <= 1)).float())


def test_a_state_dict_is_all_that_it_takes() -> None:
    model = network()
    calibrate_inputs(model, batches())
    state = model.state_dict()
    assert {"0.layer.weight", "0.layer.bias", "0.scale", "0.signed"} < state.keys()
    assert {k: tuple(state[f"0.{k}"].shape) for k in ("scale", "signed")} == {
        k: part.shape for k, part in input_parts("fixed_point").items()
    }
    x = batches()[0][0]
    other = network()
    other.load_state_dict(state)
    for same in (other, copy.deepcopy(model)):
        assert torch.equal(same(x), model(x))
    assert not torch.equal(network()(x), model(x))
    for kind in ("dorefa", "xnor"):
        assert QuantisedInput(nn.Linear(2, 2, bias=False), kind, 1).state_dict().keys() == {"layer.weight"}
        assert not input_parts(kind)


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(PrunefrontError, match="without a batch"):
        calibrate_inputs(network(), [])
    model = network()
    model.spare = QuantisedInput(nn.Linear(2, 2), "fixed_point", 4)
    model.forward = lambda x: model[0](x)
    with pytest.raises(PrunefrontError, match="'2' sees no input"):
        calibrate_inputs(model, batches())
    calibrate_inputs(nn.Linear(2, 2), iter(()))  # nothing to calibrate_inputs, and no batch is needed
    silent = nn.Sequential(QuantisedInput(nn.Linear(4, 2), "fixed_point", 4))
    calibrate_inputs(silent, [(torch.zeros(2, 4), None)])
    assert silent(torch.zeros(1, 4)).isfinite().all()


def test_unknown_kinds_and_bit_widths_are_refused() -> None:
    for kind, takes in INPUT_BITS.items():
        with pytest.raises(PrunefrontError, match=f"{kind!r} takes .* bits, not {takes[-1] + 1}"):
            check_inputs(kind, takes[-1] + 1)
        check_inputs(kind, takes[0])
    with pytest.raises(PrunefrontError, match="known: fixed_point, dorefa, xnor"):
        check_inputs("fixed", 4)
    with pytest.raises(PrunefrontError, match="not Sequential"):
        QuantisedInput(nn.Sequential(nn.Linear(2, 2)), "xnor", 1)


def popcount_products(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution of signs, from machine words alone: valid − 2 popcount(x ⊕ w) over what is not padding."""
    (n, _, high, wide), (outputs, each, *_) = x.shape, conv.weight.shape
    y0, x0 = ((size - 1) // 1 for size in (high, wide))
    shape = F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups).shape
    found = torch.zeros(shape, dtype=torch.int64)
    taps = list(product(range(conv.kernel_size[0]), range(conv.kernel_size[1])))
    for sample, k, row, column in product(*map(range, shape)):
        group = k // (outputs // conv.groups)
        valid = inputs = weights = 0
        for bit, (channel, (dy, dx)) in enumerate(product(range(each), taps)):
            y = row * conv.stride[0] + dy * conv.dilation[0] - conv.padding[0]
            c = column * conv.stride[1] + dx * conv.dilation[1] - conv.padding[1]
            if 0 <= y <= y0 and 0 <= c <= x0:
                valid |= 1 << bit
                inputs |= int(x[sample, group * each + channel, y, c] >= 0) << bit
            weights |= int(conv.weight[k, channel, dy, dx] >= 0) << bit
        found[sample, k, row, column] = valid.bit_count() - 2 * ((inputs ^ weights) & valid).bit_count()
    assert n == len(x)
    return found


@settings(max_examples=25)
@given(
    seed=st.integers(0, 99),
    groups=st.sampled_from([1, 1, 2]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    kernel=st.sampled_from([(3, 3), (1, 2)]),
    bias=st.booleans(),
)
def test_xnor_products_are_popcounts(
    seed: int, groups: int, stride: int, padding: int, dilation: int, kernel: tuple[int, int], bias: bool
) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(2 * groups, 2 * groups, kernel, stride, padding, dilation, groups, bias)
    alpha = conv.weight.detach().abs().mean((1, 2, 3), keepdim=True)
    conv.weight.data = torch.where(conv.weight >= 0, alpha, -alpha)  # as quantiser `bwn` leaves it
    x = torch.randn(1, 2 * groups, 6, 5)
    x[0, 0, 0, :2] = 0.0
    size = x.abs().unflatten(1, (groups, 2)).mean(2)
    box = F.unfold(size.transpose(0, 1), kernel, dilation, padding, stride).mean(1)  # [groups, positions]
    expected = popcount_products(conv, x) * alpha.view(1, -1, 1, 1)
    expected = expected * box.repeat_interleave(2, 0).view(expected.shape)
    if bias:
        expected = expected + conv.bias[:, None, None]
    torch.testing.assert_close(QuantisedInput(conv, "xnor", 1)(x), expected, rtol=1e-5, atol=1e-6)


def test_xnor_of_a_linear_layer_and_its_gradient() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(7, 3)
    x = torch.tensor([[0.5, -0.5, 2.0, 0.0, -3.0, 0.1, -0.9]], requires_grad=True)
    signs = torch.tensor([[1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0]])
    out = QuantisedInput(linear, "xnor", 1)(x)
    size = x.detach().abs().mean()
    torch.testing.assert_close(out, signs @ linear.weight.T * size + linear.bias)
    out.sum().backward()
    through = linear.weight.sum(0) * size * (x.detach().abs() < 1)
    around = (signs @ linear.weight.T).sum() * x.detach().sign() / 7
    torch.testing.assert_close(x.grad, through + around)


def test_quantised_inputs_export(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        QuantisedInput(nn.Conv2d(3, 8, 3), "fixed_point", 6),
        nn.ReLU(),
        QuantisedInput(nn.Conv2d(8, 6, 3, padding=1), "fixed_point", 4),
        QuantisedInput(nn.Conv2d(6, 4, 3, padding=1, groups=2), "xnor", 1),
        nn.Flatten(),
        QuantisedInput(nn.Linear(4 * 16, 5), "dorefa", 4),
    ).eval()
    data = batches()
    calibrate_inputs(model, data)
    export(model, data[0][0], tmp_path / "model.onnx")
    check(model, tmp_path / "model.onnx", data[0][0])
    torch.export.export(model, (data[0][0],))  # with gradients on too
