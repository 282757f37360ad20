import copy
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunefront.choice import GroupChoice
from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.procedures import loop, procedures
from prunefront.pruners.procedures.hook import Hook, Progress
from prunefront.pruners.procedures.masking import MaskedWeights, StraightThrough
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.procedures.weights import dns as dns_module
from prunefront.pruners.procedures.weights import lrpet, rigl, scl, sr_ste
from prunefront.pruners.scoring import score
from prunefront.pruners.units.masks import erk_counts, n_of_m, weights
from tests.nets import NETS
from tests.pruners.fixtures import MODELS, Functional, Grouped, Plain, Residual, batches, made
from tests.pruners.plans import traced
from tests.pruners.training import density

MASKING = ("magnitude", "dns", "rigl", "scl", "snip")


def a_run(
    model: nn.Module,
    graph: ChannelGraph,
    steps: int,
    *,
    ratio: float = 0.0,
    per_epoch: int = 4,
    rate: float = 0.05,
    decay: float = 5e-4,
    data=None,
    seed: int = 0,
) -> Run:
    """A run of SGD with momentum and weight decay towards a plan that drops `ratio` of every group."""
    choices = {g.name: GroupChoice("l1", ratio=ratio) for g in graph.groups if ratio}
    goal = plan(graph, choices, score(model, graph, ["l1"]))
    return Run(
        copy.deepcopy(model),
        graph,
        goal,
        steps=steps,
        per_epoch=per_epoch,
        optimizer=lambda m: torch.optim.SGD(
            m.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=decay
        ),
        calibration=batches() if data is None else data,
        seed=seed,
    )


def backward(model: nn.Module, batch, number: int) -> float:
    inputs, target = batch
    loss = F.cross_entropy(model(inputs), target)
    loss.backward()
    return float(loss.detach())


def trained(run: Run, name: str, see: Hook | None = None, **options) -> nn.Module:
    """The network after the procedure; `see` joins the hooks of every phase."""

    def phases():
        for phase in procedures[name](run, **options):
            object.__setattr__(phase, "hooks", (*phase.hooks, *([see] if see else [])))
            yield phase

    stream = (batches(1, 8, seed=1000 + i)[0] for i in range(run.steps))
    for _ in loop.fit(run, phases(), stream, backward, learning_rate=0.05, schedule=lambda done: 1.0):
        pass
    return run.model


def zeros(model: nn.Module, graph: ChannelGraph) -> tuple[int, int]:
    """Zero weights, and all."""
    held = weights(model, graph).values()
    return sum(int((w == 0).sum()) for w in held), sum(w.numel() for w in held)


# what all of them keep


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", MASKING)
@pytest.mark.parametrize("steps", [0, 1, 12])
def test_exactly_the_wanted_share_of_the_weights_stays(kind, name, steps):
    run = a_run(made(kind), made(kind).graph(), steps, ratio=0.4)
    model = trained(run, name, density=0.3)
    none, every = zeros(model, run.graph)
    if (
        name == "rigl" and steps == 12
    ):  # a weight that has just come, and that the loss ignores, is still at 0
        assert every - none <= math.ceil(0.3 * every)
    else:
        assert every - none == math.ceil(round(0.3 * every, 9))
    assert run.step == steps
    assert run.counts() == run.goal_counts()


@pytest.mark.parametrize("name", ["magnitude", "dns", "rigl", "snip", "sr_ste", "lrpet"])
def test_with_nothing_to_drop_it_is_training_alone(name):
    options = {
        "sr_ste": {"n": 4},
        "lrpet": {"ratio": 0.0},
        "rigl": {"density": 1.0, "stop": 0.0},
    }.get(name, {"density": 1.0})
    model = made(Residual)
    one = trained(a_run(model, model.graph(), 9, ratio=0.3), name, **options).state_dict()
    other = trained(a_run(model, model.graph(), 9, ratio=0.3), "one_shot").state_dict()
    for key, tensor in other.items():
        if "running" not in key and "num_batches" not in key:  # estimated anew at the end of some
            torch.testing.assert_close(one[key], tensor)


