"""Rounds of pruning small weights and retraining the others (Han et al. 2015, 1506.02626)."""

from collections.abc import Callable, Iterator, Mapping

from prunefront.errors import PrunefrontError
from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.masking import MaskedWeights, recalibrate_norms
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.units.masks import (
    FLOOR,
    Masks,
    Tensors,
    erk_counts,
    keep_largest,
    largest,
    magnitudes,
    relative_magnitudes,
    weights,
)

THRESHOLDS: Mapping[str, Callable[[Tensors, float], Masks]] = {
    "network": lambda held, density: keep_largest(magnitudes(held), density, floor=FLOOR),
    "std": lambda held, density: keep_largest(relative_magnitudes(held), density, floor=FLOOR),
    "erk": lambda held, density: {
        name: largest(held[name].detach().abs(), count) for name, count in erk_counts(held, density).items()
    },
}
"""Map from name to a function that returns the masks of a density.

network: |w| below one quantile of all. std: |w| < q · σ of the layer, the paper's, with one q for all layers, which
leaves them about equally dense. erk: |w| below each layer's own quantile, small layers denser.
"""


@procedure(
    "magnitude",
    over="weights",
    choose="single weights: simple, and strong with a few rounds; zeros save storage, not time",
    paper="Han et al. 2015, 1506.02626",
)
def magnitude(run: Run, density: float = 0.5, rounds: int = 3, threshold: str = "network") -> Iterator[Phase]:
    """Cuts to the plan, then drops small weights in rounds of retraining.

    density: share of the weights that are not zero in the end. threshold: the meaning of small, see `THRESHOLDS`.
    Trains once without masks, then after each of the `rounds`, at densities density^(t/rounds), for equally many steps.
    The recipe's own learning rate and L2 penalty go on. Own: the paper retrains 10 to 100 times slower than it trains,
    and a recipe for trained networks is that slow already. No layer is emptied, see `FLOOR`. Zeros are stored as they
    are.
    """
    if threshold not in THRESHOLDS:
        raise PrunefrontError(
            f"no threshold of procedure 'magnitude' is called {threshold!r}; known: {', '.join(THRESHOLDS)}"
        )
    if rounds < 1:
        raise PrunefrontError(f"procedure 'magnitude' needs at least 1 round, not {rounds}")
    run.cut()
    held = weights(run.model, run.graph)
    ends = [run.steps_left * (t + 1) // (rounds + 1) for t in range(rounds + 1)]
    yield Phase(ends[0])
    for t in range(1, rounds + 1):
        # weights already masked are zero, hence the smallest: they do not come back
        kept = density if t == rounds else density ** (t / rounds)
        masks = THRESHOLDS[threshold](held, kept)
        hook = MaskedWeights(held, masks)
        if not run.steps_left:
            recalibrate_norms(run)
        yield Phase(ends[t] - ends[t - 1], hooks=(hook,))
