"""The rule for a search that no longer gains, and the cases in which it must not apply."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront.search.outcomes.stall import recent_gain, stalled

VOLUMES = st.lists(st.floats(0.0, 1e-2), max_size=30).map(
    lambda steps: [sum(steps[: i + 1]) for i in range(len(steps))]
)


def test_the_gain_is_that_of_the_last_ones() -> None:
    volumes = [0.0, 0.2, 0.4, 0.4, 0.5]
    assert recent_gain(volumes, 2) == pytest.approx(0.2)
    assert recent_gain(volumes, 4) == pytest.approx(1.0)
    assert recent_gain(volumes, 5) is None
    assert stalled([*volumes, 0.5, 0.5], 2, 0.001)
    assert not stalled(volumes, 2, 0.19)
    with pytest.raises(ValueError, match="1 or more"):
        recent_gain(volumes, 0)


@given(VOLUMES, st.integers(1, 12), st.floats(1e-6, 0.5))
def test_it_never_ends_what_has_found_nothing_or_has_only_begun(
    volumes: list[float], patience: int, least: float
) -> None:
    if len(volumes) <= patience or volumes[-1] == 0:
        assert not stalled(volumes, patience, least)
    elif stalled(volumes, patience, least):
        assert volumes[-1] - volumes[-1 - patience] < least * volumes[-1]
        assert stalled(
            [*volumes, *[volumes[-1]] * patience], patience, least
        )  # nor does more of nothing revive it


@given(VOLUMES, st.integers(1, 12))
def test_a_jump_goes_on_for_as_long_as_is_asked(volumes: list[float], patience: int) -> None:
    found = [*volumes, 2 * (volumes[-1] if volumes else 0.0) + 1.0]
    assert not any(stalled([*found, *[found[-1]] * n], patience, 0.4) for n in range(patience))
