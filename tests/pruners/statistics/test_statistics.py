import copy
import dataclasses
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.statistics import Statistics, collect, merge, run, statistics, tasks
from prunefront.pruners.statistics.first_order import first_order, separate_gates
from prunefront.pruners.trace.tracer import trace
from prunefront.pruners.units.view import FIELDS, gates
from tests.nets import NETS
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

GRADIENTS = frozenset(
    {
        "gate_gradient",
        "member_gradient",
        "weight_work",
        "weight_work_abs",
        "weight_work_square",
        "feature_taylor",
    }
)
MAPS = frozenset({"activation", "activation_signed", "activation_square", "zeros", "feature_taylor"})
ALL = frozenset(first_order.fields)


def rectified(model: nn.Module):
    """The fixture's graph, with every group behind a ReLU, so that each field applies."""
    graph = model.graph()
    return dataclasses.replace(graph, rectified=tuple(g.name for g in graph.groups))


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


def test_member_gradient_sums_what_every_gate_says_by_itself():
    model, data = made(Residual), batches()
    found = collect(model, model.graph(), data, {"member_gradient"}).values["member_gradient"]
    each = explicit(model, ["bn0", "bn1", "bn2"], data)
    torch.testing.assert_close(found["stream"], each["bn0"].abs() + each["bn2"].abs())
    torch.testing.assert_close(found["inner"], each["bn1"].abs())
    model = made(Grouped)
    found = collect(model, model.graph(), data, {"member_gradient"}).values["member_gradient"]
    tied = explicit(model, ["conv1"], data)["conv1"]
    torch.testing.assert_close(found["one"], (tied[:4] + tied[4:]).abs())


def test_gates_of_bare_parameters_are_told_apart_or_the_field_does_not_apply():
    model = made(Functional)
    together = model.graph().groups[0]
    assert separate_gates(together, model.graph()) == ((together.members[0], together.members[1]),)
    graph = dataclasses.replace(  # one bias, and two weights in the same place
        model.graph(),
        groups=(group("h", *(part(n, 0, "out", 7) for n in ("first", "second_first", "shift"))),),
    )
    graph = dataclasses.replace(
        graph,
        shapes={**graph.shapes, "second_first": (7, 6)},
        parameters=(*graph.parameters, "second_first"),
    )
    assert separate_gates(graph.groups[0], graph) is None
    assert "several weights of its module" in first_order.fields["member_gradient"](graph.groups[0], graph)
    only = dataclasses.replace(graph.groups[0], members=graph.groups[0].members[:2])
    assert separate_gates(only, graph) == ((only.members[0],), (only.members[1],))


@pytest.mark.parametrize("name", NETS)
def test_every_gate_of_the_test_nets_is_told_apart(name):
    model, inputs = NETS[name]()
    graph = trace(model, inputs)
    for where in graph.groups:
        apart = separate_gates(where, graph)
        assert apart is not None
        assert len(apart) == gates(where, graph)[1]


@pytest.mark.parametrize("kind", MODELS)
def test_weight_work_is_weight_times_gradient_summed_over_what_makes_the_unit(kind):
    model, data = made(kind), batches()
    fields = {"weight_work", "weight_work_abs", "weight_work_square"}
    found = collect(model, model.graph(), data, fields).values
    parameters = dict(model.named_parameters())
    for where in model.graph().groups:
        members = [m for m in where.members if m.role == "out" and parameters[m.tensor].ndim > 1]
        for column, (x, y) in enumerate(data):
            slopes = torch.autograd.grad(
                F.cross_entropy(model(x), y), [parameters[m.tensor] for m in members]
            )
            for unit in range(where.units):
                work = torch.cat(
                    [
                        (parameters[m.tensor] * slope)
                        .detach()
                        .movedim(m.dim, 0)[list(m.index[unit])]
                        .flatten()
                        for m, slope in zip(members, slopes, strict=True)
                    ]
                )
                for name, expected in zip(
                    sorted(fields), (work.sum(), work.abs().sum(), work.square().sum()), strict=True
                ):
                    torch.testing.assert_close(found[name][where.name][unit, column], expected)


def inputs_of(model: nn.Module, name: str, data) -> torch.Tensor:
    """Absolute values of what a module sees, all batches in one."""
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


