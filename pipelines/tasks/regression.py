"""Regression: one number or several a sample."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from prunefront.pipelines.tasks.estimate import Estimate, of_sums
from prunefront.pipelines.tasks.task import Task, TaskError, TaskOptions, flat, output, same_shape, task
from prunefront.search.outcomes.measurement import Metric

LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
}


@task("regression")
class Regression(Task, TaskOptions):
    """Numbers: outputs (b, …) against targets of that shape. Squared, absolute or Huber loss; MAE, RMSE, R²."""

    KNOWN = (
        Metric("mae", "min", scale="positive"),
        Metric("rmse", "min", scale="positive"),
        Metric("r2", "max", chance=0.0, scale="real"),
    )

    def __init__(
        self,
        metrics: Sequence[str] = ("mae", "rmse", "r2"),
        loss: str = "mse",
        output: str | int | None = None,
    ) -> None:
        if loss not in LOSSES:
            raise TaskError(f"task.options.loss = {loss!r} is unknown; possible: {', '.join(LOSSES)}")
        self.metrics = self.chosen(tuple(metrics))
        self._loss, self.output = LOSSES[loss], output

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return self._loss(same_shape(output(outputs, self.output), targets), targets.float())

    def distil(self, outputs: Any, teacher: Any, temperature: float) -> Tensor:
        return self._loss(output(outputs, self.output), output(teacher, self.output))

    def judge(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        wanted = flat(targets.double())
        off = flat(same_shape(output(outputs, self.output), targets).double()) - wanted
        # R² has the variance of each output: the mean over outputs counts each alike
        return {"absolute": off.abs().mean(1), "square": off.square(), "value": wanted}

    def score(self, judged: Mapping[str, Tensor]) -> Mapping[str, Estimate]:
        square, value = judged["square"].numpy(), judged["value"].numpy()
        ones, k = np.ones((len(value), 1)), value.shape[1]
        centred = value - value.mean(0)  # sums of squares lose digits far from zero
        rows = np.hstack([ones, judged["absolute"].numpy()[:, None], square, centred, centred**2])

        def r2(sums: Any) -> Any:
            n = sums[:, :1]
            around = sums[:, 2 + 2 * k :] - sums[:, 2 + k : 2 + 2 * k] ** 2 / n
            return (1.0 - sums[:, 2 : 2 + k] / np.maximum(around, 1e-12)).mean(1)

        found = {
            "mae": lambda sums: sums[:, 1] / sums[:, 0],
            "rmse": lambda sums: np.sqrt(sums[:, 2 : 2 + k].mean(1) / sums[:, 0]),
            "r2": r2,
        }
        return {m.name: of_sums(rows, found[m.name]) for m in self.metrics}
