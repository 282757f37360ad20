"""Rank correlations against their definitions, one pair at a time."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront.search.promotion.rank_correlation import kendall, signs, somers, spearman

PAIRED = st.lists(st.tuples(*[st.integers(0, 5).map(float)] * 4), min_size=0, max_size=9)


def sign(a: float, b: float, noise_a: float, noise_b: float) -> int:
    return 0 if abs(a - b) <= math.hypot(noise_a, noise_b) else (1 if a > b else -1)


@given(PAIRED)
def test_equal_their_definitions(rows: list[tuple[float, ...]]) -> None:
    x, y, dx, dy = np.array(rows).reshape(-1, 4).T / [[1], [1], [4], [4]]
    pairs = [
        (sign(x[i], x[j], dx[i], dx[j]), sign(y[i], y[j], dy[i], dy[j]))
        for i, j in combinations(range(len(rows)), 2)
    ]
    agree, in_x, in_y = (
        sum(f(a, b) for a, b in pairs) for f in (lambda a, b: a * b, lambda a, b: a * a, lambda a, b: b * b)
    )
    tau, d = kendall(signs(x, dx), signs(y, dy)), somers(signs(x, dx), signs(y, dy))
    assert tau.value == (pytest.approx(agree / math.sqrt(in_x * in_y)) if in_x * in_y else None)
    assert d.value == (pytest.approx(agree / in_x) if in_x else None)
    assert d.pairs == in_x
    assert tau.pairs == sum(a * b != 0 for a, b in pairs)
    reversed_ = kendall(signs(-x, dx), signs(y, dy)).value
    assert reversed_ == (None if tau.value is None else pytest.approx(-tau.value))


def test_the_error_is_the_jackknife_over_trials() -> None:
    x, y = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 3, 5, 4])
    left = [kendall(signs(np.delete(x, i)), signs(np.delete(y, i))).value for i in range(5)]
    expected = math.sqrt(4 / 5 * sum((v - np.mean(left)) ** 2 for v in left))
    assert kendall(signs(x), signs(y)).error == pytest.approx(expected)
    assert somers(signs(x[:2]), signs(y[:2])).error == math.inf
    assert kendall(signs(x), signs(x)).error == 0.0


def test_spearman_takes_mean_ranks_and_is_0_for_a_constant() -> None:
    x, y = np.array([1.0, 2, 2, 4]), np.array([10.0, 40, 20, 30])
    ranks = np.corrcoef([1, 2.5, 2.5, 4], [1, 4, 2, 3])[0, 1]
    assert spearman(x, y) == pytest.approx(ranks)
    assert spearman(x, np.ones(4)) == spearman(np.ones(4), x) == 0.0
