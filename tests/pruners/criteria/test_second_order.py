import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call, jacrev

from prunefront.errors import PrunefrontError
from prunefront.pruners.criteria.curvature.obd import obd
from prunefront.pruners.criteria.curvature.sosp_h import sosp_h
from prunefront.pruners.criteria.curvature.sosp_i import sosp_i
from prunefront.pruners.criteria.curvature.spectral_radius import spectral_radius
from prunefront.pruners.criteria.curvature.taylor_diagonal import taylor_diagonal
from prunefront.pruners.criteria.curvature.taylor_second_order import taylor_second_order
from prunefront.pruners.granularities import granularities
from prunefront.pruners.scoring import available
from prunefront.pruners.statistics import Inquiry, collect, merge, run, tasks
from prunefront.pruners.statistics.kfac import LARGEST, log_falls, no_radius
from prunefront.pruners.statistics.logits import directions, unit_work
from prunefront.pruners.statistics.sosp import greedy_turns
from prunefront.pruners.units.view import UnitView, gates
from tests.nets import NETS
from tests.pruners.fixtures import (
    CLASSES,
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
from tests.pruners.plans import traced

SOSP = {"structure_gradient", "structure_curvature"}


def gathered(model, data, *fields, graph=None, loss=F.cross_entropy):
    found = collect(model, graph or model.graph(), data, set(fields), loss).values
    return [found[field] for field in fields]


def scaled(model, parts_of, t):
    """The parameters with every unit's slices multiplied by its entry of t, units of all groups in one row."""
    state = {name: p.detach() for name, p in model.state_dict().items()}
    first = 0
    for g in model.graph().groups:
        factors = {
            (m.tensor, m.dim): torch.ones(model.state_dict()[m.tensor].shape[m.dim]).double()
            for m in parts_of(g)
        }
        for m in parts_of(g):
            for unit, positions in enumerate(m.index):
                factors[m.tensor, m.dim] = factors[m.tensor, m.dim].index_put(
                    (torch.tensor(positions),), t[first + unit].expand(len(positions))
                )
        for (name, dim), factor in factors.items():
            state[name] = state[name] * factor.view(*[1] * dim, -1, *[1] * (state[name].ndim - dim - 1))
        first += g.units
    return state


def units(model) -> int:
    return sum(g.units for g in model.graph().groups)


def by_group(model, rows):
    return dict(
        zip(
            (g.name for g in model.graph().groups),
            rows.split([g.units for g in model.graph().groups]),
            strict=True,
        )
    )


def readers(g):
    return [m for m in g.members if m.role == "in"]


# curvature


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("what", ["gates", "structures"])
def test_a_hessian_vector_product_is_the_row_sum_of_the_explicit_hessian(kind, what):
    model, (x, y) = made(kind), batches(1)[0]

    def parts_of(g):
        return gates(g, model.graph())[0]

    def loss(t):
        return F.cross_entropy(functional_call(model, scaled(model, parts_of, t), (x,)), y)

    ones = torch.ones(units(model), dtype=torch.float64)
    rows = by_group(model, hessian(loss, ones).sum(1))
    slopes = by_group(model, torch.func.grad(loss)(ones))
    fields = ("gate_gradient", "gate_curvature") if what == "gates" else tuple(sorted(SOSP))[::-1]
    slope, curvature = gathered(model, [(x, y)], *fields)
    for g in model.graph().groups:
        shared = gates(g, model.graph())[1] if what == "gates" else 1
        torch.testing.assert_close(curvature[g.name][:, 0] * shared, rows[g.name])
        torch.testing.assert_close(slope[g.name][:, 0] * shared, slopes[g.name])


@pytest.mark.parametrize("name", ["Plain", "Residual", "Grouped", "VisionTransformer"])
def test_gate_curvature_is_the_difference_of_gate_gradients_when_all_gates_move(name):
    """Fused attention among them, which has no second derivative of its own."""
    if name == "VisionTransformer":
        model, inputs = NETS[name]()
        model, graph = model.double(), traced(name)
        data = [(inputs[0].double(), torch.tensor([0, 3]))]
    else:
        model = made({k.__name__: k for k in MODELS}[name])
        graph, data = model.graph(), batches(2)
    moved = {m.tensor for g in graph.groups for m in gates(g, graph)[0]}
    step, sides = 1e-5, []
    for z in (1 + step, 1 - step):
        before = {n: t.clone() for n, t in model.state_dict().items()}
        with torch.no_grad():
            for n in moved:  # every channel of them is in some group here
                owned = {
                    (m.dim, p)
                    for g in graph.groups
                    for m in gates(g, graph)[0]
                    if m.tensor == n
                    for i in m.index
                    for p in i
                }
                for dim, position in owned:
                    model.state_dict()[n].select(dim, position).mul_(z)
        sides.append({g: t / z for g, t in gathered(model, data, "gate_gradient", graph=graph)[0].items()})
        model.load_state_dict(before)
    curvature = gathered(model, data, "gate_curvature", graph=graph)[0]
    assert curvature.keys() == sides[0].keys()
    for g, found in curvature.items():
        expected = (sides[0][g] - sides[1][g]) / (2 * step)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


class Quadratic(nn.Module):
    """F1: the output is θ itself, and the loss ½(θ - θ*)ᵀH(θ - θ*)."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        return self.theta + 0.0 * x.sum()

    def graph(self):
        return graph_of(self, group("all", part("theta", 0, "out", 4)))


def quadratic(seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    h, middle = root + root.T, torch.randn(12, generator=generator, dtype=torch.float64)

    def loss(output, _):
        away = output.flatten() - middle
        return away @ h @ away / 2

    return h, middle, loss


def test_on_a_quadratic_everything_is_exact():
    model, (h, middle, loss) = made(Quadratic), quadratic()
    data = batches(2)
    view = granularities["channel"].view(
        model.graph().groups[0],
        model.state_dict(),
        collect(model, model.graph(), data, {"gate_gradient", "gate_curvature", *SOSP}, loss),
    )
    theta = model.theta.detach().flatten()
    each = torch.block_diag(*model.theta.detach())  # row s: θ_s, zero elsewhere
    slope, rows = each @ h @ (theta - middle), each @ h @ theta
    torch.testing.assert_close(view.structure_gradient, slope[:, None].expand(4, 2))
    torch.testing.assert_close(
        view.structure_curvature, rows[:, None].expand(4, 2)
    )  # all parameters: θ_struc = θ
    torch.testing.assert_close(sosp_h(view), slope.abs() + rows.abs() / 2)
    torch.testing.assert_close(taylor_second_order(view), (slope - rows / 2).square())
    everything = loss(torch.zeros(4, 3), None) - loss(model.theta.detach(), None)
    torch.testing.assert_close(-(view.gate_gradient - view.gate_curvature / 2)[:, 0].sum(), everything)


def test_a_loss_that_is_linear_has_no_curvature():
    model = made(Quadratic)
    found = gathered(model, batches(2), "structure_curvature", loss=lambda y, _: y.sum())
    assert torch.equal(found[0]["all"], torch.zeros(4, 2, dtype=torch.float64))


def test_an_operator_without_second_derivative_is_said():
    class Distances(Functional):
        def forward(self, x):
            return torch.cdist(super().forward(x), torch.eye(CLASSES, dtype=x.dtype), p=3.0)

    with pytest.raises(PrunefrontError, match=r"differentiated twice .*cdist.*a criterion of first order"):
        gathered(made(Distances), batches(1), "gate_curvature")


def test_taylor_second_order_is_the_mean_of_squares_over_the_batches_that_both_have():
    view = UnitView(
        torch.zeros(2, 0),
        gate_gradient=torch.tensor([[1.0, -1.0, 9.0], [0.5, 0.5, 9.0]]),
        gate_curvature=torch.tensor([[0.0, 0.0], [1.0, -1.0]]),
    )
    assert taylor_second_order(view).tolist() == [1.0, 0.5]


def test_taylor_diagonal_is_the_change_of_a_quadratic_loss_when_one_unit_goes():
    """ΔL = -g + ½ H_ii, exactly, whatever its sign."""
    view = UnitView(
        torch.zeros(3, 0),
        structure_gradient=torch.tensor([[3.0, 1.0], [0.0, 0.0], [-1.0, -1.0]]).double(),
        logit_work=torch.tensor([[2.0, 2.0], [1.0, -3.0], [0.0, 0.0]]).double(),
    )
    assert taylor_diagonal(view).tolist() == [0.0, 6.25, 1.0]


def test_sosp_h_takes_absolute_values_after_the_mean():
    view = UnitView(
        torch.zeros(2, 0),
        structure_gradient=torch.tensor([[1.0, -1.0], [-1.0, -1.0]]),
        structure_curvature=torch.tensor([[2.0, 2.0], [1.0, -1.0]]),
    )
    assert sosp_h(view).tolist() == [1.0, 1.0]


# logit work


def gauss_newton(model, x):
    """Σ_n Jᵀ(diag p - ppᵀ)J / N over unit scales, by hand."""

    def logits(t):
        return functional_call(model, scaled(model, readers, t), (x,))

    ones = torch.ones(units(model), dtype=torch.float64)
    jacobian, p = jacrev(logits)(ones), logits(ones).softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("nks,nkl,nlt->st", jacobian, middle, jacobian) / len(x)


@pytest.mark.parametrize("kind", MODELS)
def test_products_of_logit_work_are_the_gauss_newton_matrix(kind):
    model, data = made(kind), batches()
    work = torch.cat(list(gathered(model, data, "logit_work")[0].values()))
    assert work.shape == (units(model), 12 * CLASSES)
    q = work @ work.T / work.shape[1]
    torch.testing.assert_close(q, gauss_newton(model, torch.cat([x for x, _ in data])))
    assert torch.linalg.eigvalsh(q).min() > -1e-12


def test_where_logits_are_linear_the_gauss_newton_matrix_is_the_hessian():
    model, data = made(Functional), batches()
    work, curvature = gathered(model, data, "logit_work", "structure_curvature")
    q = work["hidden"] @ work["hidden"].T / work["hidden"].shape[1]
    torch.testing.assert_close(q.sum(1), curvature["hidden"].mean(1))
    view = UnitView(torch.zeros(7, 0), logit_work=work["hidden"])
    torch.testing.assert_close(obd(view), q.diagonal() / 2)


def test_logit_work_is_that_of_what_a_layer_reads_even_if_it_is_overwritten():
    class InPlace(Plain):
        def forward(self, x):
            x = F.relu(self.bn1(self.conv1(x)))
            x = F.adaptive_avg_pool2d(F.relu(self.conv2(x), inplace=True), 2)
            return self.fc(x.flatten(1))

    model, data = made(InPlace), batches()
    work = torch.cat(list(gathered(model, data, "logit_work")[0].values()))
    torch.testing.assert_close(
        work @ work.T / work.shape[1], gauss_newton(model, torch.cat([x for x, _ in data]))
    )


@pytest.mark.parametrize("field", ["logit_work", "gate_curvature", "structure_curvature"])
def test_the_values_do_not_depend_on_how_batches_are_divided(field):
    model, data = made(Residual), batches(4)
    each = [
        merge((t, run(t, model, model.graph(), data)) for t in tasks(model.graph(), {field}, data, parts))
        for parts in (1, 3)
    ]
    for name, found in each[0].values[field].items():
        assert torch.equal(found, each[1].values[field][name])


class Many(nn.Module):
    """More classes than are looked at one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = nn.Linear(6, 4), nn.Linear(4, 40)

    def forward(self, x):
        return self.read(self.make(x))

    def graph(self):
        return graph_of(
            self,
            group(
                "hidden",
                part("make.weight", 0, "out", 4),
                part("make.bias", 0, "out", 4),
                part("read.weight", 1, "in", 4),
            ),
        )


def test_with_many_classes_the_mean_over_draws_is_the_gauss_newton_matrix():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3000, 2, generator=generator, dtype=torch.float64)
    logits = torch.randn(1, 40, generator=generator, dtype=torch.float64)
    rows = directions(logits.expand(3000, -1), images, seed=0)
    assert rows.shape == (16, 3000, 40)
    p = logits[0].softmax(0)
    found = torch.einsum("cni,cnj->ij", rows, rows) / 3000 / 16
    # 48,000 draws; entries have a spread below 0.35 each
    assert (found - (p.diag() - p[:, None] * p)).abs().max() < 5 * 0.35 / 48000**0.5


