"""The control of every criterion: a random order."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView

SEED = b"prunefront"


@criterion(
    "random",
    needs={"weight"},
    choose="only to learn what the others are worth",
    paper="control",
    unit="any",
)
def random(view: UnitView) -> Float[Tensor, " units"]:
    """Uniform in [0, 1) from a hash of the unit's weights: the same network always gives the same order."""
    digests = [
        hashlib.blake2b(row.tobytes(), digest_size=6, key=SEED).digest() for row in view.weight.numpy()
    ]
    return torch.tensor([int.from_bytes(d, "big") / 2**48 for d in digests], dtype=torch.float64)