@pytest.mark.parametrize("name", [*MASKING, "sr_ste", "lrpet"])
def test_the_same_seed_gives_the_same_network(name):
    model = made(Residual)
    once, again = (trained(a_run(model, model.graph(), 7, ratio=0.3), name).state_dict() for _ in "ab")
    assert all(torch.equal(once[key], again[key]) for key in once)


@pytest.mark.parametrize("name", MASKING)
@pytest.mark.parametrize("wrong", [0.0, 1.5])
def test_a_density_out_of_range_is_said(name, wrong):
    run = a_run(made(Plain), made(Plain).graph(), 0)
    with pytest.raises(PrunefrontError, match=r"density .*\(0, 1\]"):
        trained(run, name, density=wrong)


# masks


def test_neither_momentum_nor_weight_decay_revives_zeros():
    model = made(Plain)
    graph = model.graph()
    held = weights(model, graph)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for batch in batches():  # fills the momenta
        backward(model, batch, 0)
        optimizer.step()
    masks = {name: w.detach().abs() > w.detach().abs().median() for name, w in held.items()}
    hook = MaskedWeights(held, masks)
    run = a_run(model, graph, 3)
    for batch in batches(3, seed=5):
        optimizer.zero_grad()
        backward(model, batch, 0)
        assert hook.use_gradients(run)
        assert all(not held[n].grad[~m].any() for n, m in masks.items())
        optimizer.step()
        hook.after_step(run)
        assert all(torch.equal(held[n] != 0, m) for n, m in masks.items())


def test_straight_through_puts_back_what_it_took():
    model = made(Plain)
    before = copy.deepcopy(model.state_dict())
    hook = StraightThrough(weights(model, model.graph()), lambda name, w: w * 2)
    run = a_run(model, model.graph(), 1)
    hook.install(run)
    assert torch.equal(model.conv1.weight, 2 * before["conv1.weight"])
    assert torch.equal(model.conv2.bias, before["conv2.bias"])
    hook.restore(run)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


# magnitude