def test_draws_depend_on_the_image_and_the_seed_only():
    model = made(Many)
    x = torch.randn(10, 6, dtype=torch.float64)
    logits = model(x).detach()
    whole = directions(logits, x, seed=0)
    order = torch.tensor([7, 2, 3])
    assert torch.equal(directions(logits[order], x[order], seed=0), whole[:, order])
    assert not torch.equal(directions(logits, x, seed=1), whole)
    assert not torch.equal(directions(logits.flip(0), x.flip(0), seed=0), whole)
    found = gathered(model, [(x, torch.arange(10))], "logit_work")[0]["hidden"]
    assert found.shape == (4, 160)


def test_an_output_that_is_no_row_of_logits_is_an_error():
    class Map(Grouped):
        def forward(self, x):
            return self.conv2(F.relu(self.conv1(x)))

    for field in ("logit_work", "sosp_order", "radius_drop", "response"):
        with pytest.raises(PrunefrontError, match=r"one row of logits per image.*shape \(\d, 4, 4, 4\)"):
            collect(made(Map), made(Map).graph(), batches(1), {field}, lambda y, _: y.mean())


def test_a_producer_that_no_product_takes_is_named():
    class Hidden(Functional):
        def forward(self, x):
            return x.flatten(1)[:, :6] @ (2 * self.first).T @ self.second.T

    with pytest.raises(PrunefrontError, match=r"takes 'first' as its weight.*'hidden'"):
        gathered(made(Hidden), batches(1), "radius_drop")


