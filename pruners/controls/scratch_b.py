"""Control for the inherited weights: as much computing as the dense network had."""

from prunefront.pruners.controls import Rival, Subject, control

CAP = 8
"""Largest number of epochs, as a multiple of the dense network's (own).

The paper caps its ImageNet runs, at other figures.
"""


@control(
    "scratch_b",
    choose="as scratch_e, where the computing that the smaller network saves goes into more epochs",
    paper="Liu et al. 2019, 1810.05270",
)
def scratch_b(subject: Subject) -> Rival:
    """The same architecture, newly initialised, trained for as many MACs as the dense network.

    Epochs are those of the dense network times MACs_dense / MACs_small, rounded, at most `CAP` times as many.
    """
    longer = min(subject.macs_ratio(), CAP)
    return Rival(subject.plan, "fresh", round(subject.dense_epochs * longer))
