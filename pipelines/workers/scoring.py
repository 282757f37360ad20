"""One worker that scores candidates: made once, used many times, wherever it runs."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.formats.weights import pack_weights
from prunefront.pipelines.measure.time_limit import TimedOut, time_limit
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.failures import failure
from prunefront.pipelines.workers.inheritance import Inheritance, Parent
from prunefront.pipelines.workers.workbench import Workbench
from prunefront.pruners.cut.inherit import can_hand_on
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.search.outcomes.measurement import Failure, Outcome


@dataclass(frozen=True, slots=True)
class Scored:
    """A worker's result for a candidate.

    weights: safetensors that others may start from. refused: why it did not start from its parent's; "" = it did, or
    there were none.
    """

    outcome: Outcome
    seconds: float
    weights: bytes | None = None
    refused: str = ""


def hand_on(inheritance: Inheritance | None, name: str, scored: Scored) -> None:
    """Keeps the weights of a scored candidate for those that start from it, and notes why it did not start from one."""
    if inheritance is None:
        return
    if scored.refused:
        inheritance.refuse(name, scored.refused)
    if scored.weights is not None:
        inheritance.write(name, scored.weights)


class ScoringWorker:
    """One process; made once, scores many candidates."""

    def __init__(self, bench: Workbench, threads: int) -> None:
        torch.set_num_threads(threads)
        self._broken: Failure | None = None
        try:
            self._evaluator = Evaluator(bench)
        except Exception as error:  # noqa: BLE001 - Ray would only say that an actor died; so the reason is recorded
            self._broken = failure(error)

    def score(self, plan: PruningPlan, parent: Parent | None = None) -> Scored:
        """Returns the outcome and how many seconds it took. What goes wrong with a candidate is an outcome, too.

        parent: what it is trained from, where candidates are trained at all; None = the dense network.
        """
        if self._broken is not None:
            return Scored(self._broken, 0.0)
        start = time.perf_counter()
        weights, refused = None, ""
        try:
            with time_limit(self._evaluator.bench.score_seconds, "scoring"):
                if self._evaluator.bench.train_images:
                    heir, refused = self._heir(parent)
                    measured, model = self._evaluator.score_trained(plan, heir)
                    weights = pack_weights(model) if can_hand_on(plan) else None
                    outcome: Outcome = measured
                else:
                    outcome = self._evaluator.score(plan)
        except (Exception, TimedOut) as error:  # noqa: BLE001 - whatever a candidate raises is recorded, and the search continues
            weights, outcome = None, failure(error)
        return Scored(outcome, time.perf_counter() - start, weights, refused)

    def _heir(self, parent: Parent | None) -> tuple[nn.Module | None, str]:
        """Returns what to train from, None = the dense network; and why not from the parent's weights."""
        if parent is None:
            return None, ""
        try:
            return self._evaluator.heir(parent), ""
        except PrunefrontError as error:
            return None, str(error)
