"""Are the inherited weights worth anything? As many epochs as the dense network had."""

from prunefront.pruners.controls import Rival, Subject, control


@control(
    "scratch_e",
    choose="whether the weights that were kept matter, or the architecture alone",
    paper="Liu et al. 2019, 1810.05270",
)
def scratch_e(subject: Subject) -> Rival:
    """The same architecture, newly initialised, trained for as many epochs as the dense network."""
    return Rival(subject.plan, "fresh", subject.dense_epochs)
