"""Segmentation: one class a pixel."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prunefront.pipelines.tasks.estimate import Estimate, of_sums
from prunefront.pipelines.tasks.task import Task, TaskError, TaskOptions, output, task
from prunefront.search.outcomes.measurement import Metric


@task("segmentation")
class Segmentation(Task, TaskOptions):
    """One class a pixel: logits (b, classes, …) against labels (b, …). Cross-entropy; mean IoU, pixel accuracy."""

    KNOWN = (Metric("miou", "max", scale="share"), Metric("pixel_accuracy", "max", scale="share"))

    def __init__(
        self,
        metrics: Sequence[str] = ("miou",),
        ignore_index: int = 255,
        output: str | int | None = None,
    ) -> None:
        self.metrics = self.chosen(tuple(metrics))
        self.ignore_index, self.output = ignore_index, output

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return F.cross_entropy(output(outputs, self.output), targets, ignore_index=self.ignore_index)

    def distil(self, outputs: Any, teacher: Any, temperature: float) -> Tensor:
        """Returns T²·KL between the soft classes of each pixel, the mean over pixels."""
        t = temperature
        mine, whole = (F.log_softmax(output(o, self.output) / t, 1) for o in (outputs, teacher))
        return t * t * F.kl_div(mine, whole, reduction="none", log_target=True).sum(1).mean()

    def judge(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        from torchmetrics.functional.classification import multiclass_stat_scores

        logits = output(outputs, self.output)
        if logits.shape[:1] + logits.shape[2:] != targets.shape:
            raise TaskError(
                f"segmentation takes logits (b, classes, …) and labels (b, …), got {tuple(logits.shape)} and "
                f"{tuple(targets.shape)}"
            )
        counts = multiclass_stat_scores(
            logits.argmax(1).flatten(1),
            targets.flatten(1),
            num_classes=logits.shape[1],
            average="none",
            multidim_average="samplewise",
            ignore_index=self.ignore_index,
            validate_args=False,
        )
        right, over, _, missed, _ = counts.unbind(-1)
        return {"intersection": right, "union": right + over + missed, "pixels": right + missed}

    def score(self, judged: Mapping[str, Tensor]) -> Mapping[str, Estimate]:
        rows = torch.hstack([judged["intersection"], judged["union"], judged["pixels"]]).double().numpy()
        k = judged["union"].shape[1]

        def miou(sums: Any) -> Any:
            inside, union = sums[:, :k], sums[:, k : 2 * k]
            there = union > 0  # a class that is neither drawn nor found says nothing
            return (inside / np.maximum(union, 1)).sum(1) / np.maximum(there.sum(1), 1)

        def pixels(sums: Any) -> Any:
            return sums[:, :k].sum(1) / np.maximum(sums[:, 2 * k :].sum(1), 1)

        found = {"miou": miou, "pixel_accuracy": pixels}
        return {m.name: of_sums(rows, found[m.name]) for m in self.metrics}
