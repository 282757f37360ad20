import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from prunefront.choice import GroupChoice, pattern
from prunefront.errors import PrunefrontError, RatioError
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, Frozen, MacOp, TensorSlice
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.plan.decide import keep_counts, nearest_keep_count, plan


def group_of(units: int, channels: int = 1, name: str = "g") -> ChannelGroup:
    """Unit u owns the channels u, u + units, u + 2·units …"""
    index = tuple(tuple(u + units * c for c in range(channels)) for u in range(units))
    return ChannelGroup(name, units, (TensorSlice(f"{name}.weight", 0, "out", index),))


def graph_of(*groups: ChannelGroup) -> ChannelGraph:
    shapes = {m.tensor: (sum(map(len, m.index)), 2) for g in groups for m in g.members}
    return ChannelGraph(groups, (Frozen("fc", 10, "output"),), (MacOp("g.weight", 4),), shapes, tuple(shapes))


units = st.integers(1, 300)
ratios = st.floats(0.0, 0.999999).map(lambda r: round(r, 6))  # as a choice holds them


@given(units=units, ratio=ratios, seed=st.integers(0, 99))
def test_said_equals_done_within_one_unit_or_it_raises(units, ratio, seed):
    score = np.random.default_rng(seed).normal(size=units)
    try:
        done = plan(graph_of(group_of(units)), {"g": GroupChoice("l1", ratio)}, {"l1": {"g": score}}).groups[
            0
        ]
    except RatioError:
        assert units * (1.0 - ratio) < 0.5  # only where nothing would stay
        return
    assert abs(done.achieved - ratio) <= 0.5 / units + 1e-6
    assert done.requested == ratio
    assert list(done.kept) == sorted(set(done.kept))
    assert 0 <= min(done.kept) <= max(done.kept) < units
    dropped = sorted(set(range(units)) - set(done.kept))
    assert not dropped or score[list(done.kept)].min() >= score[dropped].max()


@given(units=units, keep=st.integers(1, 300))
def test_every_count_of_kept_units_can_be_asked_for_exactly(units, keep):
    assume(keep <= units)
    ratio = GroupChoice("l1", 1.0 - keep / units).to_json()["ratio"]  # even after its way through JSON
    assert nearest_keep_count(group_of(units), ratio) == keep


@given(units=units, thousandths=st.integers(0, 999))
@example(units=5, thousandths=900)  # 5 × 0.1 falls below one half in floating point
def test_a_ratio_half_way_keeps_more(units, thousandths):
    target = units * (1 - Fraction(thousandths, 1000))
    expected = math.floor(target + Fraction(1, 2))
    assume(expected)
    assert nearest_keep_count(group_of(units), thousandths / 1000) == expected
    even = [*range(2, units, 2), units]
    expected = min(even, key=lambda k: (abs(k - target), -k))
    assert nearest_keep_count(group_of(units), thousandths / 1000, round_to=2) == expected


@given(units=units, channels=st.integers(1, 4), ratio=ratios, multiple=st.integers(2, 32))
def test_rounding_takes_the_nearest_multiple_and_never_zero(units, channels, ratio, multiple):
    group = group_of(units, channels)
    kept = nearest_keep_count(group, ratio, multiple)
    possible = [k for k in range(1, units + 1) if k * channels % multiple == 0]
    assert kept in {*possible, units}
    assert kept >= 1
    distance = abs(kept - units * (1 - ratio))
    assert all(distance <= abs(k - units * (1 - ratio)) + 1e-6 for k in possible)
    done = plan(
        graph_of(group),
        {"g": GroupChoice("l1", ratio)},
        {"l1": {"g": np.arange(units * 1.0)}},
        round_to=multiple,
    ).groups[0]
    assert done.kept == tuple(range(units - kept, units))
    assert done.achieved == pytest.approx(1 - kept / units)


@given(units=units, max_ratio=st.floats(0.0, 0.99), multiple=st.integers(1, 16))
def test_counts_on_offer_ascend_to_dense_and_leave_enough(units, max_ratio, multiple):
    counts = keep_counts(group_of(units), max_ratio, multiple)
    assert list(counts) == sorted(set(counts))
    assert counts[-1] == units
    assert counts[0] >= max(1.0, units * (1 - max_ratio) - 1e-6)
    assert all(k % multiple == 0 for k in counts[:-1])


@given(st.floats(0, 0.999999))
def test_a_choice_survives_json(ratio):
    choice = GroupChoice("l1", ratio)
    assert GroupChoice.from_json(json.loads(json.dumps(choice.to_json()))) == choice


def test_a_ratio_that_its_six_digits_make_one_is_refused():
    with pytest.raises(RatioError, match=r"got 0\.9999999"):
        GroupChoice("l1", 0.9999999)


def test_no_ratio_is_written_in_one_way_only():
    assert json.dumps(GroupChoice("l1", -0.0).to_json()) == json.dumps(GroupChoice("l1", 0.0).to_json())


def test_ties_are_broken_by_index():
    scores = {"l1": {"g": np.array([1.0, 2.0, 1.0, 2.0, 1.0, 2.0])}}
    assert plan(graph_of(group_of(6)), {"g": GroupChoice("l1", 1 / 3)}, scores).groups[0].kept == (0, 1, 3, 5)


