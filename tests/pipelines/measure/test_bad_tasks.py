"""Tasks that break their word are refused in one line: metrics, notes and losses."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from prunefront.pipelines.measure.quality import judged, scored
from prunefront.pipelines.tasks import Estimate, Task, TaskError
from prunefront.pipelines.workers.train import scalar
from prunefront.search.outcomes.measurement import Metric, NotFinite


class Off(Task):
    """Judges by the mean distance, called `off`."""

    metrics = (Metric("off", "min", scale="positive"),)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return (outputs - targets).square().mean()

    def judge(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        return {"off": (outputs - targets).abs().flatten(1).mean(1)}


def notes(*, name: str = "off", value: float = 1.0) -> Mapping[str, Tensor]:
    return {name: torch.full((4,), value)}


def test_what_keeps_its_word_is_scored() -> None:
    task, outputs = Off(), torch.arange(8.0).reshape(4, 2)
    assert scored(task, [judged(task, outputs, outputs + 2, 4)])["off"].value == 2.0


def test_a_metric_that_is_not_returned() -> None:
    class Silent(Off):
        def score(self, judged: Mapping[str, Tensor]) -> Mapping[str, Estimate]:
            return {}

    with pytest.raises(TaskError, match="score of Silent returned no 'off', which is among its metrics"):
        scored(Silent(), [notes()])


def test_a_metric_that_nothing_is_noted_for() -> None:
    with pytest.raises(
        TaskError, match="judge of Off noted no 'off', which is among its metrics; it noted away"
    ):
        scored(Off(), [notes(name="away")])


def test_a_metric_of_another_name_on_the_second_call() -> None:
    with pytest.raises(TaskError, match="noted off of one batch and away of a later one"):
        scored(Off(), [notes(), notes(name="away")])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number(value: float) -> None:
    with pytest.raises(NotFinite, match=r"Off, off: .*4 of 4 samples are not"):
        scored(Off(), [notes(value=value)])


def test_notes_that_are_not_one_a_sample() -> None:
    with pytest.raises(TaskError, match="the first axis counts samples"):
        judged(Off(), torch.zeros(4, 2), torch.zeros(4, 2), 5)


@pytest.mark.parametrize("loss", [torch.zeros(3), 0.5, None])
def test_a_loss_that_is_no_scalar(loss: object) -> None:
    with pytest.raises(TaskError, match=r"the loss of Off came .*; it must be a scalar tensor"):
        scalar(Off(), loss)
