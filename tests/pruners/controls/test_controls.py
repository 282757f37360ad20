import dataclasses
import itertools
import math
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunefront.choice import GroupChoice
from prunefront.errors import PrunefrontError, UnknownName
from prunefront.pruners.controls import Control, Subject, control, controls, plan_with_units
from prunefront.pruners.controls.scratch_b import CAP
from prunefront.pruners.cut.scratch import scratch_network
from prunefront.pruners.cut.surgery import apply
from prunefront.pruners.graph.channel_graph import ChannelGraph, MacOp
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.plan.cost import macs, macs_of
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.scoring import score
from prunefront.pruners.trace.tracer import trace
from tests.nets import NETS
from tests.pruners.fixtures import group, part
from tests.pruners.plans import traced

ARCHITECTURES = ("ResNetProjection", "MobileNet", "GroupedConv", "Mlp", "DenseNet", "UpDown")
EXPECTED = {"scratch_e", "scratch_b", "random_units", "random_allocation", "uniform_width", "lottery_ticket"}


@cache
def subject_of(name: str, ratio: float = 0.5, **other) -> Subject:
    """A plan whose ratios differ from group to group, by L1 norm."""
    model, _ = NETS[name]()
    graph = traced(name)
    scores = score(model, graph, ["l1", "l2"])
    ratios = itertools.cycle([ratio, ratio / 2, 0.0])
    choices = {g.name: GroupChoice("l1", ratio=r) for g, r in zip(graph.groups, ratios, strict=False) if r}
    given = {"epochs": 5, "dense_epochs": 40, **other}
    return Subject(plan(graph, choices, scores), graph, scores, **given)


def counts(plan: PruningPlan) -> dict[str, int]:
    return {g.name: len(g.kept) for g in plan.groups}


# what all of them keep


@pytest.mark.parametrize("net", ARCHITECTURES)
@pytest.mark.parametrize("name", controls)
def test_a_rival_is_a_network_that_can_be_made(name, net):
    subject = subject_of(net)
    rival = controls[name](subject)
    assert rival == controls[name](subject_of(net))  # the same subject has the same rival
    assert [g.name for g in rival.plan.groups] == [g.name for g in subject.plan.groups]
    assert rival.epochs >= 1
    # its choices say by themselves what it keeps, without scores; an inherited plan needs those it was made with
    choices = {g.name: g.choice for g in rival.plan.groups}
    assert plan(subject.graph, choices, subject.scores).kept_units() == rival.plan.kept_units()
    model, inputs = NETS[net]()
    apply(model, subject.graph, rival.plan).eval()(*inputs)
    assert macs(subject.graph, rival.plan) <= macs(subject.graph, subject.plan)


def test_the_registry_describes_itself():
    assert set(controls) >= EXPECTED
    for entry in map(controls.__getitem__, controls):
        assert isinstance(entry, Control)
        assert 10 < len(entry.summary) <= 110
        assert entry.choose
        assert entry.paper
    with pytest.raises(UnknownName, match="did you mean 'lottery_ticket'"):
        controls["lottery"]
    with pytest.raises(ValueError, match="no docstring"):
        control("mine")(lambda subject: None)


def test_controls_need_no_torch():
    code = "import sys, prunefront.pruners.controls as c; assert len(c.controls) > 5; print('torch' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr


# each


def test_scratch_and_ticket_keep_the_plan():
    subject = subject_of("ResNetProjection")
    starts = {"scratch_e": "fresh", "scratch_b": "fresh", "lottery_ticket": "initial"}
    for name, start in starts.items():
        rival = controls[name](subject)
        assert rival.plan == subject.plan
        assert rival.start == start
    assert controls["scratch_e"](subject).epochs == controls["lottery_ticket"](subject).epochs == 40


def square(width: int) -> ChannelGraph:
    """Two linear layers of 1 → width → 1 at one position: MACs are 2 · width."""
    members = (part("a", 0, "out", width), part("b", 1, "in", width))
    shapes = {"a": (width, 1), "b": (1, width)}
    return ChannelGraph((group("g", *members),), (), (MacOp("a", 1), MacOp("b", 1)), shapes, ("a", "b"))


