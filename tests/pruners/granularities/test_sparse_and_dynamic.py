"""Worked examples of the granularities scatter, n_of_m, element and dynamic, beyond the contract of all of them."""

import copy
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunefront.errors import PrunefrontError
from prunefront.pipelines.formats.onnx_export import check, export
from prunefront.pruners.granularities import dynamic, layer_granularities
from prunefront.pruners.granularities.dynamic import GatedLayer
from prunefront.pruners.granularities.element import DENSITY, Element
from prunefront.pruners.granularities.n_of_m import NofM
from prunefront.pruners.granularities.scatter import ScatteredLayer
from prunefront.pruners.graph.layers import Layer
from prunefront.pruners.units.masks import n_of_m


def layer_of(conv: nn.Conv2d | nn.Linear, positions: int = 64, *, writes: bool = True) -> Layer:
    groups = conv.groups if isinstance(conv, nn.Conv2d) else 1
    bias = conv.bias is not None
    return Layer(
        "l.weight", "l", tuple(conv.weight.shape), positions, groups, bias=bias, norm="n", writes=writes
    )


def with_norm(conv: nn.Conv2d) -> nn.Sequential:
    norm = nn.BatchNorm2d(conv.out_channels)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return nn.Sequential(conv, norm).eval()


def compacted(name: str, module: nn.Module, count: int, positions: int = 64) -> nn.Module:
    """By the size of each unit's weights."""
    conv = module[0] if isinstance(module, nn.Sequential) else module
    layer, granularity = layer_of(conv, positions), layer_granularities[name]
    scores = granularity.units(layer, conv.weight.detach().double()).square().sum(1)
    return granularity.compact(layer, count, granularity.pattern(layer, count, scores), module)


# scatter


def test_scatter_leaves_the_kept_outputs_and_writes_zeros_for_the_others() -> None:
    torch.manual_seed(0)
    dense = with_norm(nn.Conv2d(3, 5, 3))
    compact = layer_granularities["scatter"].compact(
        layer_of(dense[0]), 2, {"index": torch.tensor([1, 4])}, dense
    )
    x = torch.randn(2, 3, 6, 6)
    expected = dense(x)
    expected[:, [0, 2, 3]] = 0.0
    torch.testing.assert_close(compact(x), expected)
    assert isinstance(compact, ScatteredLayer)
    assert compact.layer.weight.shape == (2, 3, 3, 3)
    assert compact.norm.weight.shape == (2,)


def test_scatter_is_for_layers_that_write_a_stream() -> None:
    conv = nn.Conv2d(3, 5, 3)
    assert layer_granularities["scatter"].why_not(layer_of(conv)) is None
    assert "drop its outputs as channels" in str(
        layer_granularities["scatter"].why_not(layer_of(conv, writes=False))
    )


# n_of_m


def teams(weight: Tensor) -> Tensor:
    """Non-zeros of every four consecutive input channels."""
    return weight.unflatten(1, (-1, 4)).count_nonzero(2)


def test_n_of_m_goes_by_the_scores_whatever_their_sign() -> None:
    linear = nn.Linear(8, 1)
    scores = torch.tensor([-9.0, -1.0, -2.0, -8.0, 5.0, 5.0, 5.0, -70.0], dtype=torch.float64)
    assert layer_granularities["n_of_m"].pattern(layer_of(linear), 2, scores)["index"].tolist() == [
        1,
        2,
        4,
        5,
    ]


def test_every_team_has_n_non_zeros_throughout_training() -> None:
    torch.manual_seed(0)
    module = compacted("n_of_m", nn.Conv2d(8, 6, 3), 2)
    optimizer = torch.optim.SGD(module.parameters(), 0.5, momentum=0.9)
    before = module.weight.detach().clone()
    for _ in range(3):
        for _ in range(3):
            optimizer.zero_grad()
            module.train()(torch.randn(4, 8, 5, 5)).sub(1.0).square().mean().backward()
            optimizer.step()
        assert (teams(module.eval().state_dict()["weight"]) == 2).all()
    assert not torch.equal(module.weight != 0, before != 0), "no mask was refreshed"