class Densities(Hook):
    """Share of the weights that are not zero after each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.zero: list[dict[str, Tensor]] = []

    def after_step(self, run: Progress) -> None:
        held = weights(run.model, run.graph)
        self.seen.append(density(held.values()))
        self.zero.append({name: (w == 0) for name, w in held.items()})


@pytest.mark.parametrize("threshold", ["std", "network", "erk"])
def test_magnitude_takes_geometric_rounds_and_what_goes_stays_away(threshold):
    model, see = made(Plain), Densities()
    run = a_run(model, model.graph(), 12)
    trained(run, "magnitude", see, density=0.125, rounds=3, threshold=threshold)
    expected = [1.0] * 3 + [0.5] * 3 + [0.25] * 3 + [0.125] * 3
    n = sum(w.numel() for w in weights(run.model, run.graph).values())
    assert see.seen == pytest.approx(expected, abs=1 / n)
    for early, late in zip(see.zero, see.zero[1:], strict=False):
        assert all(bool((late[name] >= zero).all()) for name, zero in early.items())


def test_magnitude_by_q_standard_deviations_does_not_mind_a_layers_scale():
    model = made(Plain)
    scaled = copy.deepcopy(model)
    scaled.conv1.weight.data.mul_(10)
    kept = []
    for net in (model, scaled):
        done = trained(a_run(net, model.graph(), 0), "magnitude", density=0.4, threshold="std")
        kept.append({n: w != 0 for n, w in weights(done, model.graph()).items()})
    assert all(torch.equal(kept[0][n], kept[1][n]) for n in kept[0])
    apart = trained(a_run(scaled, model.graph(), 0), "magnitude", density=0.4, threshold="network")
    assert (apart.conv1.weight != 0).double().mean() > kept[0]["conv1.weight"].double().mean()


def test_magnitude_says_what_it_can_do():
    with pytest.raises(PrunefrontError, match="network, std, erk"):
        trained(a_run(made(Plain), made(Plain).graph(), 0), "magnitude", threshold="quantile")
    with pytest.raises(PrunefrontError, match="at least 1 round"):
        trained(a_run(made(Plain), made(Plain).graph(), 0), "magnitude", rounds=0)


# dynamic network surgery


def test_surgery_changes_masks_outside_of_its_band_only():
    size = torch.tensor([0.89, 0.91, 1.0, 1.09, 1.11], dtype=torch.float64)
    weight = torch.cat([size, -size])
    limit = torch.tensor(1.0, dtype=torch.float64)
    for before in (True, False):
        after = dns_module.next_mask(weight, torch.full((10,), before), limit)
        assert after.tolist() == [False, before, before, before, True] * 2


@given(seed=st.integers(0, 99), share=st.floats(0.02, 1.0))
def test_thresholds_leave_each_layer_its_part_of_the_density(seed, share):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (8, 5), "b": (9, 2, 3, 3)}
    held = {n: torch.randn(shape, generator=generator).double() for n, shape in shapes.items()}
    limits = dns_module.thresholds(held, share)
    stay = erk_counts(held, share)
    assert {n: int((w.abs() > limits[n]).sum()) for n, w in held.items()} == stay
    assert sum(stay.values()) == math.ceil(round(share * 202, 9))
    assert all(limits[n] >= 0 for n in held)


class Spliced(Hook):
    """Records that a masked weight is trained, and that one comes back."""

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}
        self.back = self.gone = 0

    def install(self, run: Progress) -> None:
        now = {n: (w != 0).clone() for n, w in weights(run.model, run.graph).items()}
        for name, mask in now.items():
            if name in self.before:
                self.back += int((mask & ~self.before[name]).sum())
                self.gone += int((~mask & self.before[name]).sum())
        self.before = now


@pytest.mark.parametrize("rate", [0.2])
def test_dynamic_network_surgery_splices(rate):
    model, see = made(Plain), Spliced()
    run = a_run(model, model.graph(), 40)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    trained(run, "dns", see, density=0.5, gamma=0.0)
    assert see.gone > 0
    assert see.back > 0


def test_surgery_gets_more_seldom():
    class Counting(dict):
        changes = 0

        def __setitem__(self, key, value):
            self.changes += 1
            super().__setitem__(key, value)

    run = a_run(made(Functional), made(Functional).graph(), 2000)
    held = {"first": torch.ones(3)}
    masks = Counting(first=torch.ones(3, dtype=torch.bool))
    hook = dns_module.Surgery(held, masks, {"first": torch.tensor(0.1)}, gamma=0.01, power=1.0)
    expected = 0.0
    for run.step in range(2000):
        hook.after_step(run)
        expected += 1 / (1 + 0.01 * run.step)
    assert abs(masks.changes - expected) < 5 * math.sqrt(expected)


# RigL


@given(seed=st.integers(0, 200), share=st.floats(0.1, 0.9), move=st.floats(0, 1))
def test_rewiring_keeps_the_number_and_grows_where_the_gradient_is_large(seed, share, move):
    generator = torch.Generator().manual_seed(seed)
    weight, gradient = torch.randn(2, 5, 7, generator=generator)
    mask = torch.rand(5, 7, generator=generator) < share
    weight = weight * mask
    there = int(mask.sum())
    number = int(move * there)
    after = rigl.next_mask(weight, gradient, mask, number)
    assert int(after.sum()) == there
    ranked = sorted((abs(float(weight[i])), i) for i in map(tuple, mask.nonzero().tolist()))
    survivors = {i for _, i in ranked[number:]}
    now = set(map(tuple, after.nonzero().tolist()))
    assert survivors <= now
    grown = now - survivors  # disjoint by construction: exactly `number` of them
    assert len(grown) == number
    rest = set(map(tuple, (~after).nonzero().tolist()))
    if grown and rest:
        assert min(abs(float(gradient[i])) for i in grown) >= max(abs(float(gradient[i])) for i in rest)


def test_growth_leaves_the_output_and_a_returning_weight_its_value():
    model = made(Plain)
    run = a_run(model, model.graph(), 100)
    held = weights(run.model, run.graph)
    masks = {n: w.detach().abs() > w.detach().abs().median() for n, w in held.items()}
    hook = rigl.Rewire(held, masks, interval=2, end=75, alpha=0.6)
    for w in held.values():
        run.optimizer.state[w]["momentum_buffer"] = torch.ones_like(w)
    run.step = 2
    inputs = batches()[0][0]
    old = {n: m.clone() for n, m in masks.items()}
    values = {n: w.detach().clone() for n, w in held.items()}
    run.model.eval()
    backward(run.model, batches()[0], 2)
    assert hook.use_gradients(run) is False
    before_drop = run.model(inputs)
    hook.after_step(run)
    # the drop alone: what is new stands at zero, so that growth changes nothing
    dropped = copy.deepcopy(run.model)
    for n, w in weights(dropped, run.graph).items():
        w.data.copy_(values[n] * (old[n] & hook.masks[n]))
    torch.testing.assert_close(run.model(inputs), dropped(inputs))
    moved = 0
    for n, w in held.items():
        assert int(hook.masks[n].sum()) == int(old[n].sum())
        new = hook.masks[n] & ~old[n]
        moved += int(new.sum())
        assert not w[new].any()
        momentum = run.optimizer.state[w]["momentum_buffer"]
        assert not momentum[new].any()
        assert momentum[hook.masks[n] & old[n]].all()
        assert torch.equal(w[hook.masks[n] & old[n]], values[n][hook.masks[n] & old[n]])
    assert moved
    assert not torch.equal(run.model(inputs), before_drop)


class Layers(Hook):
    def __init__(self) -> None:
        self.counts: list[dict[str, int]] = []
        self.weights: list[dict[str, Tensor]] = []

    def after_step(self, run: Progress) -> None:
        held = weights(run.model, run.graph)
        self.counts.append({n: int((w != 0).sum()) for n, w in held.items()})
        self.weights.append({n: p.detach().clone() for n, p in run.model.named_parameters()})


def test_rigl_takes_no_step_when_it_moves_weights_and_stops_at_three_quarters():
    model, see = made(Residual), Layers()
    run = a_run(model, model.graph(), 40)
    trained(run, "rigl", see, density=0.4)
    first = see.counts[0]
    assert all(now[n] <= first[n] for now in see.counts for n in first)
    assert see.counts[-1] == first  # everything that grew has been trained since
    updates = [
        i for i in range(1, 40) if torch.equal(see.weights[i]["fc.bias"], see.weights[i - 1]["fc.bias"])
    ]
    assert updates == list(range(2, 30, 2))


def test_rigl_share_is_half_a_cosine():
    hook = rigl.Rewire({}, {}, 1, 100, alpha=0.3)
    assert hook.moving_share(0) == pytest.approx(0.3)
    assert hook.moving_share(50) == pytest.approx(0.15)
    assert hook.moving_share(100) == pytest.approx(0.0)


# SCL


def test_for_a_loss_that_is_linear_in_the_mask_the_estimate_is_the_true_difference():
    generator = torch.Generator().manual_seed(0)
    weight, slope = torch.randn(2, 4, 6, generator=generator).double()
    mask = torch.rand(4, 6, generator=generator) < 0.5
    raw = slope * weight  # ∂L/∂ŵ of L = Σ slope · ŵ, at any mask
    found = scl.mask_gradient(slope, weight, 0)
    for i in range(4):
        scale = raw[i].norm()
        for j in range(6):
            on, off = mask.clone(), mask.clone()
            on[i, j], off[i, j] = True, False
            difference = ((slope * weight * on).sum() - (slope * weight * off).sum()).item()
            assert found[i, j].item() * scale.item() == pytest.approx(difference)


@given(
    seed=st.integers(0, 99), factor=st.floats(1e-3, 1e3), channel=st.integers(0, 3), axis=st.integers(0, 1)
)
def test_scaling_one_channels_gradient_does_not_alter_its_mask_step(seed, factor, channel, axis):
    generator = torch.Generator().manual_seed(seed)
    weight, gradient = torch.randn(2, 4, 4, 3, generator=generator).double()
    scaled = gradient.clone()
    scaled.select(axis, channel).mul_(factor)
    torch.testing.assert_close(
        scl.mask_gradient(scaled, weight, axis),
        scl.mask_gradient(gradient, weight, axis),
        rtol=1e-6,
        atol=1e-9,
    )
    assert scl.mask_gradient(torch.zeros_like(weight), weight, axis).abs().max() == 0


def test_a_weight_that_the_loss_ignores_is_masked_at_the_predicted_step():
    model = nn.Linear(3, 2).double()
    weight = model.weight
    m = {"weight": torch.full((2, 3), 0.01, dtype=torch.float64)}
    rate, penalty = 0.03, 0.02  # falls by 0.0006 a step: below 0 after 17
    hook = scl.Learn({"weight": weight}, m, {"weight": 0}, rate, penalty)
    run = a_run(made(Functional), made(Functional).graph(), 1)
    for step in range(1, 20):
        weight.grad = torch.zeros_like(weight)
        hook.use_gradients(run)
        torch.testing.assert_close(m["weight"], torch.full_like(m["weight"], 0.01 - step * rate * penalty))
        assert bool((m["weight"] >= 0).all()) == (step < 17)
    weight.grad = torch.ones_like(weight)
    m["weight"][0] = 1.0
    hook.use_gradients(run)
    assert weight.grad.tolist() == [[1.0] * 3, [0.0] * 3]  # (∂L/∂ŵ) ⊙ mask


def test_scl_masks_weights_without_gradient_half_way_through_the_learning():
    class Dead(Hook):
        def __init__(self) -> None:
            self.zero: dict[int, bool] = {}

        def install(self, run: Progress) -> None:
            self.zero[run.step] = not run.model.conv2.weight[:2].any()

    model, see = made(Plain), Dead()
    model.fc.weight.data[:, :8] = 0  # what reads conv2's first two channels
    run = a_run(model, model.graph(), 60, decay=0.0)
    run.model.fc.weight.register_hook(lambda g: g * torch.cat([torch.zeros(8), torch.ones(8)]))
    trained(run, "scl", see, density=0.6, penalty=0.05)
    # 40 steps of learning: m is 0, give or take a rounding error, after 20
    assert [see.zero[step] for step in (*range(20), *range(21, 40))] == [False] * 20 + [True] * 19


def test_scl_needs_a_penalty():
    with pytest.raises(PrunefrontError, match="above 0"):
        trained(a_run(made(Plain), made(Plain).graph(), 0), "scl", penalty=0.0)


# SNIP


@pytest.mark.parametrize("kind", MODELS)
def test_snip_empties_no_layer_at_90_percent(kind):
    run = a_run(made(kind), made(kind).graph(), 4)
    model = trained(run, "snip", density=0.1)
    assert all(w.count_nonzero() for w in weights(model, run.graph).values())


def test_snip_weighs_batches_by_their_images_and_needs_some():
    model = made(Plain)
    (x, y), kept = batches(1, 8)[0], []
    for data in ([(x, y)], [(x[:2], y[:2]), (x[2:], y[2:])]):
        done = trained(a_run(model, model.graph(), 0, data=data), "snip", density=0.3)
        kept.append([w != 0 for w in weights(done, model.graph()).values()])
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))
    with pytest.raises(PrunefrontError, match="needs calibration batches"):
        trained(a_run(model, model.graph(), 0, data=[]), "snip")


# SR-STE


def wide() -> nn.Module:
    """Sixteen channels throughout, but for the image's three."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
    ).double()


