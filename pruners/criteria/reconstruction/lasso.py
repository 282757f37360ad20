"""Channel pruning by LASSO (He, Zhang, Sun 2017, 1707.06168)."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.criteria.reconstruction.thinet import gram_scores
from prunefront.pruners.units.view import UnitView

Array = NDArray[np.float64]

STEPS = 50
"""Number of penalties on the path, from the one at which nothing survives down to `LEAST` of it."""

LEAST = 1e-3
"""Smallest penalty on the path, as a share of the largest."""

PASSES = 100
"""Largest number of passes over the coordinates for one penalty; near-equal units converge slowly and gain nothing."""


@criterion(
    "lasso",
    needs={"contribution"},
    choose="few images, no labels; the weights that read the layer are fitted again",
    paper="He et al. 2017, 1707.06168",
    unit="input channel",
    repair="refit",
)
def lasso(view: UnitView) -> Float[Tensor, " units"]:
    """Largest penalty at which the LASSO fit of the next layer's outputs still uses the unit.

    Minimises ‖y − Σ_c β_c z_c‖² / 2m + λ‖β‖₁, z the contributions and y their sum, along a falling λ. The paper
    searches the λ that leaves c' channels. The penalty at which each unit enters gives the same for every c' at once,
    except for channels that leave the path again (own). Ties on the grid go by |β|. Units that never enter follow by
    |z_cᵀ(y − Zβ)| / m at the last λ; for all of them this lies below λ.
    """
    assert view.contribution is not None
    samples = view.contribution.shape[1]
    return gram_scores(view.contribution, lambda gram: _entry_penalties(gram, samples), "amax")


def _entry_penalties(gram: Float[Tensor, "units units"], samples: int) -> Float[Tensor, " units"]:
    second = gram.numpy() / samples
    meets = second.sum(axis=1)
    largest = float(np.abs(meets).max())
    scores = np.zeros(len(meets))
    if largest == 0.0:
        return torch.from_numpy(scores)
    penalties = largest * np.geomspace(1.0, LEAST, STEPS)
    above = penalties[0]
    beta = np.zeros_like(meets)
    for penalty, beta in zip(penalties, path(second, meets, penalties), strict=True):
        new = (beta != 0.0) & (scores == 0.0)
        size = np.abs(beta[new])
        scores[new] = penalty + (above - penalty) * size / (1.0 + size)
        above = penalty
    never = scores == 0.0
    scores[never] = np.minimum(np.abs(meets - second @ beta)[never], penalties[-1])
    return torch.from_numpy(scores)


def path(second: Array, meets: Array, penalties: Iterable[float]) -> Iterator[Array]:
    """Yields β = argmin ½βᵀAβ − bᵀβ + λ‖β‖₁ for each falling λ in turn, by coordinate descent with a warm start.

    second: A = ZᵀZ/m, [units, units]. meets: b = Zᵀy/m. Only coordinates that are, or must become, other than zero are
    visited.
    """
    beta = np.zeros_like(meets)
    slope = meets.copy()  # b − Aβ
    scale = second.diagonal().copy()
    precise = 1e-10 * float(np.abs(meets).max())
    for penalty in penalties:
        for _ in range(PASSES):
            moved = 0.0
            for c in np.flatnonzero(((beta != 0.0) | (np.abs(slope) > penalty)) & (scale > 0.0)):
                before = slope[c] + scale[c] * beta[c]
                after = np.sign(before) * max(abs(before) - penalty, 0.0) / scale[c]
                change = after - beta[c]
                if change:
                    beta[c] = after
                    slope -= second[:, c] * change
                    moved = max(moved, abs(change) * scale[c])
            if moved <= precise:
                break
        yield beta.copy()
