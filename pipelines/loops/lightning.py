"""The loop of a network that trains itself as a LightningModule does. Lightning itself is not needed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from prunefront.pipelines.data.samples import Batch, DataSet
from prunefront.pipelines.loops.loop import Budget, LoopError, OnEpoch, loop
from prunefront.pipelines.tasks import Task


@loop("lightning")
def lightning(
    model: nn.Module,
    task: Task,
    *,
    data: DataSet,
    teacher: nn.Module,
    budget: Budget,
    on_epoch: OnEpoch,
    device: torch.device,
) -> None:
    """A network with `training_step(batch, batch_idx)` and `configure_optimizers()`, such as a LightningModule.

    A batch is (input, targets), with a tuple or a dict as input where the network takes several. The network's own loss
    and optimiser count, with their learning rate; other hooks of Lightning are not called.
    """
    module: Any = model
    for name in ("training_step", "configure_optimizers"):
        if not callable(getattr(module, name, None)):
            raise LoopError(
                f"training.loop = 'lightning' needs a network with {name}(), which {type(model).__name__} does not have"
            )
    if not getattr(module, "automatic_optimization", True):
        raise LoopError(f"{type(model).__name__} optimises by hand, which loop 'lightning' cannot follow")
    optimizer, schedulers = _configured(module.configure_optimizers())
    rng, number = np.random.default_rng(budget.seed), 0
    for epoch in range(1, budget.epochs + 1):
        model.train()
        for index, batch in enumerate(
            data.part("train").batches(budget.batch_size, rng=rng, device=device, smallest=2)
        ):
            found = module.training_step(_pair(batch), index)
            if found is None:  # the module skips this batch
                continue
            loss = found["loss"] if isinstance(found, Mapping) else found
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            number += 1
            _advance(schedulers, "step", number)
        _advance(schedulers, "epoch", epoch)
        on_epoch(epoch)


def _pair(batch: Batch) -> tuple[Any, Any]:
    args, kwargs = batch.inputs.args, dict(batch.inputs.kwargs)
    if kwargs and args:
        raise LoopError("loop 'lightning' takes inputs by place or by keyword, and these data have both")
    return kwargs or (args[0] if len(args) == 1 else args), batch.targets


def _configured(found: Any) -> tuple[torch.optim.Optimizer, list[Mapping[str, Any]]]:
    """Returns the optimiser and its schedulers, out of the forms that Lightning documents. Raises LoopError."""
    optimizers, schedulers = found, []
    if isinstance(found, Mapping):
        optimizers, schedulers = (
            found.get("optimizer"),
            [found["lr_scheduler"]] if "lr_scheduler" in found else [],
        )
    elif isinstance(found, Sequence) and len(found) == 2 and isinstance(found[0], Sequence):
        optimizers, schedulers = found[0], list(found[1])
    if isinstance(optimizers, Sequence) and len(optimizers) == 1:
        optimizers = optimizers[0]
    if not isinstance(optimizers, torch.optim.Optimizer):
        raise LoopError(
            f"configure_optimizers returned {type(found).__name__}, out of which loop 'lightning' cannot take one "
            "optimiser; return an optimiser, ([optimiser], [scheduler]) or {'optimizer': …, 'lr_scheduler': …}"
        )
    named = [s if isinstance(s, Mapping) else {"scheduler": s} for s in schedulers]
    for one in named:
        if isinstance(one["scheduler"], torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise LoopError("loop 'lightning' has no metric for ReduceLROnPlateau; choose another scheduler")
    return optimizers, named


def _advance(schedulers: Sequence[Mapping[str, Any]], interval: str, number: int) -> None:
    for one in schedulers:
        if one.get("interval", "epoch") == interval and number % one.get("frequency", 1) == 0:
            one["scheduler"].step()
