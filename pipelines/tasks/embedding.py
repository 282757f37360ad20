"""Embedding: the dense network's output is the target, so that the data need no labels."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from prunefront.pipelines.tasks.task import Task, TaskOptions, output, same_shape, task
from prunefront.search.outcomes.measurement import Metric


@task("embedding")
class Embedding(Task, TaskOptions):
    """The dense network's vectors (b, …, d), without any labels: one minus the cosine between them; mean cosine."""

    KNOWN = (Metric("cosine", "max", chance=0.0, scale="share"),)
    labels = False

    def __init__(self, output: str | int | None = None) -> None:
        self.metrics = self.KNOWN
        self.output = output

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return 1.0 - self._cosine(outputs, targets).mean()

    def judge(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        # a vector beside itself rounds to a little more than 1
        return {"cosine": self._cosine(outputs, targets).clamp(-1.0, 1.0)}

    def _cosine(self, outputs: Any, targets: Any) -> Tensor:
        """Returns the cosine (b,) of each sample's vectors, the mean over all but the last axis."""
        whole = output(targets, self.output)
        cosine = F.cosine_similarity(same_shape(output(outputs, self.output), whole), whole, dim=-1)
        return cosine.flatten(1).mean(1) if cosine.ndim > 1 else cosine
