"""Control for the kept units' first weights (Frankle and Carbin 2019, 1803.03635)."""

from prunefront.pruners.controls import Rival, Subject, control


@control(
    "lottery_ticket",
    choose="to isolate the luck of the kept units' first weights; needs the initial weights",
    paper="Frankle and Carbin 2019, 1803.03635",
)
def lottery_ticket(subject: Subject) -> Rival:
    """The same units with the dense network's initial weights, trained for as many epochs as it was."""
    return Rival(subject.plan, "initial", subject.dense_epochs)
