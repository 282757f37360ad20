"""Batch-norm statistics of a pruned model, estimated anew."""

from collections.abc import Iterable

import torch
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.statistics import Batch
from prunefront.pruners.units.modes import evaluating

RUNNING = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


def recalibrate(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Replaces the running statistics of the module's norms, *in place*, by their average over the batches.

    Made for the fresh copy that surgery returns. Every batch counts the same. Dropout stays off; weights,
    gradients, training flags and momenta are as before at the end. A model without running statistics
    returns at once and reads no batch. Raises PrunefrontError when there is no batch.

    The images must have been through the *training augmentation*: with plain ones a ResNet-20 on CIFAR-10
    loses 3 points, because its weights were trained for other statistics. 1,024 images are enough.
    """
    norms = [m for m in model.modules() if isinstance(m, RUNNING) and m.running_mean is not None]
    if not norms:
        return
    momenta = {norm: norm.momentum for norm in norms}
    empty = True
    try:
        with evaluating(model), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's word for a cumulative average
                norm.train()
            for inputs, _ in batches:
                model(*inputs) if isinstance(inputs, tuple) else model(inputs)
                empty = False
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
    if empty:
        raise PrunefrontError(
            "batch-norm statistics cannot be estimated from no batch at all: give at least one"
        )
