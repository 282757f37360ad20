"""Each fault strikes a whole study: nothing finished is lost or repeated, and the study comes to its end.

    pytest -m faults [-k driver]

A minute or more each, so they are not among what CI runs; `python -m benchmarks.faults` makes a table of the same.
"""

import random

import pytest

from tests.faults.study import strike
from tests.faults.table import FAULTS

STRIKES = {"stopped": 2, "worker": 2, "mlflow-driver": 2}
"""How often, where once does not show it."""


@pytest.mark.faults
@pytest.mark.parametrize("name", FAULTS)
def test_nothing_finished_is_lost_or_repeated(name: str) -> None:
    fault = FAULTS[name]
    if lacks := fault.needs():
        pytest.skip(lacks)
    row = strike(name, fault, STRIKES.get(name, 1), random.Random(0))
    assert (row.lost, row.repeated, row.whole) == (0, 0, True), row