def test_a_consumer_that_no_product_takes_is_named():
    class Hidden(Functional):
        def forward(self, x):
            return x.flatten(1)[:, :6] @ self.first.T @ (2 * self.second).T

    for field in ("logit_work", "response"):
        with pytest.raises(PrunefrontError, match=r"takes 'second' as its weight.*'hidden'"):
            gathered(made(Hidden), batches(1), field)


# SOSP-I


def slowly(slope, q):
    gone, turns = [], torch.zeros(len(slope), dtype=torch.int64)
    for turn in range(len(slope)):
        costs = {
            s: float(slope[s].abs() + q[s, s].abs() / 2 + sum(q[s, m].abs() for m in gone))
            for s in range(len(slope))
            if s not in gone
        }
        gone.append(min(costs, key=costs.__getitem__))
        turns[gone[-1]] = turn
    return turns


@settings(max_examples=25)
@given(size=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_greedy_with_running_sums_is_greedy(size, seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    slope = torch.randn(size, generator=generator, dtype=torch.float64)
    assert torch.equal(greedy_turns(slope, root @ root.T), slowly(slope, root @ root.T))


def test_the_second_of_twins_costs_more():
    slope = torch.tensor([0.1, 0.1, 0.3]).double()
    q = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.5]]).double()
    assert greedy_turns(slope, q).tolist() == [0, 2, 1]


