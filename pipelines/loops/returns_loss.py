"""The loop of a network that returns its loss where it is given labels, as those of `transformers` do."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunefront.pipelines.data.samples import DataSet
from prunefront.pipelines.loops.checkpoint import Checkpoint
from prunefront.pipelines.loops.loop import Budget, LoopError, OnEpoch, loop
from prunefront.pipelines.tasks import Task


@loop("returns_loss")
def returns_loss(
    model: nn.Module,
    task: Task,
    *,
    data: DataSet,
    teacher: nn.Module,
    budget: Budget,
    on_epoch: OnEpoch,
    device: torch.device,
    checkpoint: Checkpoint,
    labels: str = "labels",
    max_grad_norm: float = 1.0,
) -> None:
    """A network that returns its loss when it is called with labels, as those of `transformers` do.

    AdamW at training.learning_rate, which falls to zero as a line, and gradients clipped to max_grad_norm. labels: name
    of the argument. The loss is `output.loss`, `output["loss"]`, or the first of a tuple.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=budget.learning_rate, weight_decay=budget.weight_decay
    )
    seen, total = 0, budget.epochs * budget.samples
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1.0 - seen / total))
    rng, first = np.random.default_rng(budget.seed), 1
    if (state := checkpoint.load()) is not None:
        first, seen, rng.bit_generator.state = state["epoch"] + 1, state["seen"], state["rng"]
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
    for epoch in range(first, budget.epochs + 1):
        model.train()
        for batch in data.part("train").batches(budget.batch_size, rng=rng, device=device, smallest=2):
            optimizer.zero_grad()
            given = {**batch.inputs.kwargs, labels: batch.targets}
            _loss(model(*batch.inputs.args, **given), labels).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
            optimizer.step()
            seen += batch.count
            scheduler.step()
        checkpoint.save(
            {
                "epoch": epoch,
                "seen": seen,
                "rng": rng.bit_generator.state,
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
            }
        )
        on_epoch(epoch)


def _loss(output: Any, labels: str) -> Tensor:
    found = output
    if isinstance(output, Mapping):
        found = output.get("loss")
    elif isinstance(output, tuple) and output:
        found = output[0]
    elif hasattr(output, "loss"):
        found = output.loss
    if not isinstance(found, Tensor) or found.ndim:
        raise LoopError(
            f"loop 'returns_loss' called the network with {labels}=…, and its {type(output).__name__} holds no scalar "
            "loss"
        )
    return found
