"""Classification: one class a sample."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prunefront.pipelines.tasks.estimate import Estimate, Floats, bootstrap, mean
from prunefront.pipelines.tasks.task import Task, TaskError, TaskOptions, output, task
from prunefront.search.outcomes.measurement import ACCURACY, Metric

MACRO = ("balanced_accuracy", "macro_f1")


@task("classification")
class Classification(Task, TaskOptions):
    """One class a sample: logits (b, classes) against labels (b,). Cross-entropy; accuracy, top5, macro scores."""

    KNOWN = (
        ACCURACY,
        Metric("top5", "max", scale="share"),
        Metric("balanced_accuracy", "max", scale="share"),
        Metric("macro_f1", "max", scale="share"),
    )

    soft_labels = True

    def __init__(
        self,
        metrics: Sequence[str] = ("accuracy",),
        label_smoothing: float = 0.0,
        output: str | int | None = None,
    ) -> None:
        self.metrics = self.chosen(tuple(metrics))
        self.label_smoothing, self.output = label_smoothing, output

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return F.cross_entropy(output(outputs, self.output), targets, label_smoothing=self.label_smoothing)

    def smoothed_loss(self, outputs: Any, targets: Any, smoothing: float) -> Tensor:
        smoothing = smoothing or self.label_smoothing
        return F.cross_entropy(output(outputs, self.output), targets, label_smoothing=smoothing)

    def distil(self, outputs: Any, teacher: Any, temperature: float) -> Tensor:
        """Returns T²·KL(teacher/T ‖ outputs/T) (Hinton et al. 2015, 1503.02531).

        T² keeps its gradients as large as those of the labels' loss.
        """
        t = temperature
        student, whole = output(outputs, self.output), output(teacher, self.output)
        soft = F.kl_div(
            F.log_softmax(student / t, 1), F.log_softmax(whole / t, 1), reduction="batchmean", log_target=True
        )
        return t * t * soft

    def judge(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        logits = output(outputs, self.output)
        if logits.ndim != 2 or targets.shape != logits.shape[:1]:
            raise TaskError(
                f"classification takes logits (b, classes) and labels (b,), got {tuple(logits.shape)} and "
                f"{tuple(targets.shape)}"
            )
        predicted = logits.argmax(1)
        found = {"accuracy": predicted == targets}
        names = {m.name for m in self.metrics}
        if "top5" in names:
            best = logits.topk(min(5, logits.shape[1]), 1).indices
            found["top5"] = (best == targets[:, None]).any(1)
        if names & {*MACRO}:
            found |= {"predicted": predicted, "label": targets}
        return found

    def score(self, judged: Mapping[str, Tensor]) -> Mapping[str, Estimate]:
        return {
            m.name: _macro(judged["predicted"], judged["label"], m.name)
            if m.name in MACRO
            else mean(judged[m.name])
            for m in self.metrics
        }


def _macro(predicted: Tensor, label: Tensor, name: str) -> Estimate:
    """Returns a mean over classes, which the library computes from weights of the cells of the confusion matrix."""
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    metric = multiclass_accuracy if name == "balanced_accuracy" else multiclass_f1_score
    classes = int(torch.maximum(predicted.max(), label.max())) + 1
    order = np.lexsort((predicted.numpy(), label.numpy()))
    predicted, label = predicted[order], label[order]

    def value(counts: Floats) -> Floats:
        found = []
        for row in counts:
            times = torch.from_numpy(row).long()
            a, b = predicted.repeat_interleave(times), label.repeat_interleave(times)
            found.append(float(metric(a, b, num_classes=classes, average="macro", validate_args=False)))
        return np.array(found)

    return bootstrap(len(label), value)