def test_moments_and_zeros_are_those_of_what_the_consumers_see():
    model, data = made(Plain), batches()
    model.conv1.weight.data[2] = 0.0
    model.bn1.weight.data[2], model.bn1.bias.data[2] = 0.0, -1.0  # a channel that is always off
    found = collect(model, rectified(model), data, MAPS).values
    seen = inputs_of(model, "conv2", data).flatten(2).transpose(0, 1)
    torch.testing.assert_close(found["activation_signed"]["one"], seen.mean(2))  # after a ReLU
    torch.testing.assert_close(found["activation_square"]["one"], seen.square().mean(2))
    assert torch.equal(found["zeros"]["one"], (seen == 0).double().mean(2))
    assert (found["zeros"]["one"][2] == 1.0).all()
    assert 0.0 < float(found["zeros"]["one"].mean()) < 1.0
    without = collect(model, model.graph(), data, {"zeros", "activation"})  # no ReLU that the graph knows of
    assert without.get("zeros", "one") is None
    assert without.get("activation", "one") is not None


def test_zeros_of_hand_made_maps_are_counted_exactly_in_single_precision():
    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.make, self.read = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)

        def forward(self, x):
            return self.read(F.relu(self.make(x))).flatten(1)

        def graph(self):
            made, read = part("make.weight", 0, "out", 2), part("read.weight", 1, "in", 2)
            return graph_of(self, group("maps", made, part("make.bias", 0, "out", 2), read))

    model = Maps()
    model.load_state_dict(
        {
            "make.weight": torch.tensor([1.0, -1.0]).view(2, 1, 1, 1),
            "make.bias": torch.zeros(2),
            "read.weight": torch.ones(1, 2, 1, 1),
            "read.bias": torch.zeros(1),
        }
    )
    images = torch.tensor([[1.0, 0.0, -2.0, 1e-30], [-1.0, -1.0, -1.0, 0.0]]).view(2, 1, 2, 2)
    found = collect(model, rectified(model), [(images, torch.zeros(2, dtype=torch.int64))], {"zeros"})
    assert found.values["zeros"]["maps"].tolist() == [[0.5, 1.0], [0.75, 0.25]]


def taylor_of(model: nn.Module, reads, data) -> torch.Tensor:
    """Σ over consumers of mean over space of x·∂ℓ/∂x, by modules' hooks and one image at a time."""
    model, columns = copy.deepcopy(model), []
    seen = {}
    for name in reads:

        def alias(_module, inputs, name=name):
            seen[name] = inputs[0].clone()
            seen[name].retain_grad()
            return seen[name]

        model.get_submodule(name).register_forward_pre_hook(alias)
    for image, label in ((x[i : i + 1], y[i : i + 1]) for x, y in data for i in range(len(x))):
        F.cross_entropy(model(image), label).backward()
        columns.append(sum(reads[n]((seen[n] * seen[n].grad).detach()[0]) for n in reads))
    return torch.stack(columns, dim=1)


def space(work):
    return work.flatten(1).mean(1)


def test_feature_taylor_is_that_of_each_image_through_the_consumers_alone():
    data, fields = batches(), {"feature_taylor"}
    plain, residual, grouped = made(Plain), made(Residual), made(Grouped)
    found = collect(plain, plain.graph(), data, fields).values["feature_taylor"]
    torch.testing.assert_close(found["one"], taylor_of(plain, {"conv2": space}, data))
    torch.testing.assert_close(found["two"], taylor_of(plain, {"fc": lambda w: w.view(4, 4).mean(1)}, data))
    found = collect(residual, residual.graph(), data, fields).values["feature_taylor"]
    stream = taylor_of(residual, {"conv1": space, "fc": lambda w: w}, data)
    torch.testing.assert_close(found["stream"], stream)
    torch.testing.assert_close(found["inner"], taylor_of(residual, {"conv2": space}, data))
    found = collect(grouped, grouped.graph(), data, fields).values["feature_taylor"]
    one = taylor_of(grouped, {"conv2": lambda w: (space(w)[:4] + space(w)[4:]) / 2}, data)
    torch.testing.assert_close(found["one"], one)


def test_feature_taylor_of_consumers_in_a_chain_of_frozen_layers_needs_no_gradient_of_weights():
    """Asked alone, only aliases are leaves of the graph; the values are the same as beside everything else."""
    model, data = made(Residual), batches()
    alone = collect(model, model.graph(), data, {"feature_taylor"}).values["feature_taylor"]
    beside = collect(model, model.graph(), data, ALL).values["feature_taylor"]
    assert alone.keys() == beside.keys() == {"stream", "inner"}
    for name in alone:
        torch.testing.assert_close(alone[name], beside[name])


