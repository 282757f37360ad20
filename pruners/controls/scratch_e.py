"""Control for the inherited weights: as many epochs as the dense network had."""

from prunefront.pruners.controls import Rival, Subject, control


@control(
    "scratch_e",
    choose="to isolate the inherited weights from the architecture",
    paper="Liu et al. 2019, 1810.05270",
)
def scratch_e(subject: Subject) -> Rival:
    """The same architecture, newly initialised, trained for as many epochs as the dense network."""
    return Rival(subject.plan, "fresh", subject.dense_epochs)
