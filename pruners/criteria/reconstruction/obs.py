"""Optimal Brain Surgeon over whole units (Hassibi and Stork 1993; Frantar and Alistarh 2022, 2208.11580)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "obs",
    needs={"removal_error"},
    choose="images at hand, no labels: the first choice wherever what is left is fitted again by moments",
    paper="Hassibi and Stork 1993; Frantar and Alistarh 2022, 2208.11580",
    unit="input channel",
)
def obs(view: UnitView) -> Float[Tensor, " units"]:
    """Share of the next layers' outputs that is lost once the unit goes, the rest refitted (OBS).

    Units go greedily, in the order of this score, so every count has its units; sorted scores are the error curve.
    """
    assert view.removal_error is not None
    return view.removal_error