@given(units=units, data=st.data())
def test_an_explicit_pattern_is_carried_out_to_the_letter_and_needs_no_scores(units, data):
    kept = tuple(sorted(data.draw(st.sets(st.integers(0, units - 1), min_size=1))))
    choice = GroupChoice("l1", 1 - len(kept) / units, keep=pattern(kept))
    assert choice.kept_units() == kept
    assert plan(graph_of(group_of(units)), {"g": choice}, {}).groups[0].kept == kept


@pytest.mark.parametrize(
    ("keep", "ratio", "message"),
    [("0", 0.5, "between 1 and 8"), ("1ff", 0.0, "indices below 8"), ("3", 0.25, "drops 6 of 8 units")],
)
def test_a_pattern_that_cannot_be_or_disagrees_with_its_ratio_is_refused(keep, ratio, message):
    with pytest.raises(RatioError, match=message):
        plan(graph_of(group_of(8)), {"g": GroupChoice("l1", ratio, keep=keep)}, {})


def two() -> ChannelGraph:
    return graph_of(group_of(4, name="a"), group_of(8, name="b"))


SCORES = {"l1": {"a": np.arange(4.0), "b": np.arange(8.0)}, "l2": {"a": np.arange(4.0) ** 2}}


def test_equal_networks_have_equal_keys():
    def key(**choices):
        return plan(two(), choices, SCORES).key()

    half = key(a=GroupChoice("l1", 0.5))
    assert half == key(a=GroupChoice("l2", 0.5))  # another criterion, the same units
    assert half == key(a=GroupChoice("l1", 0.45))  # another ratio, the same units
    assert half == key(a=GroupChoice("none", 0.5, keep=pattern((2, 3))))
    assert half == key(a=GroupChoice("l1", 0.5), b=GroupChoice("l1", 0.0))
    different = [
        key(a=GroupChoice("l1", 0.25)),
        key(a=GroupChoice("l1", 0.5, bits=8)),
        key(a=GroupChoice("l1", 0.5, keep=pattern((0, 1)))),
        key(b=GroupChoice("l1", 0.5)),
        key(),
    ]
    assert len({half, *different}) == 6
    assert key() == key(a=GroupChoice("l1", 0.0), b=GroupChoice("nobody", 0.01)) == "dense"
    # with every unit kept it does not matter what a unit is
    assert key(a=GroupChoice("l1", 0.0, "kernel", bits=8)) == key(a=GroupChoice("l1", 0.0, bits=8))


def test_groups_left_out_stay_dense():
    done = plan(two(), {"b": GroupChoice("l1", 0.5)}, SCORES)
    assert done.kept_units() == {"a": (0, 1, 2, 3), "b": (4, 5, 6, 7)}
    assert done.achieved_ratios() == {"a": 0.0, "b": 0.5}
    assert [g.dense for g in done.groups] == [True, False]


@given(
    a=st.integers(1, 4),
    b=st.integers(1, 8),
    bits=st.sampled_from([32, 8]),
    explicit=st.booleans(),
    seed=st.integers(0, 99),
)
def test_json_round_trip(a, b, bits, explicit, seed):
    scores = {"l1": {"a": np.random.default_rng(seed).normal(size=4), "b": np.arange(8.0)}}
    choices = {
        "a": GroupChoice("l1", 1 - a / 4, bits=bits),
        "b": GroupChoice("l1", 1 - b / 8, keep=pattern(tuple(range(b))) if explicit else None),
    }
    done = plan(two(), choices, scores)
    again = PruningPlan.from_json(json.loads(json.dumps(done.to_json())))
    assert again == done
    assert again.key() == done.key() == done.to_json()["key"]


def test_a_group_is_found_by_name():
    assert two().group("b").units == 8
    with pytest.raises(KeyError):
        two().group("c")


def test_unknown_names_are_named_with_what_there_is():
    with pytest.raises(PrunefrontError, match="'c'; there are: a, b"):
        plan(two(), {"c": GroupChoice("l1", 0.5)}, SCORES)
    with pytest.raises(
        PrunefrontError, match="'b' asks for criterion 'l2', which was not scored; scored: l1"
    ):
        plan(two(), {"b": GroupChoice("l2", 0.5)}, SCORES)
    with pytest.raises(PrunefrontError, match="scored: none"):
        plan(two(), {"b": GroupChoice("l2", 0.5)}, {})


def test_scores_of_another_network_are_refused():
    with pytest.raises(PrunefrontError, match=r"8 units of group 'b'.*4 scores"):
        plan(two(), {"b": GroupChoice("l1", 0.5)}, {"l1": {"b": np.arange(4.0)}})


def test_a_ratio_that_leaves_nothing_says_what_is_possible():
    with pytest.raises(RatioError, match=r"0\.99 of group 'a' would drop all of its 4 units.*0\.7500"):
        plan(two(), {"a": GroupChoice("l1", 0.99)}, SCORES)
    for ratio in (-0.1, 1.0):
        with pytest.raises(RatioError, match=r"\[0, 1\)"):
            GroupChoice("l1", ratio)


def test_a_plan_cannot_be_changed():
    done = plan(two(), {}, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        done.groups[0].kept = (0,)
