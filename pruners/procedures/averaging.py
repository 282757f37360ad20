"""Exponential moving average of the weights, kept as state of the optimiser, so that cuts and snapshots carry it on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

AVERAGE = "average"
"""Key of a parameter's average in the optimiser's state."""


def keep_average(optimizer: Optimizer, decay: float) -> None:
    """Makes the optimiser average the weights after each step: average ← decay·average + (1 - decay)·weights.

    The average begins as the weights after the first step. decay: in (0, 1).
    """
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    @torch.no_grad()
    def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        averages, weights = [], []
        for group in optimizer.param_groups:
            for weight in group["params"]:
                state = optimizer.state.get(weight)
                if not state:  # it takes no gradient
                    continue
                if AVERAGE in state:
                    averages.append(state[AVERAGE])
                    weights.append(weight)
                else:
                    state[AVERAGE] = weight.detach().clone()
        if weights:
            update(averages, weights, 0)

    optimizer.register_step_post_hook(after_step)


@torch.no_grad()
def put_average(optimizer: Optimizer) -> list[tuple[Tensor, Tensor]]:
    """Gives the parameters their averages, where there are such; returns (parameter, weights before) of each."""
    before = []
    for group in optimizer.param_groups:
        for weight in group["params"]:
            average = optimizer.state.get(weight, {}).get(AVERAGE)
            if average is not None:
                before.append((weight, weight.detach().clone()))
                weight.copy_(average)
    return before


@contextmanager
def averaged(optimizer: Optimizer) -> Iterator[None]:
    """Gives the parameters their averages, where there are such, until it is left."""
    before = put_average(optimizer)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in before:
                weight.copy_(value)