def test_sr_ste_by_hand() -> None:
    linear = nn.Linear(4, 1, bias=False)
    linear.weight.data = torch.tensor([[3.0, -1.0, 0.5, -2.0]])
    module = NofM(linear, 2).train()
    x = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    assert module(x).item() == 3.0 - 2000.0
    (2.0 * module(x)).sum().backward()
    # ∂L/∂w̃ = 2x for all four; the two smallest get λ w on top
    expected = [2.0, 20.0 + module.decay * -1.0, 200.0 + module.decay * 0.5, 2000.0]
    torch.testing.assert_close(module.weight.grad, torch.tensor([expected]), rtol=0, atol=0)
    module.weight.grad, module.decay = None, 0.25
    (2.0 * module(x)).sum().backward()
    assert module.weight.grad.tolist() == [[2.0, 19.75, 200.125, 2000.0]]


def test_without_decay_it_is_the_plain_straight_through_estimator() -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 3, 3).double(), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    masked = (conv.weight * n_of_m(conv.weight, 1, 4)).detach().requires_grad_()
    F.conv2d(x, masked, conv.bias).square().sum().backward()
    module = NofM(copy.deepcopy(conv), 1, decay=0.0).train()
    module(x).square().sum().backward()
    torch.testing.assert_close(module.weight.grad, masked.grad)


def test_evaluating_between_steps_does_not_forget_the_weights_that_are_trained() -> None:
    linear = nn.Linear(4, 1, bias=False)
    linear.weight.data = torch.tensor([[3.0, -1.0, 0.5, -2.0]])
    module = NofM(linear, 2).train()
    assert module.eval().eval().weight.tolist() == [[3.0, 0.0, 0.0, -2.0]]
    copied = copy.deepcopy(module)
    assert module.train().weight.tolist() == [[3.0, -1.0, 0.5, -2.0]]
    copied.load_state_dict({"weight": torch.tensor([[0.0, 5.0, 7.0, 0.0]])})
    assert copied.train().weight.tolist() == [[0.0, 5.0, 7.0, 0.0]], "another network's weights came back"


def test_a_file_with_too_many_in_a_team_is_refused() -> None:
    linear = nn.Linear(8, 1, bias=False)
    weight = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    with pytest.raises(PrunefrontError, match="layer 'l': more than 2 of 4"):
        layer_granularities["n_of_m"].restore(layer_of(linear), 2, {"weight": weight}, linear)


# element


def test_zeros_stay_zero_whatever_the_optimiser_does() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    module = copy.deepcopy(compacted("element", conv, 20)).train()
    gone = module.weight == 0
    assert int(gone.sum()) == module.weight.numel() - 20
    before = module.weight.detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        module(torch.randn(2, 3, 6, 6)).square().mean().backward()
        optimizer.step()
        assert torch.equal(module.weight == 0, gone)
    assert (module.weight[~gone] != before[~gone]).all()


def test_a_momentum_of_before_the_cut_does_not_revive_weights() -> None:
    module = compacted("element", nn.Linear(6, 4), 5).train()
    gone = module.weight == 0
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    optimizer.state[module.weight]["momentum_buffer"] = torch.ones(4, 6)
    x = torch.randn(3, 6)
    module(x).square().mean().backward()
    optimizer.step()
    weight = module.weight.detach().clone()
    torch.testing.assert_close(module(x), F.linear(x, weight.masked_fill(gone, 0.0), module.bias))
    assert torch.equal(module.eval().weight == 0, gone)


def test_a_kept_weight_that_is_zero_for_a_while_still_learns() -> None:
    module = compacted("element", nn.Linear(6, 4), 5).train()
    with torch.no_grad():
        module.weight.zero_()  # as a quantised weight may be
    module(torch.ones(1, 6)).sum().backward()
    assert module.weight.grad.count_nonzero() == 5


