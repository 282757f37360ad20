"""Runs that show sizes alone: on numbers as long as the numbers that a network looks at are the same after a cut."""

import pytest
import torch
from torch import Tensor, nn

from prunefront.pruners.trace.arguments import Inputs
from prunefront.pruners.trace.fake import SizesNetwork, ValuesDecide


class Looking(nn.Module):
    """what: the tensor that Python looks at, the input or what is made of it."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        made = self.first(x)
        if self.what == "mask":
            return self.second(made)[made.sum(1) > made.sum(1).median()]
        seen = {"input": x, "made": made, "nothing": None}[self.what]
        return self.second(made) if seen is None or float(seen.sum()) != 0.5 else made


@pytest.mark.parametrize(
    ("what", "on_numbers"), [("nothing", True), ("input", True), ("made", False), ("mask", True)]
)
def test_numbers_that_a_cut_changes_are_not_looked_at(what: str, on_numbers: bool) -> None:
    torch.manual_seed(0)
    network = SizesNetwork(Looking(what), Inputs.of(torch.randn(6, 4), None), values=True)
    sizes = {"first.weight": (7, 4), "first.bias": (7,), "second.weight": (3, 7)}
    going = {"first.weight": {0: [2]}, "first.bias": {0: [2]}, "second.weight": {1: [2]}}
    if on_numbers:
        assert network.cut(sizes, going).outputs == ((3 if what == "mask" else 6, 3),)
        del going["second.weight"]
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            network.cut(sizes, going)
        assert network.values
    else:
        with pytest.raises(ValuesDecide):
            network.cut(sizes, going)
        assert not network.values
