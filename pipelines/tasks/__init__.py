"""Tasks: what a batch means, what the loss is, and how networks are judged. Each module that registers one is found."""

import importlib
import pkgutil
from typing import Any

from prunefront.pipelines.config.imported import call, import_callable
from prunefront.pipelines.config.sections import TaskSection
from prunefront.pipelines.tasks.classification import Classification
from prunefront.pipelines.tasks.estimate import Estimate
from prunefront.pipelines.tasks.task import Task, TaskError, tasks
from prunefront.search.outcomes.measurement import Metric

__all__ = ["CLASSIFICATION", "Estimate", "Metric", "Task", "TaskError", "make_task", "tasks"]


CLASSIFICATION = Classification()
"""The task of a study that names none."""


def make_task(section: TaskSection) -> Task:
    """Returns the task of a study. Raises PrunefrontError, one line, for a task that cannot be made."""
    if ":" in section.name:
        make: Any = import_callable(section.name, key="task.name")
    else:
        make = tasks[section.name]
    made = call(make, section.options, key="task.name", spec=section.name)
    if not isinstance(made, Task):
        raise TaskError(
            f"task.name = {section.name!r} returned a {type(made).__name__}; it must return a prunefront Task"
        )
    _check(made, section.name)
    return made


def _check(made: Task, name: str) -> None:
    metrics: object = getattr(made, "metrics", ())
    if not isinstance(metrics, tuple) or not metrics or not all(isinstance(m, Metric) for m in metrics):
        raise TaskError(
            f"task {name!r} has metrics = {metrics!r:.80}; it must be a tuple of one Metric or more"
        )
    if len({m.name for m in metrics}) != len(metrics):
        raise TaskError(f"task {name!r} has two metrics of one name: {', '.join(m.name for m in metrics)}")


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
