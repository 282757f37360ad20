"""Early stopping on Ray Tune: `promotion.halving` as a Tune scheduler, beside whichever searcher."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from prunefront.search.outcomes.measurement import Failure, Measurement, outcome_from_json
from prunefront.search.promotion.halving import Rungs, Verdict

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


class HalvingScheduler(FIFOScheduler):
    """Starts trials in the searcher's order, and stops those that a rung does not let go on.

    All that it knows of objectives, constraints and seed is in its own `rungs`: Tune's single metric plays no part, and
    neither does the searcher, which is told of a stopped trial as Tune tells it of a finished one. A trial that Tune
    starts again after a crash is judged as before.
    """

    # a verdict must come before the next epoch
    _supports_buffered_results = False

    def __init__(
        self,
        rungs: Rungs,
        on_rung: OnRung = lambda reached: None,
        name: Callable[[Trial], str] = lambda trial: str(trial.trial_id),
    ) -> None:
        """on_rung: called once for each trial and rung, before Tune hears the verdict. name: its key in `rungs`."""
        super().__init__()
        self._rungs, self._on_rung, self._name = rungs, on_rung, name

    def __getstate__(self) -> dict[str, Any]:
        """Nothing of ours goes into Tune's own snapshots; see `SearcherAdapter`."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        epoch = result.get(EPOCH)
        if MEASURED not in result or epoch not in self._rungs.levels:
            return str(TrialScheduler.CONTINUE)
        name = self._name(trial)
        verdict = self._rungs.verdict(epoch, name)
        if verdict is None:
            measurement = Measurement.from_json(json.loads(result[MEASURED]))
            verdict = self._rungs.report(epoch, name, measurement)
            seconds = float(result.get("busy_seconds", 0.0))
            self._on_rung(Reached(name, epoch, measurement, verdict, seconds))
        return str(TrialScheduler.CONTINUE if verdict.go_on else TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if OUTCOME not in result:  # stopped
            return
        outcome = outcome_from_json(json.loads(result[OUTCOME]))
        if isinstance(outcome, Failure):
            self._rungs.withdraw(self._name(trial))
        else:
            self._rungs.end(self._name(trial), outcome)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        if not trial.should_recover():
            self._rungs.withdraw(self._name(trial))

    def debug_string(self) -> str:
        return "; ".join(
            f"after {r.level} epochs {r.stopped} of {r.came} stopped" for r in self._rungs.summary()
        )

    def save(self, checkpoint_path: str) -> None:
        """Tune's own snapshots carry nothing of ours: the study's journal does."""
        Path(checkpoint_path).write_text("{}")

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""
