"""Quantised weights in a network: rounded at once, or trained for."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunefront.choice import GroupChoice, Quantisation
from prunefront.errors import PrunefrontError
from prunefront.pruners.bits.activations import QuantisedInput, calibrate_inputs
from prunefront.pruners.bits.bit_width import quantise, quantised_parts, wrap
from prunefront.pruners.granularities import layer_granularities
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.layers import Layer, Part
from prunefront.pruners.graph.pruning_plan import LayerPlan, PruningPlan
from prunefront.pruners.plan.layer_parts import parameter_bit_widths
from prunefront.pruners.procedures import Phase
from prunefront.pruners.procedures.bit_widths import QuantisedWeights
from prunefront.pruners.procedures.hook import Hook, Progress
from prunefront.pruners.procedures.loop import effective_weights, fit, step
from prunefront.pruners.procedures.masking import MaskedWeights
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.quantisers import quantisers

RATE = 0.05


class Net(nn.Module):
    """conv → norm → ReLU → conv → mean → linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.norm(self.conv1(x)))))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


LAYERS = {"conv1.weight": 4, "conv2.weight": 4, "fc.weight": 4}


def data(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Images whose class shows in one of their channels, or in none."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(count):
        y = torch.randint(4, (16,), generator=generator)
        x = torch.randn(16, 3, 6, 6, generator=generator)
        x[torch.arange(16), y.clamp(max=2)] += 2.0 * (y < 3)[:, None, None]
        batches.append((x, y))
    return batches


def backward(model: nn.Module, batch: tuple[Tensor, Tensor], number: int) -> float:
    loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    return loss.item()


def a_run(model: nn.Module, steps: int, per_epoch: int = 4, decay: float = 0.0) -> Run:
    return Run(
        model,
        ChannelGraph((), (), (), {}, ()),
        PruningPlan(()),
        steps=steps,
        per_epoch=per_epoch,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), RATE, momentum=0.9, weight_decay=decay),
    )


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def coded(model: nn.Module, name: str, bits: int, quantiser: str = "fixed_point") -> Tensor:
    """Returns the numbers that the codes of a weight stand for, with the buffers beside it."""
    q, state = quantisers[quantiser], model.state_dict()
    scale, offset = state[f"{name}_scale"], state.get(f"{name}_offset")
    return q.decoded(q.codes(state[name], scale, offset, bits), scale, offset, bits)


# put there at once


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("quantiser", sorted(quantisers))
def test_quantised_weights_are_on_the_levels_of_their_buffers(quantiser: str, per_channel: bool) -> None:
    model, quantisation = Net(), Quantisation(quantiser, per_channel)
    bits = dict.fromkeys(LAYERS, quantisers[quantiser].bits[-1] if quantiser != "fixed_point" else 4)
    before = copies(model)
    quantise(model, {**bits, "fc.weight": 32}, quantisation)
    after = copies(model)
    for name in ("conv1.weight", "conv2.weight"):
        shape = quantisers[quantiser].scale_shape(tuple(after[name].shape), per_channel, bits[name])
        assert tuple(after[f"{name}_scale"].shape) == shape
        assert torch.equal(after[name], coded(model, name, bits[name], quantiser))
        assert not torch.equal(after[name], before[name])
    added = {f"{name}_scale" for name in ("conv1.weight", "conv2.weight")}
    assert added <= after.keys() - before.keys()
    same = before.keys() - {"conv1.weight", "conv2.weight"}
    assert all(torch.equal(after[name], before[name]) for name in same)
    quantise(model, bits, quantisation)
    again = copies(model)
    assert all(torch.equal(again[name], t) for name, t in after.items() if not name.startswith("fc"))
    assert torch.equal(again["fc.weight"], coded(model, "fc.weight", bits["fc.weight"], quantiser))


