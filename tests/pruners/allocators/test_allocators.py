"""Allocators keep to the budget, to the allowed widths, and each to its own rule."""

from dataclasses import replace
from itertools import pairwise, product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefront.errors import PrunefrontError, UnknownName
from prunefront.pruners.allocators import (
    OutOfReach,
    Terms,
    allocator,
    allocators,
    at_least,
    fit_budget,
    nearest,
)
from prunefront.pruners.allocators.dcp_adapt import stop_count
from prunefront.pruners.allocators.erk import erk_densities
from prunefront.pruners.allocators.global_threshold import relative
from prunefront.pruners.allocators.redundancy import energy_rank, max_ratio, upper_bounds
from prunefront.pruners.allocators.sensitivity import ratio_curve
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, MacOp, TensorSlice
from prunefront.pruners.graph.single_cuts import RATIOS, dropped_counts
from prunefront.pruners.plan.cost import macs, macs_of
from prunefront.pruners.plan.decide import keep_counts
from tests.pruners.plans import keeping, traced

SOME = (
    "Plain",
    "ResNetOptionA",
    "DenseNet",
    "MobileNet",
    "GroupedConv",
    "Gated",
    "VisionTransformer",
    "UpDown",
)


def terms_of(name: str, kept_macs: float, seed: int = 0, max_ratio: float = 0.9, round_to: int = 1) -> Terms:
    """Everything that any allocator may need, drawn from the seed."""
    graph, rng = traced(name), np.random.default_rng(seed)
    units = {g.name: g.units for g in graph.groups}
    return Terms(
        graph,
        kept_macs,
        {g.name: keep_counts(g, max_ratio, round_to) for g in graph.groups},
        scores={n: rng.exponential(size=u) for n, u in units.items()},
        facts={
            "sensitivity": {n: rng.normal(size=len(RATIOS)).cumsum() for n in units},
            "selection_loss": {n: np.sort(rng.random(u + 1))[::-1].copy() for n, u in units.items()},
            "gradient_gram": {n: gram(rng.normal(size=(u, max(1, u // 2)))) for n, u in units.items()},
        },
        seed=seed,
    )


def gram(rows: np.ndarray) -> np.ndarray:
    return rows @ rows.T


def chain(*widths: int, positions: int = 1) -> ChannelGraph:
    """Linear layers in a row; every width but the first and the last is a group."""
    names = [f"fc{i}" for i in range(len(widths) - 1)]
    shapes = {name: (after, before) for name, (before, after) in zip(names, pairwise(widths), strict=True)}
    groups = []
    for made, read in pairwise(names):
        index = tuple((u,) for u in range(shapes[made][0]))
        members = (TensorSlice(made, 0, "out", index), TensorSlice(read, 1, "in", index))
        groups.append(ChannelGroup(made, len(index), members))
    ops = tuple(MacOp(name, positions) for name in names)
    return ChannelGraph(tuple(groups), (), ops, shapes, tuple(names))


def wide(graph: ChannelGraph) -> dict[str, tuple[int, ...]]:
    """All counts from 1 on."""
    return {g.name: tuple(range(1, g.units + 1)) for g in graph.groups}


def reach(name: str, terms: Terms) -> float:
    """The share that an allocator says is the least, where it cannot meet the budget; else 0."""
    try:
        allocators[name](terms)
    except OutOfReach as error:
        return error.least
    return 0.0


@pytest.mark.parametrize("net", SOME)
@pytest.mark.parametrize("name", allocators)
@settings(max_examples=8, deadline=None)
@given(
    kept=st.floats(0.02, 1.0),
    seed=st.integers(0, 3),
    largest=st.sampled_from([0.5, 0.9]),
    round_to=st.sampled_from([1, 4]),
)
def test_the_budget_is_met_within_one_quantum(net, name, kept, seed, largest, round_to) -> None:
    terms = terms_of(net, kept, seed, largest, round_to)
    dense = macs(terms.graph)
    least = reach(name, terms)
    if least > kept:
        smallest = allocators[name](replace(terms, kept_macs=least))  # what it says can be had
        assert macs_of(terms.graph, smallest) == pytest.approx(least * dense)
        return
    counts = allocators[name](terms)
    assert list(counts) == list(terms.keeps)
    assert all(counts[g] in terms.keeps[g] for g in counts)  # allowed widths, and so the smallest one
    assert macs_of(terms.graph, counts) <= kept * dense * (1 + 1e-9)
    assert allocators[name](terms) == counts
    if kept == 1.0 and name != "dcp_adapt":
        assert counts == terms.dense()
    elif counts != terms.dense() and kept < 1.0:
        one_more = [
            {**counts, g: terms.keeps[g][terms.keeps[g].index(count) + 1]}
            for g, count in counts.items()
            if count < terms.keeps[g][-1]
        ]
        assert max(macs_of(terms.graph, more) for more in one_more) > kept * dense


@settings(max_examples=30, deadline=None)
@given(low=st.floats(0.1, 1.0), high=st.floats(0.1, 1.0), name=st.sampled_from(sorted(allocators)))
def test_a_larger_budget_never_gives_a_smaller_network(low, high, name) -> None:
    low, high = sorted((low, high))
    if name == "dcp_adapt" and high == 1.0:
        return  # its own rule decides there
    try:
        less = allocators[name](terms_of("ResNetOptionA", low))
    except OutOfReach:
        return
    more = allocators[name](terms_of("ResNetOptionA", high))
    graph = traced("ResNetOptionA")
    assert macs_of(graph, less) <= macs_of(graph, more) or low == high


@pytest.mark.parametrize("net", SOME)
def test_macs_of_counts_are_those_of_a_plan(net) -> None:
    graph = traced(net)
    counts = {g.name: (g.units + 1) // 2 for g in graph.groups}
    assert macs_of(graph, counts) == macs(graph, keeping(graph, [range(k) for k in counts.values()]))
    assert macs_of(graph, {}) == macs(graph)


def test_the_fitter_finds_the_largest_member_of_a_family() -> None:
    graph = chain(5, 12, 7, 9, 3)
    keeps = wide(graph)

    def family(cut: float) -> dict[str, int]:
        return {name: nearest(k, k[-1] * (1 - cut) ** (i + 1)) for i, (name, k) in enumerate(keeps.items())}

    members = [macs_of(graph, family(cut)) for cut in np.linspace(0, 1, 5001)]
    for kept in np.linspace(0.1, 0.99, 40):
        found = macs_of(graph, fit_budget(Terms(graph, float(kept), keeps), family))
        assert max(m for m in members if m <= kept * members[0]) <= found <= kept * members[0]


def test_groups_that_step_together_do_so_in_turn() -> None:
    graph = chain(1, 4, 1, 4, 1)
    keeps = {"fc0": (2, 4), "fc1": (1,), "fc2": (2, 4)}
    assert macs(graph) == 16
    counts = fit_budget(
        Terms(graph, 0.75, keeps), lambda cut: {g: k[0 if cut > 0.5 else -1] for g, k in keeps.items()}
    )
    assert counts == {"fc0": 4, "fc1": 1, "fc2": 2}


def test_a_budget_out_of_reach_says_what_is_in_reach() -> None:
    graph = chain(2, 4, 2)
    terms = Terms(graph, 0.4, {"fc0": (2, 3, 4)})
    with pytest.raises(
        OutOfReach, match=r"0\.4 of the dense network's MACs are too few: .*0\.5 of them"
    ) as caught:
        allocators["uniform"](terms)
    assert caught.value.least == 0.5
    assert allocators["uniform"](replace(terms, kept_macs=0.5)) == {"fc0": 2}


@pytest.mark.parametrize(
    ("name", "need"),
    [
        ("global_threshold", "scores"),
        ("sensitivity", "sensitivity"),
        ("dcp_adapt", "selection_loss"),
        ("redundancy", "gradient_gram"),
    ],
)
def test_a_missing_need_is_named(name, need) -> None:
    full = terms_of("Plain", 0.5)
    bare = Terms(full.graph, 0.5, full.keeps)
    assert allocators[name].needs == {need}
    with pytest.raises(
        PrunefrontError, match=f"'{name}' needs {need}, which it did not get.*it got: nothing"
    ):
        allocators[name](bare)
    with pytest.raises(PrunefrontError, match=f"needs {need}"):
        allocators[name](replace(bare, facts={need: {}}))


def test_terms_and_entries_that_make_no_sense_are_refused() -> None:
    graph = chain(2, 4, 2)
    for kept in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="kept_macs must be in"):
            Terms(graph, kept, {})
    for keeps in ({"fc0": (1, 2)}, {"fc0": ()}, {"fc0": (3, 2, 4)}, {"fc0": (0, 4)}):
        with pytest.raises(ValueError, match="must ascend from 1 or more to 4"):
            Terms(graph, 0.5, keeps)
    with pytest.raises(ValueError, match="no channel group is called 'head'"):
        Terms(graph, 0.5, {"head": (1,)})
    with pytest.raises(UnknownName, match="did you mean 'uniform'"):
        allocators["uniforn"]
    with pytest.raises(ValueError, match="'uniform' is registered twice"):
        allocator("uniform")(allocators["uniform"].allocate)
    with pytest.raises(ValueError, match="has no docstring"):
        allocator("silent")(lambda terms: terms.dense())
    for wrong, message in (
        ({}, "left out or invented group 'fc0'"),
        ({"fc0": 3}, r"keeps 3 .* allowed: \(2, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(allocators["uniform"], allocate=lambda _, wrong=wrong: wrong)(
                Terms(graph, 0.5, {"fc0": (2, 4)})
            )
    assert all(allocators[name].summary and allocators[name].choose for name in allocators)


@given(
    keeps=st.sets(st.integers(1, 40), min_size=1).map(lambda s: tuple(sorted(s))),
    target=st.floats(-1.0, 41.0) | st.integers(0, 82).map(lambda n: n / 2),
)
def test_snapping(keeps, target) -> None:
    assert nearest(keeps, target) == min(keeps, key=lambda k: (round(abs(k - target), 9), -k))
    whole = int(target)
    assert at_least(keeps, whole) == next((k for k in keeps if k >= whole), keeps[-1])


def test_uniform_is_uniform() -> None:
    graph = chain(3, 100, 50, 200, 3)
    counts = allocators["uniform"](Terms(graph, 0.37, wide(graph)))
    shares = [counts[g.name] / g.units for g in graph.groups]
    assert max(shares) - min(shares) <= 0.02  # a unit of the narrowest


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), kept=st.floats(0.1, 0.99), comparable=st.booleans(), ties=st.booleans())
def test_the_global_threshold_is_a_brute_force_sort(seed, kept, comparable, ties) -> None:
    rng = np.random.default_rng(seed)
    graph = chain(3, 6, 5, 7, 2)
    scores = {g.name: 10.0**i * rng.random(g.units) for i, g in enumerate(graph.groups)}
    if ties:
        scores = {name: np.round(values, 1) for name, values in scores.items()}
    keeps = {"fc0": tuple(range(2, 7)), "fc1": tuple(range(1, 6)), "fc2": tuple(range(3, 8))}
    terms = Terms(graph, kept, keeps, scores, comparable)
    ranked = sorted(
        (v / (1.0 if comparable or not scores[name].any() else scores[name].mean()), i, unit, name)
        for i, name in enumerate(scores)
        for unit, v in enumerate(scores[name])
    )
    counts = terms.dense()
    for _, _, _, name in ranked:
        if macs_of(graph, counts) <= kept * macs(graph):
            break
        counts[name] = max(counts[name] - 1, keeps[name][0])
    if macs_of(graph, counts) <= kept * macs(graph):
        assert allocators["global_threshold"](terms) == counts
    else:
        with pytest.raises(OutOfReach):
            allocators["global_threshold"](terms)


def test_scores_that_may_not_be_compared_are_taken_relative_to_their_group() -> None:
    graph = chain(1, 4, 1, 4, 1)
    keeps = wide(graph)
    scores = {"fc0": np.array([1.0, 2, 3, 4]), "fc2": np.array([40.0, 10, 30, 20])}
    kept = 12 / 16
    assert allocators["global_threshold"](Terms(graph, kept, keeps, scores, True)) == {
        "fc0": 2,
        "fc1": 1,
        "fc2": 4,
    }
    assert allocators["global_threshold"](Terms(graph, kept, keeps, scores)) == {"fc0": 3, "fc1": 1, "fc2": 3}
    assert relative(np.array([1.0, 3.0])).tolist() == relative(np.array([7.0, 21.0])).tolist() == [0.5, 1.5]
    assert relative(np.array([-1.0, -3.0])).tolist() == [-0.5, -1.5]  # the order stays
    assert relative(np.zeros(2)).tolist() == [0.0, 0.0]


def test_groups_without_scores_stay_dense() -> None:
    graph = chain(3, 6, 5, 2)
    terms = Terms(graph, 0.6, wide(graph), {"fc1": np.arange(5.0)})
    assert allocators["global_threshold"](terms)["fc0"] == 6
    with pytest.raises(OutOfReach):
        allocators["global_threshold"](replace(terms, kept_macs=0.2))


def test_cuts_of_a_sensitivity_sweep() -> None:
    assert dropped_counts(20) == (5, 10, 15, 18)
    assert dropped_counts(8) == (2, 4, 6, 7)
    assert dropped_counts(2) == (0, 1, 1, 1)
    assert dropped_counts(1) == (0, 0, 0, 0)


def test_curves_are_read_backwards() -> None:
    ratio, worst = ratio_curve(np.array([0.1, 0.3, 0.2, 1.2]), 20)  # the fall at 0.75 is noise
    assert worst == pytest.approx(1.2 + 0.1 * 0.9 / 0.15)
    for rise, wanted in (
        (0.0, 0.0),
        (0.05, 0.125),
        (0.1, 0.25),
        (0.2, 0.375),
        (0.3, 0.75),
        (0.75, 0.825),
        (9.0, 1.0),
    ):
        assert ratio(rise) == pytest.approx(wanted)
    flat, worst = ratio_curve(np.zeros(4), 20)
    assert (flat(0.0), worst) == (1.0, 0.0)
    small, _ = ratio_curve(np.array([0.0, 1.0, 1.0, 1.0]), 2)  # one of two units is all that went
    assert small(0.5) == pytest.approx(0.25)
    assert ratio_curve(np.zeros(4), 1)[0](0.0) == 1.0


@pytest.mark.parametrize("kept", [0.9, 0.6, 0.3])
def test_sensitivity_chooses_ratios_of_equal_drop(kept) -> None:
    """Straight curves of slopes 1, 2 and 4: at equal drop the ratios stand as 4 : 2 : 1."""
    graph = chain(3, 400, 400, 400, 3)
    slopes = {"fc0": 1.0, "fc1": 2.0, "fc2": 4.0}
    curves = {name: slope * np.array(RATIOS) for name, slope in slopes.items()}
    terms = Terms(graph, kept, wide(graph), facts={"sensitivity": curves})
    counts = allocators["sensitivity"](terms)
    drops = [slopes[name] * (1 - counts[name] / 400) for name in slopes]
    assert max(drops) - min(drops) <= 4.0 / 400 + 1e-9
    assert max(drops) > 0.05


def test_what_costs_nothing_goes_first_but_only_as_far_as_it_must() -> None:
    graph = chain(1, 10, 1, 10, 1)
    curves = {"fc0": np.zeros(4), "fc2": np.array([0.1, 0.2, 0.3, 0.4])}
    terms = Terms(graph, 0.8, wide(graph), facts={"sensitivity": curves})
    assert allocators["sensitivity"](terms) == {"fc0": 6, "fc1": 1, "fc2": 10}
    assert allocators["sensitivity"](replace(terms, kept_macs=1.0)) == terms.dense()


def test_erk_by_hand() -> None:
    """ε(2+2)/4 = ε, ε(4+4)/16 = ε/2, ε(8+8)/64 = ε/4; half of the 84 weights overfills the first."""
    shapes = {"a": (2, 2), "b": (4, 4), "c": (8, 8)}
    found = erk_densities(shapes, 0.5)
    scale = (42 - 4) / (8 + 16)
    assert found == pytest.approx({"a": 1.0, "b": scale / 2, "c": scale / 4})
    assert erk_densities(shapes, 0.25) == pytest.approx({"a": 0.75, "b": 0.375, "c": 0.1875})
    kernel = {"k": (16, 8, 3, 3), "l": (10, 16)}
    low = erk_densities(kernel, 0.1)
    assert low["k"] / low["l"] == pytest.approx((30 / 1152) / (26 / 160))


@given(
    shapes=st.lists(st.lists(st.integers(1, 20), min_size=2, max_size=4).map(tuple), min_size=1, max_size=6),
    low=st.floats(0, 1),
    high=st.floats(0, 1),
)
def test_erk_densities_sum_to_the_target_and_rise_with_it(shapes, low, high) -> None:
    layers = {str(i): shape for i, shape in enumerate(shapes)}
    low, high = sorted((low, high))
    less, more = erk_densities(layers, low), erk_densities(layers, high)
    for found, target in ((less, low), (more, high)):
        assert all(-1e-9 <= d <= 1 + 1e-9 for d in found.values())
        total = sum(prod(s) for s in shapes)
        assert sum(found[n] * prod(s) for n, s in layers.items()) == pytest.approx(target * total)
    assert all(less[n] <= more[n] + 1e-9 for n in layers)


def test_erk_spares_small_layers() -> None:
    graph = chain(4, 16, 64, 256, 4)
    counts = allocators["erk"](Terms(graph, 0.3, wide(graph)))
    shares = [counts[g.name] / g.units for g in graph.groups]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1] + 0.2


def test_mac_proportional_ratios_stand_as_the_work() -> None:
    graph = chain(10, 100, 1, 100, 70)  # units of fc0 save 11, units of fc2 save 71
    keeps = {"fc0": tuple(range(1, 101)), "fc1": (1,), "fc2": tuple(range(1, 101))}
    counts = allocators["mac_proportional"](Terms(graph, 0.6, keeps))
    gone = {name: 100 - counts[name] for name in ("fc0", "fc2")}
    assert gone["fc2"] > 20
    assert abs(gone["fc0"] - gone["fc2"] * 11 / 71) <= 1.5


def test_the_stop_of_dcp_adapt() -> None:
    losses = np.array([1.0, 0.5, 0.25, 0.249])
    assert stop_count(losses, hits=1) == 3
    assert stop_count(losses) == 3  # the second hit never comes: all channels
    assert stop_count(np.append(losses, [0.2489, 0.1]), hits=2) == 4
    assert stop_count(np.append(losses, [0.2, 0.1999, 0.1998]), hits=2) == 6  # hits must follow each other
    assert stop_count(losses, epsilon=0.25, hits=1) == 2
    assert stop_count(10 * losses, hits=1) == 3
    assert stop_count(np.zeros(5), hits=1) == 1


@given(
    losses=st.lists(st.floats(0, 10), min_size=2, max_size=12).map(np.array),
    low=st.floats(0, 1),
    high=st.floats(0, 1),
    hits=st.integers(1, 3),
)
def test_the_stop_is_monotone(losses, low, high, hits) -> None:
    low, high = sorted((low, high))
    assert 1 <= stop_count(losses, high, hits) <= stop_count(losses, low, hits) <= len(losses) - 1
    assert stop_count(losses, low, hits) <= stop_count(losses, low, hits + 1)


def test_dcp_adapt_uses_its_own_rule_where_nothing_must_go() -> None:
    graph = chain(2, 6, 6, 2)
    curves = {"fc0": np.array([1.0, 0.5, 0.2, 0.199, 0.198, 0.1, 0.0]), "fc1": np.linspace(1, 0, 7)}
    terms = Terms(graph, 1.0, wide(graph), facts={"selection_loss": curves})
    assert allocators["dcp_adapt"](terms) == {"fc0": 4, "fc1": 6}
    coarse = replace(terms, keeps={"fc0": (3, 5, 6), "fc1": (6,)})
    assert allocators["dcp_adapt"](coarse) == {"fc0": 5, "fc1": 6}  # never fewer than the rule's
    with pytest.raises(ValueError, match="must hold the loss with 0 to 6 units, got shape"):
        allocators["dcp_adapt"](replace(terms, facts={"selection_loss": {"fc0": np.ones(6)}}))


def test_energy_rank_sees_twins_and_dead_units_and_no_order() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(8, 128)) / np.sqrt(128)
    assert energy_rank(gram(rows)) == 8
    for twins in (1, 2, 3):
        copied = rows.copy()
        copied[8 - twins :] = rows[0]
        assert energy_rank(gram(copied)) == 8 - twins
        dead = rows.copy()
        dead[:twins] = 0.0
        assert energy_rank(gram(dead)) == 8 - twins
        order = rng.permutation(8)
        assert energy_rank(gram(copied[order])) == 8 - twins
    assert energy_rank(np.zeros((8, 8))) == 0
    assert energy_rank(np.diag([98.0, 1.0, 1.0])) == 2  # 1 - ε is met exactly
    assert energy_rank(np.diag([98.0, 1.0, 1.0]), epsilon=0.02) == 1
    assert max_ratio(gram(rows), least=1) == 0.0
    assert max_ratio(np.zeros((8, 8)), least=2) == 0.75


def test_upper_bounds_are_counts_that_the_plan_allows() -> None:
    graph = chain(2, 10, 10, 10, 2)
    rng = np.random.default_rng(1)
    grams = {"fc0": gram(rng.normal(size=(10, 3))), "fc2": gram(rng.normal(size=(10, 99)))}
    bounds = upper_bounds(graph, grams, largest=0.5)
    assert bounds == {"fc0": 0.5, "fc2": 0.0}
    assert upper_bounds(graph, grams)["fc0"] == 1 - energy_rank(grams["fc0"]) / 10
    for name, bound in upper_bounds(graph, grams).items():
        assert keep_counts(graph.group(name), bound)[0] == max(1, energy_rank(grams[name]))


def test_redundant_groups_go_first_and_no_further_than_their_rank() -> None:
    graph = chain(1, 10, 1, 10, 1, 10, 1)
    rng = np.random.default_rng(2)
    grams = {
        "fc0": gram(rng.normal(size=(10, 200))),
        "fc2": np.diag([1.0] * 4 + [0.0] * 6),
        "fc4": np.diag([1.0] * 7 + [0.0] * 3),
    }
    keeps = wide(graph)
    terms = Terms(graph, 50 / 60, keeps, facts={"gradient_gram": grams})
    assert allocators["redundancy"](terms) == {"fc0": 10, "fc1": 1, "fc2": 5, "fc3": 1, "fc4": 10}
    assert allocators["redundancy"](replace(terms, kept_macs=44 / 60))["fc4"] == 8
    with pytest.raises(OutOfReach) as caught:
        allocators["redundancy"](replace(terms, kept_macs=0.5))
    assert caught.value.least == 42 / 60


def test_random_allocations_differ_by_seed_and_scatter() -> None:
    graph = chain(3, 50, 50, 50, 50, 3)
    keeps = wide(graph)
    drawn = [allocators["random"](Terms(graph, 0.4, keeps, seed=seed)) for seed in range(20)]
    assert len({tuple(d.values()) for d in drawn}) == 20
    shares = np.array([list(d.values()) for d in drawn]) / 50
    assert shares.std(axis=0).min() > 0.1
    costs = [macs_of(graph, d) / macs(graph) for d in drawn]
    assert min(costs) > 0.38


def test_no_allocator_beats_the_best_by_exhaustion_at_its_own_rule() -> None:
    """Uniform and global threshold, against all allocations of a tiny network that share their rule."""
    graph = chain(2, 4, 4, 2)
    keeps = wide(graph)
    scores = {"fc0": np.array([1.0, 4, 6, 7]), "fc1": np.array([2.0, 3, 5, 8])}
    for kept in np.linspace(0.2, 0.95, 16):
        budget = kept * macs(graph)
        counts = allocators["global_threshold"](Terms(graph, float(kept), keeps, scores, True))
        fitting = [
            pair
            for pair in product(range(1, 5), repeat=2)
            if macs_of(graph, {"fc0": pair[0], "fc1": pair[1]}) <= budget
            and _one_threshold(scores, {"fc0": pair[0], "fc1": pair[1]})
        ]
        assert macs_of(graph, counts) == max(macs_of(graph, {"fc0": a, "fc1": b}) for a, b in fitting)


def _one_threshold(scores: dict[str, np.ndarray], counts: dict[str, int]) -> bool:
    """Says that all dropped units score less than all kept ones, the last unit of a group aside."""
    kept = [v for g, k in counts.items() for v in sorted(scores[g])[-k:][: 0 if k == 1 else None]]
    gone = [v for g, k in counts.items() for v in sorted(scores[g])[:-k]]
    return not kept or not gone or max(gone) < min(kept)
