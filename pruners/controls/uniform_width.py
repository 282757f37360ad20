"""Is the allocation worth anything, with no pruning at all? The width multiplier."""

from prunefront.pruners.allocators import Terms, allocators
from prunefront.pruners.controls import Rival, Subject, control, keeping


@control(
    "uniform_width",
    choose="whether pruning beats a network that is narrower everywhere, trained normally",
    paper="control; Howard et al. 2017, 1704.04861",
)
def uniform_width(subject: Subject) -> Rival:
    """Every group narrower by the same ratio at equal MACs, newly initialised, trained as long as the dense network.

    Which units stay means nothing to new weights: the first do.
    """
    terms = Terms(subject.graph, 1.0 / subject.macs_ratio(), subject.keeps(), seed=subject.seed)
    kept = {name: tuple(range(count)) for name, count in allocators["uniform"](terms).items()}
    return Rival(keeping(subject.plan, kept), "fresh", subject.dense_epochs)
