"""Trials compared at rungs: who goes on, whatever trains them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prunefront.search.outcomes.measurement import Failure, Measurement, outcome_from_json
from prunefront.search.promotion.halving import Rungs, Verdict
from prunefront.strict_json import loads

EPOCH = "epoch"
"""Key of a result: how many epochs the trial has trained."""


MEASURED = "measured"
"""Key of a result between epochs: the trial's Measurement as JSON text; absent where it is not to be compared yet."""


OUTCOME = "outcome"
"""Key of a trial's last result: its Outcome as JSON text."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A trial came to a rung. seconds: what it has cost its worker so far."""

    name: str
    epoch: int
    measurement: Measurement
    verdict: Verdict
    seconds: float


OnRung = Callable[[Reached], None]


class Judge:
    """Compares trials at rungs, and says after each result whether the trial goes on.

    A trial that is started again after a crash is judged as before.
    """

    def __init__(self, rungs: Rungs, on_rung: OnRung) -> None:
        """on_rung: called once for each trial and rung, before the verdict is acted on."""
        self.rungs, self._on_rung = rungs, on_rung

    def goes_on(self, name: str, result: Mapping[str, Any]) -> bool:
        """Returns False where the trial is to stop. result: of an epoch, as `trial.Trial.step` returns it."""
        epoch = result.get(EPOCH)
        if MEASURED not in result or epoch not in self.rungs.levels:
            return True
        verdict = self.rungs.verdict(epoch, name)
        if verdict is None:
            measurement = Measurement.from_json(loads(result[MEASURED]))
            verdict = self.rungs.report(epoch, name, measurement)
            seconds = float(result.get("busy_seconds", 0.0))
            self._on_rung(Reached(name, epoch, measurement, verdict, seconds))
        return verdict.go_on

    def ended(self, name: str, result: Mapping[str, Any]) -> None:
        """Notes a trial's last result; that of a stopped trial has no outcome and changes nothing."""
        if OUTCOME not in result:
            return
        outcome = outcome_from_json(loads(result[OUTCOME]))
        if isinstance(outcome, Failure):
            self.rungs.withdraw(name)
        else:
            self.rungs.end(name, outcome)
