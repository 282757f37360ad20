"""One network per family: traced, cut, equal to the masked one, trained a step, saved, loaded; ONNX in `make long`."""

from pathlib import Path

import pytest

from tests.corpus.chain import chain
from tests.corpus.networks import FAMILIES


def family(name: str) -> object:
    """Returns a parameter of a test, which CI leaves out where the network is too large for it."""
    return pytest.param(name, marks=pytest.mark.long) if FAMILIES[name].long else name


@pytest.mark.parametrize("name", [family(name) for name in FAMILIES])
def test_family(name: str, tmp_path: Path) -> None:
    it = FAMILIES[name]
    outcome = chain(it.make, tmp_path, onnx=False)
    assert 1 - outcome.reached <= it.locked, [(f.name, f.reason) for f in outcome.graph.frozen]
    assert it.why or it.locked <= 0.2


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_family_as_onnx(name: str, tmp_path: Path) -> None:
    chain(FAMILIES[name].make, tmp_path, onnx=True)