def test_fewer_bits_lose_more() -> None:
    errors = []
    for bits in (2, 3, 4, 6, 8, 12, 16):
        model = Net()
        dense = model.conv2.weight.detach().clone()
        quantise(model, {"conv2.weight": bits}, Quantisation())
        errors.append((model.conv2.weight - dense).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6 * errors[0]


def test_what_cannot_be_quantised_is_refused() -> None:
    for bits, message in (({"conv1.weight": 1}, "1 bits"), ({"norm.weight": 4}, "single axis")):
        with pytest.raises(PrunefrontError, match=message):
            quantise(Net(), bits, Quantisation())
        with pytest.raises(PrunefrontError, match=message):
            QuantisedWeights(Net(), bits, Quantisation())
    broken = Net()
    with torch.no_grad():
        broken.fc.weight[0, 0] = torch.nan
    with pytest.raises(PrunefrontError, match=r"'fc\.weight' is not finite"):
        quantise(broken, {"fc.weight": 4}, Quantisation())


# what is stored


def planned(granularity: str | None, bits: int, quantisation: Quantisation) -> tuple[PruningPlan, nn.Module]:
    """A plan for the only layer of a network, and the network that it makes, in float."""
    torch.manual_seed(2)
    layer = Layer(
        "0.weight", "0", (8, 8, 3, 3), 64, bias=True, norm="1", reads=True, writes=True, stride=(1, 1)
    )
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)).eval()
    choice = GroupChoice("l1", 0.5, granularity or "channel", bits)
    if granularity is None:
        return PruningPlan(
            (), layers=(LayerPlan(layer, choice, None, 0.0, 0.0),), quantisation=quantisation
        ), model
    entry = layer_granularities[granularity]
    assert entry.why_not(layer) is None
    counts = entry.counts(layer)
    count = counts[len(counts) // 2]
    module = model if entry.fuses_norm else model[0]
    weight = model[0].weight.detach().double()
    scores = torch.rand(len(entry.units(layer, weight)), dtype=torch.float64)
    made = entry.compact(layer, count, entry.pattern(layer, count, scores), module)
    network = nn.Sequential(made, nn.Identity() if entry.fuses_norm else model[1])
    return PruningPlan(
        (), layers=(LayerPlan(layer, choice, count, 0.5, 0.5),), quantisation=quantisation
    ), network.eval()


def parts_of(plan: PruningPlan) -> dict[str, Part]:
    """The parts of the only layer's module, with float values."""
    (layer,) = plan.layers
    if layer.count is None:
        return {"weight": Part(layer.layer.shape), "bias": Part((8,), "float")}
    return dict(layer_granularities[layer.choice.granularity].parts(layer.layer, layer.count))


@pytest.mark.parametrize("activations", ["none", "fixed_point", "dorefa"])
@pytest.mark.parametrize("granularity", [None, *sorted(layer_granularities)])
def test_the_state_dict_is_what_the_parts_say(granularity: str | None, activations: str) -> None:
    quantisation = Quantisation("fixed_point", True, activations, 4)
    plan, model = planned(granularity, 3, quantisation)
    parts = quantised_parts(parts_of(plan), 3, quantisation)
    wrap(model, plan.bit_widths(), quantisation)
    bits = parameter_bit_widths(plan)
    assert bits
    quantise(model, bits, quantisation)
    x = torch.randn(2, 8, 8, 8)
    calibrate_inputs(model, [(x, None)])
    state = model[0].state_dict()
    assert {n: tuple(t.shape) for n, t in state.items()} == {n: p.shape for n, p in parts.items()}
    values = {name for name, part in parts.items() if part.kind == "value"}
    assert {f"0.{name}" for name in values} == bits.keys()
    for name in values:
        assert (parts[name].bits, parts[name].levels) == (3, "fixed_point")
        assert torch.equal(state[name], coded(model, f"0.{name}", 3))
    assert model(x).isfinite().all()


def test_zeros_that_must_stay_are_refused_where_there_is_no_level() -> None:
    sparse = {"weight": Part((4, 4), form="mask", kept=3), "bias": Part((4,), "float")}
    with pytest.raises(PrunefrontError, match="'weight' has zeros that must stay, and quantiser 'affine'"):
        quantised_parts(sparse, 4, Quantisation("affine"))
    made = quantised_parts(sparse, 2, Quantisation("twn"))
    assert made["weight"].kept == 3
    assert made["bias"] == sparse["bias"]
    dense = quantised_parts({"weight": Part((4, 4))}, 4, Quantisation("affine", per_channel=False))
    assert dense["weight_scale"] == dense["weight_offset"] == Part((1, 1), "float")


def test_layers_that_cannot_take_an_input_quantiser_are_named() -> None:
    model = Net()
    wrap(model, ["conv1.weight"], Quantisation())
    assert isinstance(model.conv1, nn.Conv2d)
    wrap(model, ["conv1.weight", "fc.weight"], Quantisation(activations="xnor", activation_bits=1))
    assert isinstance(model.conv1, QuantisedInput)
    assert model(data(1)[0][0]).shape == (16, 4)
    odd = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(PrunefrontError, match="layer '0': xnor"):
        wrap(odd, ["0.weight"], Quantisation(activations="xnor", activation_bits=1))
    with pytest.raises(PrunefrontError, match="bits, not 12"):
        wrap(model, ["conv2.weight"], Quantisation(activations="dorefa", activation_bits=12))


# trained for


class Spy(Hook):
    """Comes after the hook in question: what computes, what is trained, and which gradients arrive."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name = model, name
        self.computed: list[Tensor] = []
        self.trained: list[Tensor] = []
        self.raw: list[Tensor] = []
        self.gradient: list[Tensor] = []

    def _now(self) -> Tensor:
        return self.model.get_parameter(self.name).detach().clone()

    def install(self, run: Progress) -> None:
        self.computed.append(self._now())

    def restore(self, run: Progress) -> None:
        grad = self.model.get_parameter(self.name).grad
        if grad is not None:
            self.raw.append(grad.clone())

    def use_gradients(self, run: Progress) -> bool:
        self.gradient.append(self.model.get_parameter(self.name).grad.clone())
        return True

    def after_step(self, run: Progress) -> None:
        self.trained.append(self._now())


def trained(
    model: nn.Module, hooks: tuple[Hook, ...], steps: int, decay: float = 0.0
) -> tuple[Run, list[float]]:
    """The run and the loss of each epoch."""
    run, batches = a_run(model, steps, decay=decay), data()
    stream = (batches[i % len(batches)] for i in range(steps))
    phases = iter([Phase(steps, hooks=hooks)])
    reports = fit(run, phases, stream, backward, learning_rate=RATE, schedule=lambda done: 1.0)
    return run, [report.loss for report in reports]


@pytest.mark.parametrize("quantiser", sorted(quantisers))
def test_training_with_words_lowers_the_loss_and_leaves_levels(quantiser: str) -> None:
    bits = 4 if 4 in quantisers[quantiser].bits else quantisers[quantiser].bits[0]
    model, quantisation = Net(), Quantisation(quantiser)
    hook = QuantisedWeights(model, dict.fromkeys(LAYERS, bits), quantisation)
    run, losses = trained(model, (hook,), 60)
    assert losses[-1] < 0.7 * losses[0]
    hook.finish(run)
    for name in LAYERS:
        assert torch.equal(model.get_parameter(name).detach(), coded(model, name, bits, quantiser))


def test_levels_compute_and_float_weights_are_trained() -> None:
    model = Net()
    hook = QuantisedWeights(model, {"conv2.weight": 2}, Quantisation(per_channel=False))
    spy = Spy(model, "conv2.weight")
    run, _ = trained(model, (hook, spy), 6)
    for computed, weight in zip(spy.computed, spy.trained, strict=False):
        assert len(computed.unique()) == 3
        assert len(weight.unique()) > 100
    # the evaluation between the epochs sees levels too, and training goes on from the float weights
    assert len(spy.computed) == 6 + 1
    weight = model.conv2.weight.detach().clone()
    with effective_weights(run, (hook,)):
        assert len(model.conv2.weight.unique()) == 3
    assert torch.equal(model.conv2.weight, weight)
    assert "conv2.weight_scale" not in model.state_dict()


def test_the_gradient_stops_where_levels_do() -> None:
    model = Net()
    hook = QuantisedWeights(model, {"conv2.weight": 3}, Quantisation())
    spy = Spy(model, "conv2.weight")
    weight = model.conv2.weight.detach().clone()
    step(a_run(model, 4), (hook, spy), data()[0], backward)
    scale, _ = quantisers["fixed_point"].fit(weight, 3, True)
    inside = weight.abs() <= 3 * scale
    assert 0.01 < (~inside).float().mean() < 0.5
    assert spy.raw[0].ne(0).all()
    assert torch.equal(spy.gradient[0], spy.raw[0] * inside)


@pytest.mark.parametrize(("quantiser", "bits", "each"), [("fixed_point", 4, False), ("twn", 2, True)])
def test_scales_are_refreshed_with_the_epochs_or_the_steps(quantiser: str, bits: int, each: bool) -> None:
    model = Net()
    hook = QuantisedWeights(model, {"fc.weight": bits}, Quantisation(quantiser, per_channel=False))
    spy = Spy(model, "fc.weight")
    trained(model, (hook, spy), 12)
    # the smallest size of a level other than zero is the scale; after every 4 steps there is an evaluation
    sizes = [w.abs()[w != 0].min().item() for w in spy.computed]
    assert len(sizes) == 12 + 2
    epochs = [sizes[:4], sizes[4:9], sizes[9:]]
    for number, epoch in enumerate(epochs):
        # the evaluation after an epoch and the first step of the next one have the same weights
        distinct = len(set(epoch))
        assert distinct == (min(len(epoch), 4) if each else 1), number
    assert len(set(sizes)) == (12 if each else 3)


def test_pruned_weights_stay_zero() -> None:
    model = Net()
    weight = model.conv2.weight
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    masked = MaskedWeights({"conv2.weight": weight}, {"conv2.weight": mask})
    hook = QuantisedWeights(model, LAYERS, Quantisation())
    spy = Spy(model, "conv2.weight")
    run, _ = trained(model, (masked, hook, spy), 8, decay=1e-2)
    hook.finish(run)
    for tensor in (*spy.computed, *spy.trained, model.conv2.weight):
        assert not tensor[~mask].any()
        assert tensor[mask].any()


def test_binary_weights_are_kept_centred_and_small() -> None:
    model = Net()
    hook = QuantisedWeights(model, {"conv2.weight": 1}, Quantisation("bwn"))
    with torch.no_grad():
        model.conv2.weight.mul_(30.0)
    spy = Spy(model, "conv2.weight")
    trained(model, (hook, spy), 3)
    for weight in spy.trained:
        assert weight.abs().max() <= 1.0
    assert spy.trained[0].abs().max() == 1.0
    small = Net()
    other = Spy(small, "conv2.weight")
    trained(small, (QuantisedWeights(small, {"conv2.weight": 1}, Quantisation("bwn")), other), 3)
    for weight in other.trained:
        torch.testing.assert_close(weight.mean(1), torch.zeros(8, 3, 3), rtol=0, atol=1e-7)
