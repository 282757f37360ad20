"""A task: what the loss is, and how a network is judged. Whoever has another one writes a subclass of `Task`."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pipelines.tasks.estimate import Estimate, mean
from prunefront.registry import Registry, summary_of
from prunefront.search.outcomes.measurement import Metric
from prunefront.text import did_you_mean


class TaskError(PrunefrontError):
    """The task and the network or the data do not go together, or the task breaks its promise."""


class Task:
    """The base of every task, with the answers that most of them give.

    A task is made once per process from its name and options, and holds no data. metrics: what a network is judged by;
    the first one is the quality that the search sees. labels: False where the targets of loss and judgement are the
    dense network's outputs, so that the data need no labels. soft_labels: True where `smoothed_loss` is there, and the
    loss of a mixed sample is the mixture of the losses of both labels.
    """

    metrics: tuple[Metric, ...]
    labels: bool = True
    soft_labels: bool = False

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Returns the loss to be minimised, a scalar: the mean over the batch."""
        raise NotImplementedError

    def smoothed_loss(self, outputs: Any, targets: Any, smoothing: float) -> Tensor:
        """Returns `loss` with a share of each label spread over all classes; 0 = the task's own loss."""
        raise NotImplementedError

    def distil(self, outputs: Any, teacher: Any, temperature: float) -> Tensor | None:
        """Returns the loss against the dense network's outputs, a scalar; None where the task has no soft targets."""
        return None

    def judge(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        """Returns what is noted of each sample: tensors whose first axis counts samples.

        Without a `score` of its own, a task notes under each metric's name one number a sample, whose mean is the
        metric.
        """
        raise NotImplementedError

    def score(self, judged: Mapping[str, Tensor]) -> Mapping[str, Estimate]:
        """Returns each metric, with its interval. judged: what `judge` noted of all samples, on the CPU."""
        return {m.name: mean(judged[m.name]) for m in self.metrics}

    @property
    def quality(self) -> Metric:
        """The metric that the search sees."""
        return self.metrics[0]


class TaskOptions:
    """Choices of metrics that several built-in tasks share."""

    KNOWN: ClassVar[tuple[Metric, ...]]

    @classmethod
    def chosen(cls, names: tuple[str, ...] | list[str]) -> tuple[Metric, ...]:
        """Returns the metrics of these names. Raises TaskError for one that there is not, or none."""
        known = {m.name: m for m in cls.KNOWN}
        for name in names:
            if name not in known:
                near = did_you_mean(str(name), known)
                raise TaskError(
                    f"task.options.metrics: there is no metric {name!r}; {near}known: {', '.join(known)}"
                )
        if not names or len(set(names)) != len(names):
            raise TaskError(
                f"task.options.metrics should be one or more different names of {', '.join(known)}"
            )
        return tuple(known[name] for name in names)


MakeTask = Callable[..., Task]
tasks: Registry[MakeTask] = Registry("task", own=True)

Made = TypeVar("Made", bound=MakeTask)


def task(name: str) -> Callable[[Made], Made]:
    """Returns a decorator that registers a task. Raises ValueError for a name already taken, or without a docstring."""

    def add(make: Made) -> Made:
        summary_of(make, "task", name)
        tasks.register(name)(make)
        return make

    return add


def output(outputs: Any, which: str | int | None) -> Tensor:
    """Returns the tensor among a network's outputs that a task looks at, in float32.

    which: its key or place where there are several; None = the only one. Raises TaskError, which names what there is.
    """
    if isinstance(outputs, Tensor):
        return outputs.float()
    named = dict(outputs) if isinstance(outputs, Mapping) else None
    if named is None and isinstance(outputs, tuple | list):
        named = dict(enumerate(outputs))
    if named is None:
        raise TaskError(f"the network returned a {type(outputs).__name__}, which this task cannot judge")
    if which is None and len(named) == 1:
        which = next(iter(named))
    if which not in named or not isinstance(named[which], Tensor):
        raise TaskError(
            f"the network has several outputs, and task.options.output = {which!r} is none of them; possible: "
            f"{', '.join(repr(k) for k, v in named.items() if isinstance(v, Tensor))}"
        )
    found: Tensor = named[which]
    return found.float()


def same_shape(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the outputs in the shape of the targets, if only axes of length 1 differ. Raises TaskError else."""
    if outputs.numel() != targets.numel() or len(outputs) != len(targets):
        raise TaskError(f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} differ in shape")
    return outputs.reshape(targets.shape)


def flat(values: Tensor) -> Tensor:
    """Returns (n, …) as (n, k)."""
    return torch.flatten(values, 1) if values.ndim > 1 else values[:, None]