def graph_without_groups(model: nn.Module) -> ChannelGraph:
    from prunefront.pruners.graph.channel_graph import MacOp

    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    names = tuple(n for n, _ in model.named_parameters())
    return ChannelGraph((), (), tuple(MacOp(n, 1) for n in names if n.endswith("weight")), shapes, names)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_sr_ste_gradient_by_hand(decay):
    model = nn.Linear(4, 1, bias=False).double()
    model.weight.data = torch.tensor([[4.0, -1.0, 2.0, -3.0]], dtype=torch.float64)
    graph = graph_without_groups(model)
    run = a_run(model, graph, 1, data=[])
    held = weights(run.model, graph)
    hook = StraightThrough(held, lambda name, w: w * n_of_m(w, 2, 4))
    x = torch.tensor([[1.0, 10.0, 100.0, 1000.0]], dtype=torch.float64)
    hook.install(run)
    loss = run.model(x).square().sum() / 2
    loss.backward()
    hook.restore(run)
    sr_ste.Refine(held, {"weight": 1}, 2, 4, decay).use_gradients(run)
    out = 4.0 * 1 - 3.0 * 1000  # the masked network's
    by_hand = torch.tensor([[1.0, 10.0, 100.0, 1000.0]], dtype=torch.float64) * out
    by_hand += decay * torch.tensor([[0.0, -1.0, 2.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(held["weight"].grad, by_hand)
    assert held["weight"].tolist() == [[4.0, -1.0, 2.0, -3.0]]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 8)])
