"""Batch-norm statistics of a pruned model, estimated again."""

from collections.abc import Iterable

import torch
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.statistics import Batch
from prunefront.pruners.units.eval_mode import eval_mode

NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
"""Norms that may have running statistics."""


def recalibrate(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Replaces the running statistics of the module's norms, *in place*, by their average over the batches.

    It is meant for the new copy that surgery returns. Every batch counts the same. Dropout stays off. Weights,
    gradients, training flags and momenta stay as they are. A model without running statistics returns at once and
    reads no batch. Raises PrunefrontError if there is no batch.

    The images must have been through the *training augmentation*: with plain ones a ResNet-20 on CIFAR-10 loses 3
    points, because its weights were trained for other statistics. 1,024 images are enough.
    """
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.running_mean is not None]
    if not norms:
        return
    momenta = {norm: norm.momentum for norm in norms}
    empty = True
    with eval_mode(model), torch.no_grad():
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # asks torch for a cumulative average
                norm.train()
            for inputs, _ in batches:
                model(*inputs) if isinstance(inputs, tuple) else model(inputs)
                empty = False
        finally:
            for norm, momentum in momenta.items():
                norm.momentum = momentum
    if empty:
        raise PrunefrontError("batch-norm statistics cannot be estimated without a batch: give at least one")
