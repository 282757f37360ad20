"""Early stopping on Ray Tune: `judge.Judge` as a Tune scheduler, beside whichever searcher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from prunefront.pipelines.workers.rung_results import Judge


class HalvingScheduler(FIFOScheduler):
    """Starts trials in the searcher's order, and stops those that the judge does not let go on.

    Objectives, constraints and seed are the judge's: Tune's single metric plays no part. Nor does the searcher, which
    hears of a stopped trial as Tune tells it of a finished one.
    """

    # a verdict must come before the next epoch
    _supports_buffered_results = False

    def __init__(
        self, judge: Judge, name: Callable[[Trial], str] = lambda trial: str(trial.trial_id)
    ) -> None:
        """name: returns a trial's key in the judge's rungs."""
        super().__init__()  # type: ignore[no-untyped-call]  # Tune leaves it untyped
        self._judge, self._name = judge, name

    def __getstate__(self) -> dict[str, Any]:
        """Returns nothing: what is ours stays out of Tune's own snapshots; see `trials.SearcherAdapter`."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        go_on = self._judge.goes_on(self._name(trial), result)
        return str(TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._judge.ended(self._name(trial), result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        if not trial.should_recover():  # type: ignore[no-untyped-call]  # Tune leaves it untyped
            self._judge.rungs.withdraw(self._name(trial))

    def debug_string(self) -> str:
        return "; ".join(
            f"after {r.level} epochs {r.stopped} of {r.came} stopped" for r in self._judge.rungs.summary()
        )

    def save(self, checkpoint_path: str) -> None:
        """Writes nothing of ours into Tune's own snapshot: the study's journal has it."""
        Path(checkpoint_path).write_text("{}")

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing; see `save`."""
