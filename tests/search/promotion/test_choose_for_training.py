"""The promoted candidates are spread over costs, best of their cost, and never outside a constraint."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.measurement import Constraint, Measurement
from prunefront.search.promotion.choose_for_training import promote


def scored(accuracy: float, macs: float, noise: float = 0.0) -> Measurement:
    return Measurement({"accuracy": accuracy, "macs": macs}, {"accuracy": noise})


POINTS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4),
    st.builds(scored, st.floats(0, 1), st.floats(1, 1e9), st.floats(0, 0.1)),
    max_size=30,
)


@given(POINTS, st.integers(-3, 40))
def test_as_many_as_asked_for_and_each_once(points: dict[str, Measurement], count: int) -> None:
    keys = promote(points, count)
    assert len(keys) == len(set(keys)) == min(max(count, 0), len(points))
    assert set(keys) <= set(points)
    assert keys == promote(dict(reversed(points.items())), count)


FEW_COSTS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4),
    st.builds(scored, st.floats(0.01, 1), st.sampled_from([10.0, 20.0, 1000.0])),
    max_size=30,
)


@given(FEW_COSTS, st.integers(0, 20))
def test_of_equal_cost_the_more_accurate_is_promoted(points: dict[str, Measurement], count: int) -> None:
    chosen = promote(points, count)
    for left in set(points) - set(chosen):
        for key in chosen:
            if points[key]["macs"] == points[left]["macs"]:
                assert points[key]["accuracy"] >= points[left]["accuracy"]


def test_candidates_compete_within_their_part_of_the_cost_axis() -> None:
    points = {
        "large good": scored(0.95, 1000),
        "large poor": scored(0.90, 900),
        "small good": scored(0.40, 10),
        "small poor": scored(0.30, 11),
    }
    assert promote(points, 2) == ["large good", "small good"]
    assert set(promote(points, 4)) == set(points)


def test_what_is_not_better_than_chance_comes_last() -> None:
    points = {"able": scored(0.5, 100, 0.02), "chance": scored(0.11, 10, 0.02)}
    assert promote(points, 1, chance=0.1) == ["able"]
    assert promote(points, 2, chance=0.1) == ["able", "chance"]


def test_a_constraint_on_an_exact_value_excludes_and_one_on_accuracy_waits_for_training() -> None:
    points = {"big": scored(0.9, 100), "small": scored(0.5, 10)}
    assert promote(points, 2, constraints=[Constraint("macs", high=50)]) == ["small"]
    assert set(promote(points, 2, constraints=[Constraint("accuracy", low=0.8)])) == {"big", "small"}


def test_a_bounded_value_that_was_not_measured_is_named() -> None:
    with pytest.raises(PrunefrontError, match="lacks 'latency_ms', which a constraint bounds"):
        promote({"a": scored(0.9, 100)}, 1, constraints=[Constraint("latency_ms", high=3)])
