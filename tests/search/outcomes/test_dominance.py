"""Dominance, ranks and crowding against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront.search.outcomes.dominance import crowding, dominance, preference, ranks


@st.composite
def points(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values on a coarse grid, so that ties and equal points are common; noise; violations."""
    n, m = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    grid = st.integers(0, 4).map(float)
    rows = st.lists(st.lists(grid, min_size=m, max_size=m), min_size=n, max_size=n)
    values, noise = np.array(draw(rows)), np.array(draw(rows)) / 2
    violation = np.array(draw(st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0]), min_size=n, max_size=n)))
    return values, noise, violation


def oracle(values: np.ndarray, noise: np.ndarray, violation: np.ndarray, i: int, j: int) -> bool:
    """Applies the definition, one pair at a time."""
    if violation[i] > 0 or violation[j] > 0:
        return bool(violation[i] < violation[j])
    no_worse = all(a <= b for a, b in zip(values[i], values[j], strict=True))
    rows = zip(values[i], values[j], noise[i], noise[j], strict=True)
    return no_worse and any(b - a > (na**2 + nb**2) ** 0.5 for a, b, na, nb in rows)


@given(points())
def test_equals_the_definition_and_has_no_cycle(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    values, noise, violation = drawn
    matrix = dominance(values, noise, violation)
    n = len(values)
    assert matrix.tolist() == [[oracle(values, noise, violation, i, j) for j in range(n)] for i in range(n)]
    assert not matrix.diagonal().any()
    assert not (matrix & matrix.T).any()
    reach = matrix.astype(int)
    for _ in range(n):  # nobody reaches himself over any number of wins
        assert not reach.diagonal().any()
        reach = np.minimum(reach @ matrix, 1)


@given(points())
def test_rank_is_one_above_the_worst_dominator(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    matrix = dominance(*drawn)
    rank = ranks(matrix)
    for j in range(len(rank)):
        dominators = rank[matrix[:, j]]
        assert rank[j] == (dominators.max() + 1 if dominators.size else 0)


@given(points())
def test_preference_never_puts_a_dominated_point_first(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    matrix = dominance(*drawn)
    order = preference(*drawn).tolist()
    assert sorted(order) == list(range(len(order)))
    place = np.argsort(order)
    for i, j in np.argwhere(matrix):
        assert place[i] < place[j]


def test_a_difference_inside_the_noise_is_not_a_win() -> None:
    values, noise = np.array([[0.10], [0.11]]), np.array([[0.01], [0.01]])
    assert not dominance(values, noise).any()  # 0.010 against sqrt(2)·0.010
    assert dominance(values, noise / 2)[0, 1]
    assert dominance(values)[0, 1]


def test_crowding_by_hand() -> None:
    values = np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0], [9.0, 9.0]])
    distance = crowding(values, ranks(dominance(values)))
    assert distance[[0, 3, 4]].tolist() == [np.inf] * 3
    assert distance[1] == pytest.approx(3 / 4 + 3 / 4)
    assert distance[2] == pytest.approx(3 / 4 + 3 / 4)


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ValueError, match="cycle"):
        ranks(np.array([[False, True], [True, False]]))
