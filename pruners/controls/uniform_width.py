"""Control for the allocation without any pruning: the width multiplier."""

from prunefront.pruners.allocators import Terms, allocators
from prunefront.pruners.controls import Rival, Subject, control, plan_with_units


@control(
    "uniform_width",
    choose="to compare pruning with a network that is narrower everywhere and trained normally",
    paper="control; Howard et al. 2017, 1704.04861",
)
def uniform_width(subject: Subject) -> Rival:
    """Every group narrower by the same ratio at equal MACs, newly initialised, trained as long as the dense network.

    The first units stay: which ones means nothing to new weights.
    """
    terms = Terms(subject.graph, 1.0 / subject.macs_ratio(), subject.keeps(), seed=subject.seed)
    kept = {name: tuple(range(count)) for name, count in allocators["uniform"](terms).items()}
    return Rival(plan_with_units(subject.plan, kept), "fresh", subject.dense_epochs)
