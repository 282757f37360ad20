"""Calibration batches: augmented training samples that statistics and batch norms are estimated on."""

import itertools

import numpy as np
from torch import nn

from prunefront.pipelines.data.samples import DataSet, laid_out_inputs, positional
from prunefront.pipelines.measure.quality import targets_of
from prunefront.pipelines.tasks import Task
from prunefront.pruners.statistics import Batch


def calibration_batches(
    dense: nn.Module,
    task: Task,
    data: DataSet,
    rng: np.random.Generator,
    *,
    images: int,
    size: int,
    device: str,
    channels_last: bool = False,
    smallest: int = 1,
) -> list[Batch]:
    """Returns augmented training samples, at least so many, as statistics and recalibration take them.

    The targets of a task without labels are the dense network's outputs.
    """
    stream = data.part("calibration").batches(size, rng=rng, device=device, smallest=smallest)
    return [
        (
            positional(dense, inputs),
            targets_of(task, batch.targets, dense, inputs.call),
        )
        for batch in itertools.islice(stream, -(-images // size))
        for inputs in [laid_out_inputs(batch.inputs, channels_last)]
    ]
