"""One network per family: traced, cut at random, equal to the masked one, trained a step, saved, loaded, exported."""

from pathlib import Path

import pytest

from tests.corpus.chain import chain
from tests.corpus.networks import FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    outcome = chain(family.make, tmp_path, onnx=family.onnx)
    locked = 1 - outcome.reached
    assert locked <= family.locked, [(f.name, f.reason) for f in outcome.graph.frozen]
    assert family.why or family.locked <= 0.2


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.onnx])
def test_family_as_onnx(name: str, tmp_path: Path) -> None:
    chain(FAMILIES[name].make, tmp_path, onnx=True)
