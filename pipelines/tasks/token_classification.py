"""Token classification: one class a token, of sequences that may be padded."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prunefront.pipelines.tasks.estimate import Estimate, of_sums
from prunefront.pipelines.tasks.task import Task, TaskError, TaskOptions, output, task
from prunefront.search.outcomes.measurement import Metric


@task("token_classification")
class TokenClassification(Task, TaskOptions):
    """One class a token: logits (b, tokens, classes) against labels (b, tokens). Cross-entropy; token accuracy."""

    KNOWN = (Metric("token_accuracy", "max", scale="share"),)

    def __init__(self, ignore_index: int = -100, output: str | int | None = None) -> None:
        self.metrics = self.KNOWN
        self.ignore_index, self.output = ignore_index, output

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        logits = output(outputs, self.output).flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), ignore_index=self.ignore_index)

    def judge(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        logits = output(outputs, self.output)
        if logits.shape[:2] != targets.shape:
            raise TaskError(
                f"token_classification takes logits (b, tokens, classes) and labels (b, tokens), got "
                f"{tuple(logits.shape)} and {tuple(targets.shape)}"
            )
        real = targets != self.ignore_index
        return {"right": ((logits.argmax(2) == targets) & real).sum(1), "tokens": real.sum(1)}

    def score(self, judged: Mapping[str, Tensor]) -> Mapping[str, Estimate]:
        rows = torch.stack([judged["right"], judged["tokens"]], 1).double().numpy()
        return {"token_accuracy": of_sums(rows, lambda s: s[:, 0] / np.maximum(s[:, 1], 1))}
