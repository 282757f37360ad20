"""A training loop that is not ours: what it is given, and what it owes."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.imported import import_callable
from prunefront.pipelines.data.samples import DataSet
from prunefront.pipelines.tasks import Task
from prunefront.registry import Registry, summary_of


class LoopError(PrunefrontError):
    """A training loop breaks its promise, or does not go with the network."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Size of a training, and what [training] says of it.

    epochs: passes over the training data. samples: in a pass. batch_size: samples a step. seed: for the order of the
    data; the global generators of Python, numpy and torch are seeded by it already. distill, temperature: weight and
    softness of the teacher's outputs, for loops that use them.
    """

    epochs: int
    samples: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    distill: float
    temperature: float
    seed: int


OnEpoch = Callable[[int], Mapping[str, float]]
"""Callback to make at the end of each epoch, with its number from 1; it returns the task's metrics on validation data.

It raises `TrainingStopped` where the training shall end.
"""


class TrainingStopped(BaseException):
    """The training is no longer wanted; a loop lets it through. No `Exception`, so that none is caught by mistake."""


class Loop(Protocol):
    """A training loop: trains a network in place, within a budget."""

    def __call__(
        self,
        model: nn.Module,
        task: Task,
        *,
        data: DataSet,
        teacher: nn.Module,
        budget: Budget,
        on_epoch: OnEpoch,
        device: torch.device,
    ) -> None:
        """model: the pruned network, on the device, changed in place: its values, never its shapes.

        data: training and validation parts, no test. teacher: a copy of the dense network in eval mode. on_epoch: to be
        called after each epoch, `budget.epochs` times at the most. A loop that has an argument `checkpoint` is given a
        `checkpoint.Checkpoint` there.
        """
        ...


CHECKPOINT = "checkpoint"
"""Name of the argument for which a loop gets a `checkpoint.Checkpoint`."""


def takes_checkpoint(loop: Callable[..., None]) -> bool:
    """Tells whether a loop can go on where it was broken off."""
    return CHECKPOINT in inspect.signature(loop).parameters


loops: Registry[Callable[..., None]] = Registry("loop", own=True)


def loop(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that registers a loop. Raises ValueError for a name already taken, or without a docstring."""

    def add(made: Callable[..., None]) -> Callable[..., None]:
        summary_of(made, "loop", name)
        return loops.register(name)(made)

    return add


def make_loop(name: str, options: Mapping[str, Any]) -> Loop:
    """Returns the loop of a name or `module:callable`, with its options.

    Raises PrunefrontError where there is none, or it takes other arguments.
    """
    found = import_callable(name, key="training.loop") if ":" in name else loops[name]
    given = dict.fromkeys(("data", "teacher", "budget", "on_epoch", "device"))
    if takes_checkpoint(found):
        given[CHECKPOINT] = None
    try:
        inspect.signature(found).bind(None, None, **given, **options)
    except TypeError as error:
        asked = "".join(f", {key}={value!r}" for key, value in options.items())
        raise LoopError(
            f"training.loop = {name!r} cannot be called as loop(model, task, *, {', '.join(given)}{asked}): {error}"
        ) from None
    made: Loop = partial(found, **options)
    return made