@pytest.mark.parametrize(("kept", "epochs"), [(16, 30), (8, 60), (5, 96), (3, 160), (2, 240), (1, 240)])
def test_scratch_b_spends_the_dense_networks_computing_up_to_a_cap(kept, epochs):
    graph = square(16)
    choice = GroupChoice("none", ratio=1 - kept / 16, keep=format((1 << kept) - 1, "x"))
    subject = Subject(plan(graph, {"g": choice}, {}), graph, {}, epochs=3, dense_epochs=30)
    assert controls["scratch_b"](subject).epochs == epochs
    assert epochs <= CAP * 30


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_random_units_are_as_many_and_others(seed):
    subject = dataclasses.replace(subject_of("ResNetProjection"), seed=seed)
    rival = controls["random_units"](subject)
    assert (rival.start, rival.epochs) == ("dense", 5)
    assert counts(rival.plan) == counts(subject.plan)
    assert rival.plan.kept_units() != subject.plan.kept_units()
    assert rival == controls["random_units"](subject)


def test_random_units_are_drawn_evenly_and_by_the_seed():
    hits: dict[str, list[int]] = {}
    for seed in range(300):
        for g in controls["random_units"](dataclasses.replace(subject_of("Mlp"), seed=seed)).plan.groups:
            for unit in g.kept:
                hits.setdefault(g.name, [0] * g.units)[unit] += 1
    for g in subject_of("Mlp").plan.groups:
        share = len(g.kept) / g.units
        sigma = math.sqrt(300 * share * (1 - share))
        assert all(abs(h - 300 * share) <= 4.5 * sigma for h in hits[g.name])


def quantum(graph: ChannelGraph, kept: dict[str, int], keeps: dict[str, tuple[int, ...]]) -> int:
    """MACs of the largest single step to a group's next allowed count."""
    steps = [
        macs_of(graph, {**kept, name: keeps[name][keeps[name].index(count) + 1]}) - macs_of(graph, kept)
        for name, count in kept.items()
        if count < keeps[name][-1]
    ]
    return max(steps)


@pytest.mark.parametrize("net", ARCHITECTURES)
@pytest.mark.parametrize("name", ["random_allocation", "uniform_width"])
@pytest.mark.parametrize("round_to", [1, 2])
def test_equal_macs_means_within_one_quantum(name, net, round_to):
    subject = subject_of(net, round_to=round_to)
    rival = controls[name](subject)
    missed = macs(subject.graph, subject.plan) - macs(subject.graph, rival.plan)
    assert 0 <= missed < quantum(subject.graph, counts(rival.plan), subject.keeps())
    assert counts(rival.plan) != counts(subject.plan)


def test_random_allocation_ranks_by_each_groups_criterion_and_scatters():
    subject = subject_of("ResNetProjection")
    mixed = {g.name: g.choice for g in subject.plan.groups if g.choice.criterion != "none"}
    first = next(iter(mixed))
    mixed[first] = dataclasses.replace(mixed[first], criterion="l2")
    subject = dataclasses.replace(subject, plan=plan(subject.graph, mixed, subject.scores))
    seen = set()
    for seed in range(10):
        rival = controls["random_allocation"](dataclasses.replace(subject, seed=seed))
        seen.add(tuple(counts(rival.plan).values()))
        for g in rival.plan.groups:  # what the plan leaves alone is ranked by its usual criterion
            score = subject.scores["l2" if g.name == first else "l1"][g.name]
            best = sorted(range(g.units), key=lambda u: (-score[u], u))[: len(g.kept)]
            assert g.kept == tuple(sorted(best))
        assert (rival.start, rival.epochs) == ("dense", 5)
    assert len(seen) > 5


def test_random_allocation_needs_scores():
    with pytest.raises(PrunefrontError, match="no scores"):
        controls["random_allocation"](dataclasses.replace(subject_of("Mlp"), scores={}))