def test_a_file_with_more_weights_than_were_kept_is_refused() -> None:
    linear = nn.Linear(3, 1, bias=False)
    with pytest.raises(PrunefrontError, match="layer 'l': more than 2 of its weights"):
        layer_granularities["element"].restore(layer_of(linear), 2, {"weight": torch.ones(1, 3)}, linear)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(1024, 1024), (2, 3, 1024)),
        (nn.Conv2d(64, 256, 1, bias=False), (2, 64, 16, 16)),
        (nn.Conv2d(16, 256, (3, 5), (1, 2), (2, 1), (1, 2)), (2, 16, 12, 32)),
    ],
    ids=["linear", "1×1", "3×5"],
)
def test_the_sparse_product_is_the_dense_one(
    layer: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.backends.mkl.is_available():
        pytest.skip("this torch has no MKL, whose sparse product it is")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    torch.manual_seed(0)
    x = torch.randn(shape)
    module = compacted("element", layer, int(DENSITY * layer.weight.numel())).eval()
    assert isinstance(module, Element)
    for changed in (module, copy.deepcopy(module)):
        with torch.no_grad():
            got = changed.rows.product(x, changed.weight, changed.bias)
            assert got is not None
            assert got.is_contiguous()
            torch.testing.assert_close(got, changed.product(x, changed.weight, changed.bias))
            changed.weight.mul_(-3.0)  # must not be computed with what was
            torch.testing.assert_close(changed(x), changed.product(x, changed.weight, changed.bias))
    with torch.no_grad():
        module.weight.fill_(1.0)
        assert module.rows.product(x, module.weight, module.bias) is None, "dense weights"


# dynamic


def gated(count: int, inputs: int = 4, outputs: int = 6) -> GatedLayer:
    """With a gate that says something else for every input."""
    torch.manual_seed(0)
    conv, norm = with_norm(nn.Conv2d(inputs, outputs, 3, padding=1))
    gate = nn.Linear(inputs, outputs)
    nn.init.normal_(gate.weight, 0.0, 3.0)
    return GatedLayer(conv, norm, gate, count).eval()


def test_with_all_channels_it_is_the_layer_times_the_gate() -> None:
    module, x = gated(6), torch.randn(3, 4, 5, 5)
    q = torch.relu(module.gate(x.mean((2, 3))))
    expected = module.norm(module.conv(x)) * q[:, :, None, None]
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module(x[:1]), expected[:1])


def test_gathered_equals_masked() -> None:
    module, x = gated(3), torch.randn(20, 4, 5, 5)
    together = module(x)
    torch.testing.assert_close(torch.cat([module(one) for one in x.split(1)]), together)
    chosen = together.abs().amax((2, 3)) > 0
    assert (chosen.sum(1) <= 3).all()
    assert len(chosen.unique(dim=0)) > 1, "every input chose the same"


def test_the_next_layer_reads_the_chosen_channels_alone() -> None:
    first, second = gated(3), nn.Conv2d(6, 5, 3, 2)
    for x in torch.randn(5, 1, 4, 7, 7):
        made, index = first.chosen_outputs(x)
        found = second._conv_forward(torch.relu(made), second.weight[:, index], second.bias)
        torch.testing.assert_close(found, second(torch.relu(first(x))))


def test_a_batch_of_one_does_not_leave_the_norm_out_of_its_recalibration() -> None:
    module = gated(2)
    module.norm.train()
    before = module.norm.running_mean.clone()
    module(torch.randn(1, 4, 5, 5))
    assert (module.norm.running_mean != before).all()


def test_training_shrinks_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic, "DECAY", 0.5)
    module, x = gated(3).train(), torch.randn(3, 4, 5, 5)
    module(x).square().mean().backward()
    got = module.gate.weight.grad
    module.zero_grad()
    monkeypatch.setattr(dynamic, "DECAY", 0.0)
    (module(x).square().mean() + 0.5 * torch.relu(module.gate(x.mean((2, 3)))).sum()).backward()
    torch.testing.assert_close(got, module.gate.weight.grad)


@pytest.mark.parametrize("positions", [1, 2, 3, 64])
@pytest.mark.parametrize("kernel", [1, 2])
def test_a_gate_is_cheaper_than_what_it_saves(positions: int, kernel: int) -> None:
    layer, entry = layer_of(nn.Conv2d(5, 3, kernel), positions), layer_granularities["dynamic"]
    cheaper = [count for count in (1, 2, 3) if count * 5 * kernel**2 * positions + 15 < layer.macs]
    assert list(entry.counts(layer)) == cheaper
    assert (entry.why_not(layer) is None) == bool(cheaper)


# all


def test_a_network_of_all_of_them_exports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        compacted("scatter", with_norm(nn.Conv2d(3, 8, 3, padding=1)), 5),
        compacted("n_of_m", nn.Conv2d(8, 6, 3), 2).train(),  # dense weights until it is exported
        nn.ReLU(),
        gated(3, 6, 4),
        compacted("element", nn.Conv2d(4, 5, 3, bias=False), 40),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    images = torch.randn(5, 3, 12, 12)
    export(model, images, tmp_path / "m.onnx")
    check(model, tmp_path / "m.onnx", images)
    stored = {t.name: t for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    tensors = {name for name, t in stored.items() if t.dims and t.data_type != onnx.TensorProto.INT64}
    # norms are folded, and no mask or second copy of a weight is in the file
    assert tensors == {k for k in model.state_dict() if ".norm." not in k and k != "0.index"}
    assert (teams(torch.tensor(onnx.numpy_helper.to_array(stored["1.weight"]))) == 2).all()
