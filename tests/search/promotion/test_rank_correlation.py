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
def test_somers_equals_its_definition(rows: list[tuple[float, ...]]) -> None:
    x, y, dx, dy = np.array(rows).reshape(-1, 4).T / [[1], [1], [4], [4]]
    pairs = [
        (sign(x[i], x[j], dx[i], dx[j]), sign(y[i], y[j], dy[i], dy[j]))
        for i, j in combinations(range(len(rows)), 2)
    ]
    agree, untied = sum(a * b for a, b in pairs), sum(a * a for a, _ in pairs)
    d = somers(signs(x, dx), signs(y, dy))
    assert d.value == (pytest.approx(agree / untied) if untied else None)
    assert d.pairs == untied


@given(PAIRED)
def test_kendall_is_none_where_one_does_not_vary(rows: list[tuple[float, ...]]) -> None:
    x, y, *_ = np.array(rows).reshape(-1, 4).T
    tau, varies = kendall(x, y), len({*x}) > 1 and len({*y}) > 1
    assert tau == (pytest.approx(-(kendall(-x, y) or 0.0)) if varies else None)
    assert kendall(x, x) == (pytest.approx(1.0) if len({*x}) > 1 else None)


def test_the_error_is_the_jackknife_over_trials() -> None:
    x, y = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 3, 5, 4])
    left = [somers(signs(np.delete(x, i)), signs(np.delete(y, i))).value for i in range(5)]
    expected = math.sqrt(4 / 5 * sum((v - np.mean(left)) ** 2 for v in left))
    assert somers(signs(x), signs(y)).error == pytest.approx(expected)
    assert somers(signs(x[:2]), signs(y[:2])).error == math.inf
    assert somers(signs(x), signs(x)).error == 0.0


def test_spearman_takes_mean_ranks_and_is_0_for_a_constant() -> None:
    x, y = np.array([1.0, 2, 2, 4]), np.array([10.0, 40, 20, 30])
    ranks = np.corrcoef([1, 2.5, 2.5, 4], [1, 4, 2, 3])[0, 1]
    assert spearman(x, y) == pytest.approx(ranks)
    assert spearman(x, np.ones(4)) == spearman(np.ones(4), x) == 0.0
