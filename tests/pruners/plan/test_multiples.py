"""Multiples of channel counts by patterns of group names: which pattern counts, and what is refused."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront.choice import GroupChoice
from prunefront.errors import PrunefrontError
from prunefront.pruners.plan.decide import keep_counts, nearest_keep_count, plan
from prunefront.pruners.plan.multiples import check_multiples, multiple_of
from tests.pruners.plan.test_decide import graph_of, group_of


@pytest.mark.parametrize(
    ("table", "group", "multiple"),
    [
        ({"*": 8}, "layer1.0", 8),
        ({"*": 8, "head*": 1}, "head.fc", 1),
        ({"*": 8, "head*": 1}, "layer1.0", 8),
        ({"layer*": 4, "layer1.*": 16, "layer1.0": 3}, "layer1.0", 3),
        ({"layer*": 4, "layer1.*": 16, "layer1.0": 3}, "layer1.1", 16),
        ({"*.conv1": 4}, "layer1.1", 1),
        ({"layer[12].*": 4, "layer*": 8}, "layer2.0", 4),
        ({"layer*": 4, "*conv1": 4}, "layer1.conv1", 4),
    ],
)
def test_the_most_specific_pattern_counts_in_any_order(
    table: dict[str, int], group: str, multiple: int
) -> None:
    for order in itertools.permutations(table.items()):
        assert multiple_of(group, dict(order)) == multiple


def test_what_fits_no_group_or_two_alike_is_refused() -> None:
    with pytest.raises(PrunefrontError, match=r"'haed\*', which fits no .*there are: stem, head"):
        check_multiples({"*": 8, "haed*": 1}, ["stem", "head"])
    with pytest.raises(PrunefrontError, match=r"'ab\*' = 4 and '\*bc' = 8 fit group 'abc' equally well"):
        check_multiples({"ab*": 4, "*bc": 8}, ["abc"])
    check_multiples({"*": 8, "st*": 1}, ["stem", "head"])
    check_multiples(8, [])


@given(units=st.integers(1, 40), ratio=st.floats(0.0, 0.9), mine=st.integers(1, 9), others=st.integers(1, 9))
def test_a_table_is_for_each_group_what_its_number_is(
    units: int, ratio: float, mine: int, others: int
) -> None:
    group, table = group_of(units), {"*": others, "g": mine}
    assert keep_counts(group, 0.9, table) == keep_counts(group, 0.9, mine)
    if mine > 1:
        assert nearest_keep_count(group, ratio, table) == nearest_keep_count(group, ratio, mine)
        asked = {"g": GroupChoice("l1", ratio)}
        scores = {"l1": {"g": np.arange(units * 1.0)}}
        assert plan(graph_of(group), asked, scores, round_to=table) == plan(
            graph_of(group), asked, scores, round_to=mine
        )