def test_the_order_is_one_over_all_groups_and_dead_units_go_first():
    model, data = made(Residual), batches()
    with torch.no_grad():
        model.conv2.weight[:, 4] = 0.0
    turns, work = gathered(model, data, "sosp_order", "logit_work")
    dead = sum(int((rows == 0.0).all(1).sum()) for rows in work.values())
    together = torch.cat([turns["stream"], turns["inner"]])
    assert torch.equal((together * 14).round().sort().values, torch.arange(14).double())
    assert turns["inner"][4] * 14 < dead < 14
    view = UnitView(torch.zeros(6, 0), sosp_order=turns["inner"])
    assert torch.equal(sosp_i(view), turns["inner"])
    assert sosp_i(view).data_ptr() != turns["inner"].data_ptr()


def test_the_gradient_beside_the_logits_is_that_of_the_structures():
    model, data = made(Plain), batches()
    slope = unit_work(Inquiry(model, model.graph(), model.graph().groups, data, frozenset({"logit_work"})))[1]
    expected = gathered(model, data, "structure_gradient")[0]
    for name in expected:
        torch.testing.assert_close(slope[name], expected[name].mean(1))


def test_a_network_with_too_many_units_gets_no_order():
    model = made(Plain)
    graph = model.graph()
    wide = dataclasses.replace(
        graph, groups=(*graph.groups, dataclasses.replace(graph.groups[0], units=5000))
    )
    assert "sosp_i" in available(graph)["one"]
    assert "sosp_i" not in available(wide)["one"]
    assert "obd" in available(wide)["one"]


