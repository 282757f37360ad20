"""The front: order does not matter, hypervolume only grows, a hand-made case agrees."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.front import ParetoFront, reference_point
from prunefront.search.outcomes.measurement import OBJECTIVES, Constraint, Measurement

ACCURACY, MACS = OBJECTIVES["accuracy"], OBJECTIVES["macs"]
DENSE = Measurement({"accuracy": 0.9, "macs": 100.0})

measurements = st.builds(
    lambda a, c, n: Measurement({"accuracy": a / 10, "macs": 10.0 * c}, {"accuracy": n / 20}),
    st.integers(0, 10),
    st.integers(0, 12),
    st.integers(0, 4),
)


@given(st.lists(measurements, max_size=15), st.randoms())
def test_members_do_not_depend_on_the_order(found: list[Measurement], random: object) -> None:
    numbered = [(str(i), m) for i, m in enumerate(found)]
    one, two = ParetoFront((ACCURACY, MACS)), ParetoFront((ACCURACY, MACS))
    for key, m in numbered:
        one.add(key, m)
    random.shuffle(numbered)  # type: ignore[attr-defined]
    for key, m in numbered:
        two.add(key, m)
    assert one.members == two.members
    for key, m in numbered:
        beaten = any(one.dominates(other, m) for other in found)
        assert (key in one) != beaten


@given(st.lists(measurements, max_size=15))
def test_hypervolume_never_shrinks(found: list[Measurement]) -> None:
    front, before = ParetoFront((ACCURACY, MACS)), 0.0
    reference = reference_point((ACCURACY, MACS), DENSE)
    for i, m in enumerate(found):
        front.add(str(i), m)
        now = front.hypervolume(reference)
        assert now >= before - 1e-9
        before = now


def test_hypervolume_by_hand() -> None:
    front = ParetoFront((ACCURACY, MACS))
    reference = reference_point((ACCURACY, MACS), DENSE)
    assert reference == {"accuracy": 0.0, "macs": pytest.approx(110.0)}
    assert front.hypervolume(reference) == 0.0
    assert front.add("dense", DENSE)
    assert front.add("small", Measurement({"accuracy": 0.5, "macs": 50.0}))
    assert not front.add("bad", Measurement({"accuracy": 0.4, "macs": 60.0}))
    assert list(front.members) == ["dense", "small"]
    # dense covers 0.9 x 10; small adds 0.5 x (100 - 50)
    assert front.hypervolume(reference) == pytest.approx(0.9 * 10 + 0.5 * 50)
    assert front.relative_hypervolume(reference) == pytest.approx((9 + 25) / 110)


def test_infeasible_never_joins_and_a_key_counts_once() -> None:
    front = ParetoFront((ACCURACY, MACS), (Constraint("accuracy", low=0.6),))
    assert not front.add("weak", Measurement({"accuracy": 0.5, "macs": 1.0}))
    assert front.add("fine", Measurement({"accuracy": 0.7, "macs": 90.0}))
    assert not front.add("fine", Measurement({"accuracy": 0.9, "macs": 1.0}))
    assert front.members == {"fine": Measurement({"accuracy": 0.7, "macs": 90.0})}
    weak = Measurement({"accuracy": 0.5, "macs": 1.0})
    assert front.dominates(front.members["fine"], weak)


def test_a_missing_value_is_named() -> None:
    front = ParetoFront((ACCURACY, MACS), (Constraint("params", high=5.0),))
    with pytest.raises(PrunefrontError, match="lacks the objective 'macs'"):
        front.add("a", Measurement({"accuracy": 0.5}))
    with pytest.raises(PrunefrontError, match="'params', which a constraint bounds"):
        front.add("a", DENSE)


def test_accuracy_within_noise_does_not_remove_a_point_of_equal_cost() -> None:
    front = ParetoFront((ACCURACY, MACS))
    noise = {"accuracy": 0.02}
    assert front.add("a", Measurement({"accuracy": 0.90, "macs": 50.0}, noise))
    assert front.add("b", Measurement({"accuracy": 0.91, "macs": 50.0}, noise))
    assert len(front) == 2
    assert front.add("c", Measurement({"accuracy": 0.95, "macs": 50.0}, noise))
    assert list(front.members) == ["c"]
    assert np.isclose(front.hypervolume({"accuracy": 0.0, "macs": 100.0}), 0.95 * 50)
