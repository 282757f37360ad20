"""Candidates as JSON, one by one and many together."""

import json
from dataclasses import replace

import numpy as np
import pytest

from prunefront.choice import pattern
from prunefront.search.space.candidate import Candidate, pack, unpack
from tests.problems import planted


def test_packed_candidates_come_back_the_same() -> None:
    """Candidates with patterns and without are packed together."""
    space = planted(groups=3, units=8).problem.space
    rng = np.random.default_rng(0)
    candidates = []
    for number in range(300):
        candidate = space.sample(rng, f"origin {number % 3}")
        if number % 2:
            chosen = space.groups[0].choose(3, pattern=pattern([0, 1 + number % 7, 2]))
            candidate = replace(candidate, choices={**candidate.choices, "g0": chosen})
        candidates.append(candidate)
    text = json.dumps(pack(candidates))
    assert unpack(json.loads(text)) == candidates
    assert len(text) < len(json.dumps([c.to_json() for c in candidates])) / 3


def test_only_candidates_of_the_same_groups_are_packed_together() -> None:
    one, two = (planted(groups=n).problem.space.dense() for n in (2, 3))
    with pytest.raises(ValueError, match="of the same groups"):
        pack([one, two])
    assert unpack(pack([])) == []
    assert unpack(pack([Candidate({})])) == [Candidate({})]