def test_uniform_width_is_uniform():
    rival = controls["uniform_width"](subject_of("ResNetProjection", ratio=0.6))
    assert (rival.start, rival.epochs) == ("fresh", 40)
    ratios = [(g.achieved, 1 / g.units) for g in rival.plan.groups]
    for (one, step), (other, next_step) in itertools.pairwise(ratios):
        assert abs(one - other) <= 2 * max(step, next_step)


def test_keeping_carries_bit_widths_on_and_checks_names():
    subject = subject_of("Mlp")
    first = subject.plan.groups[0]
    narrow = dataclasses.replace(first, choice=dataclasses.replace(first.choice, bits=8))
    old = PruningPlan((narrow, *subject.plan.groups[1:]))
    new = plan_with_units(old, {first.name: (0, 2)})
    assert new.groups[0].choice.bits == 8
    assert new.groups[0].kept == (0, 2)
    assert all(len(g.kept) == g.units for g in new.groups[1:])
    with pytest.raises(PrunefrontError, match="'nobody'"):
        plan_with_units(old, {"nobody": (0,)})


# new weights


class Deep(nn.Module):
    """Convolutions of all kinds without norms: errors in the variance of each multiply up to the end."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.two = nn.Conv2d(width, width, 1, bias=False)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(width, width, 3, padding=1, bias=False)
        self.updeep = nn.ConvTranspose2d(width, width, 3, padding=1, groups=width, bias=False)
        self.fc = nn.Linear(width * 16, 50, bias=False)
        for module in self.children():  # He's law, for the inputs that an output sees
            taps = module.weight[0, 0].numel() if module.weight.ndim > 2 else 1
            inputs = (
                module.in_features if isinstance(module, nn.Linear) else module.in_channels // module.groups
            )
            nn.init.normal_(module.weight, std=math.sqrt(2 / (inputs * taps)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.stem, self.one, self.deep, self.two, self.grouped, self.up, self.updeep):
            x = torch.relu(layer(x))
        return self.fc(x.flatten(1))


def test_fresh_weights_keep_the_scale_of_the_output():
    torch.manual_seed(0)
    x = torch.randn(8, 3, 4, 4)
    graph = trace(Deep().eval(), x[:2])
    choices = {
        g.name: GroupChoice("none", ratio=0.75, keep=format((1 << g.units // 4) - 1, "x"))
        for g in graph.groups
    }
    quarter = plan(graph, choices, {})
    dense, small, bare = [], [], []
    with torch.no_grad():
        for _ in range(40):  # E y² is the same at any width; the logarithm's mean would not be
            model = Deep().eval()
            dense.append(model(x).square().mean().item())
            small.append(scratch_network(model, graph, quarter)(x).square().mean().item())
            bare.append(apply(model, graph, quarter)(x).square().mean().item())
    assert 0.6 < sum(small) / sum(dense) < 1.6
    assert (
        sum(bare) / sum(dense) < 2 * 4.0**-5
    )  # a factor of 4 for each layer that mixes the channels of a cut one


@pytest.mark.parametrize("net", ARCHITECTURES)
def test_fresh_takes_the_plans_architecture_and_leaves_the_model(net):
    subject = subject_of(net)
    model, inputs = NETS[net]()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    small = scratch_network(model, subject.graph, subject.plan)
    cut = apply(model, subject.graph, subject.plan)
    for name, tensor in small.state_dict().items():
        other = cut.state_dict()[name]
        assert tensor.shape == other.shape
        if tensor.ndim < 2:
            assert torch.equal(tensor, other)
        elif tensor.is_floating_point() and other.abs().sum() > 0:
            factors = tensor[other != 0] / other[other != 0]  # one for the whole tensor, never below 1
            torch.testing.assert_close(factors, factors[:1].expand_as(factors))
            assert factors[0] >= 1 - 1e-6
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    small.eval()(*inputs)
    dense = plan_with_units(subject.plan, {})
    for name, tensor in scratch_network(model, subject.graph, dense).state_dict().items():
        assert torch.equal(tensor, before[name])
