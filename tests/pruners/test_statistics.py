import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruners.errors import PrunefrontError
from pruners.statistics import Statistics, collect
from pruners.view import MEASURED
from tests.pruners.fixtures import (
    MODELS,
    Functional,
    Grouped,
    Plain,
    Residual,
    batches,
    graph_of,
    group,
    made,
    part,
)


def gated(model: nn.Module, names: list[str]):
    """Gates z ≡ 1 behind the named modules: the definition, against which parameter gradients are checked."""
    gates = {}
    for name in names:
        module = model.get_submodule(name)

        def multiply(_module, _inputs, output, name=name):
            channels = output.shape[1]
            gates[name] = torch.ones(channels, dtype=output.dtype, requires_grad=True)
            return output * gates[name].view(1, channels, *[1] * (output.ndim - 2))

        module.register_forward_hook(multiply)
    return gates


def explicit(model: nn.Module, names: list[str], data) -> dict[str, torch.Tensor]:
    """∂L_b/∂z of every named module's output channels, [channels, batches]."""
    model = copy.deepcopy(model)
    gates = gated(model, names)
    columns = []
    for x, y in data:
        loss = F.cross_entropy(model(x), y)
        columns.append(torch.autograd.grad(loss, [gates[n] for n in names]))
    return {name: torch.stack([c[i] for c in columns], dim=1) for i, name in enumerate(names)}


def test_gate_gradient_of_a_norm_is_that_of_an_explicit_gate():
    model, data = made(Plain), batches()
    found = collect(model, model.graph(), data, {"gate_gradient"}).values["gate_gradient"]["one"]
    torch.testing.assert_close(found, explicit(model, ["bn1"], data)["bn1"])
    assert found.shape == (6, 3)


def test_gate_gradient_without_norm_is_that_of_a_gate_behind_the_conv_and_its_bias():
    model, data = made(Plain), batches()
    found = collect(model, model.graph(), data, {"gate_gradient"}).values["gate_gradient"]["two"]
    torch.testing.assert_close(found, explicit(model, ["conv2"], data)["conv2"])


def test_gates_that_share_a_stream_are_summed_and_divided_by_their_number():
    model, data = made(Residual), batches()
    found = collect(model, model.graph(), data, {"gate_gradient"}).values["gate_gradient"]["stream"]
    each = explicit(model, ["bn0", "bn2"], data)
    torch.testing.assert_close(found, (each["bn0"] + each["bn2"]) / 2)


def test_gate_gradient_of_tied_channels_is_that_of_one_gate_on_both():
    model, data = made(Grouped), batches()
    found = collect(model, model.graph(), data, {"gate_gradient"}).values["gate_gradient"]
    each = explicit(model, ["conv1", "conv2"], data)
    torch.testing.assert_close(found["one"], each["conv1"][:4] + each["conv1"][4:])
    torch.testing.assert_close(found["two"], each["conv2"][:2] + each["conv2"][2:])


def inputs_of(model: nn.Module, name: str, data) -> torch.Tensor:
    """What a module sees, all batches in one."""
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.cat([x for x, _ in data]))
    handle.remove()
    return seen[0].abs()


def test_activation_is_what_the_consumers_see_image_by_image():
    data = batches()
    plain, residual, grouped = made(Plain), made(Residual), made(Grouped)
    found = collect(plain, plain.graph(), data, {"activation"}).values["activation"]
    torch.testing.assert_close(found["one"], inputs_of(plain, "conv2", data).mean((2, 3)).T)
    torch.testing.assert_close(found["two"], inputs_of(plain, "fc", data).unflatten(1, (4, 4)).mean(2).T)
    found = collect(residual, residual.graph(), data, {"activation"}).values["activation"]
    both = inputs_of(residual, "conv1", data).mean((2, 3)) + inputs_of(residual, "fc", data)
    torch.testing.assert_close(found["stream"], both.T / 2)
    found = collect(grouped, grouped.graph(), data, {"activation"}).values["activation"]
    tied = inputs_of(grouped, "conv2", data).mean((2, 3))
    torch.testing.assert_close(found["one"], (tied[:, :4] + tied[:, 4:]).T / 2)