@pytest.mark.parametrize("steps", [0, 5])
def test_sr_ste_leaves_exactly_n_of_m(n, m, steps):
    model = wide()
    run = a_run(model, graph_without_groups(model), steps)
    done = trained(run, "sr_ste", n=n, m=m)
    conv, linear = done[2].weight.detach(), done[5].weight.detach()
    assert (conv.unflatten(1, (-1, m)).count_nonzero(2) == n).all()
    assert (linear.unflatten(1, (-1, m)).count_nonzero(2) == n).all()
    assert done[0].weight.all()  # three channels: left alone


def test_sr_ste_without_groups_says_so(caplog):
    run = a_run(made(Residual), made(Residual).graph(), 1, ratio=0.5)
    with caplog.at_level(logging.WARNING):
        trained(run, "sr_ste", m=16, n=8)
    assert "masks nothing" in caplog.text
    with pytest.raises(PrunefrontError, match="5 of 4"):
        trained(a_run(made(Plain), made(Plain).graph(), 1), "sr_ste", n=5)


# LRPET


@given(seed=st.integers(0, 99), rows=st.integers(2, 9), columns=st.integers(2, 9), data=st.data())
def test_transfer_keeps_the_energy_at_the_rank(seed, rows, columns, data):
    rank = data.draw(st.integers(1, min(rows, columns)))
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()
    low = lrpet.transfer_energy(matrix, rank)
    assert int(torch.linalg.matrix_rank(low)) == rank
    assert low.norm().item() == pytest.approx(matrix.norm().item())
    # the leading directions are those of the matrix
    s = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(torch.linalg.svdvals(low)[:rank], s[:rank] * (s.norm() / s[:rank].norm()))