def test_activation_of_functional_calls_is_found_by_the_weight():
    model, data = made(Functional), batches()
    found = collect(model, model.graph(), data, {"activation"}).values["activation"]["hidden"]
    x = torch.cat([x for x, _ in data])
    tokens = x.flatten(2).unflatten(2, (-1, 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, F.linear(tokens, model.first, model.shift).abs().mean(1).T)


@pytest.mark.parametrize("kind", MODELS)
def test_streamed_maps_equal_those_of_one_big_batch(kind):
    model, data = made(kind), batches(count=4)
    graph = rectified(model)
    whole = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    streamed = collect(model, graph, iter(data), MAPS).values
    at_once = collect(model, graph, whole, MAPS).values
    for field in MAPS:
        assert streamed[field].keys() == at_once[field].keys() == {g.name for g in graph.groups}
        for name in streamed[field]:
            torch.testing.assert_close(streamed[field][name], at_once[field][name])


@pytest.mark.parametrize("kind", MODELS)
def test_each_field_is_the_same_alone_and_beside_the_others(kind):
    model, data = made(kind).float(), [(x.float(), y) for x, y in batches()]
    graph = rectified(model)
    together = collect(model, graph, data, ALL).values
    for field in ALL:
        alone = collect(model, graph, data, {field}).values
        assert alone.keys() == {field}
        assert alone[field].keys() == together[field].keys() != set()
        for name, tensor in alone[field].items():
            assert tensor.dtype == torch.float64
            assert tensor.shape == (graph.group(name).units, 3 if field in GRADIENTS - MAPS else 12)
            torch.testing.assert_close(tensor, together[field][name], rtol=1e-4, atol=1e-6)


def test_maps_alone_cost_no_backward_pass_and_no_loss():
    def never(_output, _target):
        raise AssertionError("nothing asked for the loss")

    model, data = made(Plain), batches()
    found = collect(model, rectified(model), data, MAPS - {"feature_taylor"}, never)
    assert found.values.keys() == MAPS - {"feature_taylor"}


@pytest.mark.parametrize("field", sorted(GRADIENTS))
def test_a_loss_without_gradient_is_an_error(field):
    model = made(Residual)
    with pytest.raises(PrunefrontError, match="no gradient flows from the loss"):
        collect(model, model.graph(), batches(), {field}, lambda y, _: y.detach().sum())


def test_a_map_that_is_changed_in_place_after_it_was_read_is_named():
    class Changed(Functional):
        def forward(self, x):
            hidden = F.linear(x.flatten(1)[:, :6], self.first, self.shift)
            y = F.linear(hidden, self.second)
            hidden.mul_(2.0)
            return y

    model = made(Changed)
    with pytest.raises(PrunefrontError, match="input of 'second' is changed in place"):
        collect(model, model.graph(), batches(), {"feature_taylor"})


def outcome(model: nn.Module, graph, data, needs):
    """Returns the values, or the reason why there are none."""
    try:
        return dict(collect(model, graph, data, needs).values)
    except PrunefrontError as error:
        return str(error)


@pytest.mark.parametrize("name", statistics)
@pytest.mark.parametrize("kind", MODELS)
def test_the_model_stays_as_it_is_and_the_callers_mode_does_not_matter(kind, name):
    model, data = made(kind), batches()
    graph, fields = rectified(model), frozenset(statistics[name].fields)
    model.train()
    frozen, *rest = model.parameters()
    frozen.requires_grad_(False)
    rest[0].grad = torch.full_like(rest[0], 3.0)
    before = copy.deepcopy(model)
    torch.manual_seed(7)
    drawn = torch.get_rng_state()
    with torch.no_grad():
        found = outcome(model, graph, data, fields)
    assert torch.equal(torch.get_rng_state(), drawn)
    for (tensor, now), then in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(now, then), tensor
    for now, then in zip(model.parameters(), before.parameters(), strict=True):
        assert now.requires_grad == then.requires_grad
    assert [p.grad is not None for p in model.parameters()].count(True) == 1
    assert torch.equal(rest[0].grad, torch.full_like(rest[0], 3.0))
    assert all(m.training for m in model.modules())
    usual = outcome(made(kind), graph, data, fields)  # eval mode, everything trainable, gradients on
    if isinstance(found, str) or isinstance(usual, str):
        assert found == usual
    else:
        torch.testing.assert_close(found, usual)


@pytest.mark.parametrize("name", statistics)
@pytest.mark.parametrize("kind", MODELS)
def test_values_keep_the_contract_however_the_work_is_divided(kind, name):
    """float64 on the CPU without gradient and finite, a view's fields with one row per unit; the same from one task or
    from several.
    """
    model, data = made(kind), batches(count=4)
    graph, fields = rectified(model), frozenset(statistics[name].fields)
    found = outcome(model, graph, data, fields)
    if isinstance(found, str):
        return
    assert found.keys() <= fields
    for field, groups in found.items():
        for where, tensor in groups.items():
            assert tensor.dtype == torch.float64
            assert tensor.device.type == "cpu"
            assert not tensor.requires_grad
            assert field not in FIELDS or len(tensor) == graph.group(where).units
            assert tensor.isfinite().all()
    for parts in (2, 3):
        divided = merge((task, run(task, model, graph, data)) for task in tasks(graph, fields, data, parts))
        torch.testing.assert_close(dict(divided.values), found)


def test_only_what_is_needed_is_gathered_and_it_pickles():
    model = made(Plain)
    assert collect(model, model.graph(), batches(), {"weight", "norm_scale"}) == Statistics()
    only = collect(model, model.graph(), batches(), {"activation"})
    assert only.values.keys() == {"activation"}
    assert set(only.values["activation"]) == {"one", "two"}
    again = pickle.loads(pickle.dumps(only))
    assert all(
        torch.equal(again.values["activation"][g], only.values["activation"][g])
        for g in only.values["activation"]
    )


@pytest.mark.parametrize(
    "need", sorted(itertools.chain.from_iterable(statistics[name].fields for name in statistics))
)
def test_no_batch_is_an_error(need):
    model = made(Plain)
    with pytest.raises(PrunefrontError, match="no calibration batch"):
        collect(model, rectified(model), [], {need})


def test_a_weight_that_no_call_takes_is_named():
    class Hidden(Functional):
        def forward(self, x):
            return x.flatten(1)[:, :6] @ self.first.T @ (2 * self.second).T

    model = made(Hidden)
    for field in MAPS:
        with pytest.raises(PrunefrontError, match=rf"'second'.*{field} of group 'hidden'"):
            collect(model, rectified(model), batches(), {field})


def test_a_sum_over_consumers_of_which_one_is_not_seen_is_an_error():
    class Half(Functional):
        def forward(self, x):
            hidden = F.linear(x.flatten(1)[:, :6], self.first, self.shift)
            return F.linear(hidden, self.second) + hidden @ (2 * self.third).T

        def __init__(self):
            super().__init__()
            self.third = nn.Parameter(torch.randn(5, 7))

        def graph(self):
            members = (*super().graph().groups[0].members, part("third", 1, "in", 7))
            return graph_of(self, group("hidden", *members))

    model = made(Half)
    with pytest.raises(PrunefrontError, match="takes 'third' as its weight, so the feature_taylor"):
        collect(model, model.graph(), batches(), {"feature_taylor"})
    assert collect(model, model.graph(), batches(), {"activation"}).values["activation"]["hidden"].shape == (
        7,
        12,
    )


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
    found = collect(model, graph, data, ALL)
    expected = (model.make(a).abs() + model.make(b).abs()).T / 2
    torch.testing.assert_close(found.values["activation"]["hidden"], expected.detach())
    reads = [model.make(x).detach().requires_grad_() for x in (a, b)]
    images = F.cross_entropy(model.read(reads[0]) + model.read(reads[1]), data[0][1], reduction="sum")
    slopes = torch.autograd.grad(images, reads)
    both = sum(x.detach() * slope for x, slope in zip(reads, slopes, strict=True))
    torch.testing.assert_close(found.values["feature_taylor"]["hidden"], both.T)
    gate = torch.ones(4, dtype=torch.float64, requires_grad=True)
    output = model.read(model.make(a) * gate) + model.read(model.make(b) * gate)
    slope = torch.autograd.grad(F.cross_entropy(output, data[0][1]), gate)[0]
    torch.testing.assert_close(found.values["gate_gradient"]["hidden"][:, 0], slope)