def test_activation_of_functional_calls_is_found_by_the_weight():
    model, data = made(Functional), batches()
    found = collect(model, model.graph(), data, {"activation"}).values["activation"]["hidden"]
    x = torch.cat([x for x, _ in data])
    tokens = x.flatten(2).unflatten(2, (-1, 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, F.linear(tokens, model.first, model.shift).abs().mean(1).T)


@pytest.mark.parametrize("kind", MODELS)
def test_streamed_activations_equal_those_of_one_big_batch(kind):
    model, data = made(kind), batches(count=4)
    whole = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    streamed = collect(model, model.graph(), iter(data), {"activation"}).values["activation"]
    at_once = collect(model, model.graph(), whole, {"activation"}).values["activation"]
    assert streamed.keys() == at_once.keys() == {g.name for g in model.graph().groups}
    for name in streamed:
        torch.testing.assert_close(streamed[name], at_once[name])


@pytest.mark.parametrize("kind", MODELS)
def test_the_model_stays_as_it_is(kind):
    model, data = made(kind), batches()
    model.train()
    frozen, *rest = model.parameters()
    frozen.requires_grad_(False)
    rest[0].grad = torch.full_like(rest[0], 3.0)
    before = copy.deepcopy(model)
    with torch.no_grad():  # whatever the caller's mode
        found = collect(model, model.graph(), data, MEASURED)
    for (name, now), then in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(now, then), name
    for now, then in zip(model.parameters(), before.parameters(), strict=True):
        assert now.requires_grad == then.requires_grad
    assert [p.grad is not None for p in model.parameters()].count(True) == 1
    assert torch.equal(rest[0].grad, torch.full_like(rest[0], 3.0))
    assert all(m.training for m in model.modules())
    reference = collect(made(kind), model.graph(), data, MEASURED)  # eval mode, everything trainable
    for name in found.values["gate_gradient"]:
        torch.testing.assert_close(
            found.values["gate_gradient"][name], reference.values["gate_gradient"][name]
        )


def test_only_what_is_needed_is_gathered_and_it_pickles():
    model = made(Plain)
    assert collect(model, model.graph(), batches(), {"weight", "norm_scale"}) == Statistics()
    only = collect(model, model.graph(), batches(), {"activation"})
    assert not only.values["gate_gradient"]
    assert set(only.values["activation"]) == {"one", "two"}
    again = pickle.loads(pickle.dumps(only))
    assert all(
        torch.equal(again.values["activation"][g], only.values["activation"][g])
        for g in only.values["activation"]
    )


@pytest.mark.parametrize("need", sorted(MEASURED))
def test_no_batch_is_an_error(need):
    model = made(Plain)
    with pytest.raises(PrunefrontError, match="no calibration batch"):
        collect(model, model.graph(), [], {need})


def test_a_weight_that_no_call_takes_is_named():
    class Hidden(Functional):
        def forward(self, x):
            return x.flatten(1)[:, :6] @ self.first.T @ (2 * self.second).T

    model = made(Hidden)
    with pytest.raises(PrunefrontError, match=r"'second'.*'hidden'"):
        collect(model, model.graph(), batches(), {"activation"})


def test_products_with_transposed_weights_are_seen():
    class Product(Functional):
        def forward(self, x):
            return torch.matmul(x.flatten(1)[:, :6] @ self.first.T, self.second.T)

    model, data = made(Product), batches()
    found = collect(model, model.graph(), data, {"activation"}).values["activation"]["hidden"]
    x = torch.cat([x for x, _ in data]).flatten(1)[:, :6]
    torch.testing.assert_close(found, (x @ model.first.T).abs().T)


def test_several_inputs_and_a_weight_that_is_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.make, self.read = nn.Linear(3, 4), nn.Linear(4, 5)

        def forward(self, a, b):
            return self.read(self.make(a)) + self.read(self.make(b))

    model = made(Twice)
    graph = graph_of(
        model,
        group(
            "hidden",
            part("make.weight", 0, "out", 4),
            part("make.bias", 0, "out", 4),
            part("read.weight", 1, "in", 4),
        ),
    )
    a, b = torch.randn(2, 6, 3, dtype=torch.float64)
    data = [((a, b), torch.zeros(6, dtype=torch.int64))]
    found = collect(model, graph, data, MEASURED)
    expected = (model.make(a).abs() + model.make(b).abs()).T / 2
    torch.testing.assert_close(found.values["activation"]["hidden"], expected.detach())
    gate = torch.ones(4, dtype=torch.float64, requires_grad=True)
    output = model.read(model.make(a) * gate) + model.read(model.make(b) * gate)
    slope = torch.autograd.grad(F.cross_entropy(output, data[0][1]), gate)[0]
    torch.testing.assert_close(found.values["gate_gradient"]["hidden"][:, 0], slope)