def test_a_zero_matrix_stays_zero():
    assert not lrpet.transfer_energy(torch.zeros(3, 4), 2).any()


def test_projection_through_a_norm_keeps_the_rank_even_for_silent_rows():
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    scale = torch.tensor([1.0, -2.0, 0.5, 0.0, 1e-7, 3.0], dtype=torch.float64)
    low = lrpet.project_weight(weight, 3, scale)
    assert int(torch.linalg.matrix_rank(low.flatten(1))) <= 3
    assert low.isfinite().all()
    a = scale[:, None]
    expected = a / (a.square() + 1e-5) * lrpet.transfer_energy(a * weight.flatten(1), 3)
    torch.testing.assert_close(low.flatten(1), expected)
    assert not low[3].any()


@pytest.mark.parametrize("stride", [1, 2])
def test_two_factors_do_what_the_low_rank_convolution_does(stride):
    weight = lrpet.project_weight(
        torch.randn(8, 5, 3, 3, generator=torch.Generator().manual_seed(0)).double(), 3
    )
    first, second = lrpet.factorise(weight, 3)
    assert first.shape == (3, 5, 3, 3)
    assert second.shape == (8, 3, 1, 1)
    x = torch.randn(2, 5, 7, 7, dtype=torch.float64)
    whole = F.conv2d(x, weight, stride=stride, padding=1)
    torch.testing.assert_close(
        F.conv2d(F.conv2d(x, first, stride=stride, padding=1), second), whole, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(first.flatten(1).norm(dim=1), second.flatten(1).norm(dim=0))


@pytest.mark.parametrize("steps", [0, 1, 8, 11])
@pytest.mark.parametrize("kind", [Plain, Residual])
def test_lrpet_ends_at_its_ranks(kind, steps):
    run = a_run(made(kind), made(kind).graph(), steps, ratio=0.3)
    done = trained(run, "lrpet", ratio=0.5)
    found = lrpet.find_parts(done, run.graph, 0.5)
    assert found
    for part in found:
        matrix = done.get_parameter(part.weight).detach().flatten(1)
        assert part.rank == math.floor(min(matrix.shape) * 0.5)
        assert int(torch.linalg.matrix_rank(matrix, rtol=1e-9)) == part.rank


def test_lrpet_projects_at_the_end_of_every_epoch():
    class Ranks(Hook):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def after_step(self, run: Progress) -> None:
            matrix = run.model.conv2.weight.detach().flatten(1)
            self.seen.append(int(torch.linalg.matrix_rank(matrix, rtol=1e-9)))

    see = Ranks()
    trained(a_run(made(Plain), made(Plain).graph(), 8, per_epoch=3), "lrpet", see, ratio=0.5)
    assert see.seen == [4, 4, 2, 4, 4, 2, 4, 4]


def test_every_convolution_gets_its_own_norm():
    plain, residual = made(Plain), made(Residual)
    assert lrpet.own_norm(plain, plain.graph(), "conv1.weight") == "bn1"
    assert lrpet.own_norm(plain, plain.graph(), "conv2.weight") is None  # it has none
    graph = residual.graph()
    assert lrpet.own_norm(residual, graph, "conv1.weight") == "bn1"
    assert lrpet.own_norm(residual, graph, "stem.weight") is None  # two norms on the stream
    seen = lrpet.following_norms(residual, batches()[0][0])
    assert seen == {"stem.weight": "bn0", "conv1.weight": "bn1", "conv2.weight": "bn2"}
    assert lrpet.own_norm(residual, graph, "stem.weight", seen) == "bn0"
    assert lrpet.own_norm(residual, graph, "conv2.weight", seen) == "bn2"
    assert lrpet.own_norm(residual, graph, "conv2.weight", {"conv2.weight": "bn1"}) is None  # another group's
    grouped = made(Grouped)
    assert [
        p.weight for p in lrpet.find_parts(grouped, grouped.graph(), 0.7)
    ] == []  # 1 × 1 of 3, and conv groups


def test_norms_of_a_traced_network_are_paired_by_the_graph_and_what_is_seen():
    model, inputs = NETS["ResNetProjection"]()
    graph, seen = traced("ResNetProjection"), lrpet.following_norms(model, inputs)
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    for name in convs:
        sibling = name.replace("conv", "bn") if "conv" in name else name[: -len("0")] + "1"
        assert lrpet.own_norm(model, graph, f"{name}.weight", seen) == sibling


def test_lrpet_says_which_convolutions_have_no_norm_and_when_it_does_nothing(caplog):
    with caplog.at_level(logging.INFO):
        trained(a_run(made(Plain), made(Plain).graph(), 0), "lrpet")
    assert "without a batch norm of their own: conv2.weight" in caplog.text
    with caplog.at_level(logging.WARNING):
        trained(a_run(made(Functional), made(Functional).graph(), 0), "lrpet")
    assert "projects nothing" in caplog.text
    with pytest.raises(PrunefrontError, match="ratio"):
        trained(a_run(made(Plain), made(Plain).graph(), 0), "lrpet", ratio=1.0)