# K-FAC


def deleted(matrix, rows):
    """log λmax of each block-diagonal matrix before, minus after each deletion; by eigenvalues."""
    whole = torch.block_diag(*matrix)
    before = torch.linalg.eigvalsh(whole).max()
    after = torch.stack([torch.linalg.eigvalsh(whole[~r.flatten()][:, ~r.flatten()]).max() for r in rows])
    return (before / after).log()


@settings(max_examples=25)
@given(blocks=st.integers(1, 3), n=st.integers(2, 12), rank=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_iteration_finds_what_eigenvalues_say_and_no_deletion_raises_the_radius(blocks, n, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(blocks, n, rank, generator=generator, dtype=torch.float64)
    matrix = root @ root.mT
    rows = torch.eye(blocks * n, dtype=torch.bool).view(-1, blocks, n)
    found = log_falls(matrix, rows)
    assert (found >= 0.0).all()  # Cauchy interlacing
    torch.testing.assert_close(
        found, deleted(matrix, rows), rtol=0.0, atol=0.02
    )  # where eigenvalues lie close
    pairs = rows | rows.roll(1, 0)
    assert (log_falls(matrix, pairs) >= found - 1e-9).all()


def test_iteration_stops_before_a_large_matrix_is_exhausted_and_is_near_enough():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(1, 300, 200, generator=generator, dtype=torch.float64)
    root *= torch.arange(1.0, 301.0)[:, None] ** -0.3  # variances fall off slowly
    matrix = root @ root.mT
    rows = torch.eye(300, dtype=torch.bool).view(30, 10, 300).any(1)[:, None]
    torch.testing.assert_close(log_falls(matrix, rows), deleted(matrix, rows), rtol=1e-3, atol=1e-6)


def test_a_unit_that_holds_the_whole_eigenvector_leaves_the_next_one():
    matrix = torch.diag(torch.tensor([9.0, 3.0, 1.0])).double()[None]
    each = log_falls(matrix, torch.eye(3, dtype=torch.bool)[:, None])
    torch.testing.assert_close(each, torch.tensor([3.0, 1.0, 1.0]).log().double())
    against = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double()[None]  # orthogonal to all ones
    torch.testing.assert_close(
        log_falls(against, torch.eye(2, dtype=torch.bool)[:, None]), torch.full((2,), 2.0).log().double()
    )


def test_dead_layers_and_last_units_stay_finite():
    rows = torch.eye(3, dtype=torch.bool)[:, None]
    assert torch.equal(log_falls(torch.zeros(1, 3, 3).double(), rows), torch.zeros(3).double())
    only = torch.zeros(1, 3, 3).double()
    only[0, 0, 0] = 1.0
    assert log_falls(only, rows).tolist() == [pytest.approx(27.63, abs=0.01), 0.0, 0.0]


def test_the_radius_of_a_kronecker_product_is_the_product_of_radii():
    generator = torch.Generator().manual_seed(0)
    a, g = (m @ m.T for m in torch.randn(2, 5, 5, generator=generator, dtype=torch.float64))
    largest = [torch.linalg.eigvalsh(m).max() for m in (torch.kron(a, g), a, g)]
    torch.testing.assert_close(largest[0], largest[1] * largest[2])


def test_for_a_linear_softmax_model_at_zero_the_factors_are_the_hessian():
    """p is uniform: H = A ⊗ (I/K - 11ᵀ/K²), so that an input's deletion lowers its radius as much as A's."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    y = torch.zeros(20, dtype=torch.int64)
    zero = torch.zeros(3, 4, dtype=torch.float64)
    h = hessian(lambda w: F.cross_entropy(x @ w.T, y), zero).permute(1, 0, 3, 2)  # [in, out, in, out]
    a, eye = x.T @ x / 20, torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close(
        torch.linalg.eigvalsh(h.reshape(12, 12)).max(), torch.linalg.eigvalsh(a).max() / 3
    )
    expected = deleted(h.reshape(1, 12, 12), eye.repeat_interleave(3, 1)[:, None])
    torch.testing.assert_close(log_falls(a[None], eye[:, None]), expected)


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.two(F.relu(self.one(x.flatten(1)[:, :6])))

    def graph(self):
        return graph_of(
            self,
            group(
                "hidden",
                part("one.weight", 0, "out", 5),
                part("one.bias", 0, "out", 5),
                part("two.weight", 1, "in", 5),
            ),
        )


def labels_drawn(monkeypatch):
    """Labels fixed to the first class, so that gradients can be had by hand."""

    def first(scores, inputs, seed, count):
        return F.one_hot(torch.zeros(len(scores), dtype=torch.int64), scores.shape[1])[None] - scores.softmax(
            1
        )

    monkeypatch.setattr("prunefront.pruners.statistics.kfac.draw_classes", first)


def test_radius_drop_of_an_mlp_is_that_of_its_factors(monkeypatch):
    model, data = made(TwoLayers), batches(6)
    labels_drawn(monkeypatch)
    found = gathered(model, data, "radius_drop")[0]["hidden"]
    x = torch.cat([x for x, _ in data]).flatten(1)[:, :6]
    before = F.linear(x, model.one.weight, model.one.bias).detach().requires_grad_()
    hidden = F.relu(before)
    (delta,) = torch.autograd.grad(model.two(hidden).log_softmax(1)[:, 0].sum(), before)
    a = torch.cat([hidden, torch.ones(len(x), 1, dtype=torch.float64)], 1).detach()
    eye = torch.eye(5, dtype=torch.bool)[:, None]
    expected = deleted((delta.T @ delta)[None], eye) + deleted((a.T @ a)[None], F.pad(eye, (0, 1)))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


class Strided(nn.Module):
    """A convolution with a stride, and one with conv groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 1, bias=False)
        self.two = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.fc(F.relu(self.two(F.relu(self.one(x)))).mean((2, 3)))

    def graph(self):
        blocks = self.two.groups
        tied = [tuple(u + 4 // blocks * b for b in range(blocks)) for u in range(4 // blocks)]
        return graph_of(
            self,
            group("x", part("one.weight", 0, "out", tied), part("two.weight", 1, "in", 4 // blocks)),
        )


@pytest.mark.parametrize("groups", [1, 2])
def test_radius_drop_of_a_convolution_takes_all_places_of_the_kernel(groups, monkeypatch):
    torch.manual_seed(0)
    model, data = Strided(groups).double().eval(), batches(6)
    labels_drawn(monkeypatch)
    found = gathered(model, data, "radius_drop")[0]["x"]
    x = torch.cat([x for x, _ in data])
    made_ = model.one(x).detach().requires_grad_()
    seen = F.relu(made_)
    (delta,) = torch.autograd.grad(
        model.fc(F.relu(model.two(seen)).mean((2, 3))).log_softmax(1)[:, 0].sum(), made_
    )
    g = torch.einsum("nihw,njhw->ij", delta, delta)
    patches = F.unfold(seen.detach(), 3, stride=2, padding=1).movedim(1, 0).flatten(1)  # [36, places]
    blocks = patches.view(groups, 36 // groups, -1)
    blocks = torch.cat([blocks, torch.ones_like(blocks[:, :1])], 1)
    rows_g = torch.zeros(4 // groups, 1, 4, dtype=torch.bool)
    rows_a = torch.zeros(4 // groups, groups, 36 // groups + 1, dtype=torch.bool)
    for unit in range(4 // groups):
        rows_g[unit, 0, unit :: 4 // groups] = True
        rows_a[unit, :, 9 * unit : 9 * unit + 9] = True
    expected = deleted(g[None], rows_g) + deleted(blocks @ blocks.mT, rows_a)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_a_dead_unit_has_no_part_in_the_radius():
    model = made(Plain)
    with torch.no_grad():
        model.bn1.weight[2], model.bn1.bias[2] = 0.0, 0.0
    drops = gathered(model, batches(), "radius_drop")[0]["one"]
    assert drops[2] == pytest.approx(0.0, abs=1e-9)
    assert drops.max() > 0.01


def test_a_factor_that_is_too_large_leaves_the_group_out():
    model = made(Plain)
    graph = model.graph()
    wide = dataclasses.replace(graph, shapes={**graph.shapes, "fc.weight": (CLASSES, LARGEST + 1)})
    assert "'fc.weight', with a factor of 4609 rows" in no_radius(graph.groups[1], wide)
    assert no_radius(graph.groups[0], wide) is None


def test_layers_in_several_passes_give_the_same(monkeypatch):
    model, data = made(Residual), batches()
    at_once = gathered(model, data, "radius_drop")[0]
    monkeypatch.setattr("prunefront.pruners.statistics.kfac.ELEMENTS", 1)
    for name, found in gathered(model, data, "radius_drop")[0].items():
        torch.testing.assert_close(found, at_once[name])


def test_spectral_radius_takes_candidates_by_their_radius_and_the_rest_by_taylor():
    change = torch.arange(1.0, 22.0).double()
    drop = torch.zeros(21).double()
    drop[0], drop[2], drop[9] = 0.5, 2.0, 100.0
    view = UnitView(torch.zeros(21, 0), gate_gradient=change.sqrt()[:, None], radius_drop=drop)
    scores = spectral_radius(view)
    assert scores.argsort(stable=True).tolist() == [2, 0, 1, *range(3, 21)]  # a tenth of 21: the three least
    torch.testing.assert_close(scores[3:], change[3:])


# all of them


FIELDS = (
    "gate_curvature",
    "structure_gradient",
    "structure_curvature",
    "logit_work",
    "sosp_order",
    "radius_drop",
    "response",
    "loss_change",
    "gradient_gram",
)


def reordered(model, order):
    """Plain with the channels of its first layer in another order: the same function."""
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (moved.conv1.weight, *(t for t in moved.bn1.state_dict().values() if t.ndim)):
            tensor.copy_(tensor[order])
        moved.conv2.weight.copy_(moved.conv2.weight[:, order])
    return moved


@pytest.mark.parametrize("field", FIELDS)
def test_units_in_another_order_have_the_same_values_in_that_order(field):
    """SOSP's order too, as no two of these units cost the same: ties would go by index."""
    model, data, order = made(Plain), batches(), torch.tensor([3, 0, 5, 1, 4, 2])
    found = gathered(model, data, field)[0]
    moved = gathered(reordered(model, order), data, field)[0]
    expected = found["one"][order]
    torch.testing.assert_close(moved["one"], expected[:, order] if field == "gradient_gram" else expected)
    torch.testing.assert_close(moved["two"], found["two"])


@pytest.mark.parametrize("field", sorted(set(FIELDS) - {"sosp_order"}))
def test_twins_have_equal_values(field):
    model, data = made(Plain), batches()
    with torch.no_grad():
        for tensor in (model.conv1.weight, *(t for t in model.bn1.state_dict().values() if t.ndim)):
            tensor[3] = tensor[0]
        model.conv2.weight[:, 3] = model.conv2.weight[:, 0]
    found = gathered(model, data, field)[0]["one"]
    torch.testing.assert_close(found[3], found[0])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("field", FIELDS)
def test_values_of_a_network_in_single_precision_are_plain_doubles(kind, field, monkeypatch):
    model, data = made(kind).float(), [(x.float(), y) for x, y in batches()]
    labels_drawn(monkeypatch)  # a draw goes by the image's bytes, which are others here
    found = gathered(model, data, field)[0]
    exact = gathered(made(kind), batches(), field)[0]
    assert found.keys() == exact.keys()
    for name, values in found.items():
        assert values.dtype == torch.float64
        assert not values.requires_grad
        if field != "sosp_order":  # units that do nothing tie
            torch.testing.assert_close(values, exact[name], rtol=1e-3, atol=1e-4)
