"""Language modelling: the next token of a sequence."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prunefront.pipelines.tasks.estimate import Estimate, of_sums
from prunefront.pipelines.tasks.task import Task, TaskError, TaskOptions, output, task
from prunefront.search.outcomes.measurement import Metric


@task("language_modelling")
class LanguageModelling(Task, TaskOptions):
    """The next token: logits (b, tokens, vocabulary) against tokens (b, tokens). Cross-entropy; perplexity.

    shift: True where the targets are the tokens themselves, so that each place is judged by the token after it; False
    where the data shift them already.
    """

    KNOWN = (Metric("perplexity", "min", scale="positive"),)

    def __init__(self, shift: bool = True, ignore_index: int = -100, output: str | int | None = None) -> None:
        self.metrics = self.KNOWN
        self.shift, self.ignore_index, self.output = shift, ignore_index, output

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        logits, wanted = self._aligned(outputs, targets)
        return F.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=self.ignore_index)

    def judge(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        logits, wanted = self._aligned(outputs, targets)
        nats = F.cross_entropy(
            logits.transpose(1, 2), wanted, ignore_index=self.ignore_index, reduction="none"
        )
        return {"nats": nats.double().sum(1), "tokens": (wanted != self.ignore_index).sum(1)}

    def score(self, judged: Mapping[str, Tensor]) -> Mapping[str, Estimate]:
        rows = torch.stack([judged["nats"], judged["tokens"].double()], 1).numpy()
        # a network that is cut too far may have any loss; beyond e^50 it is as good as none
        return {
            "perplexity": of_sums(rows, lambda s: np.exp(np.minimum(s[:, 0] / np.maximum(s[:, 1], 1), 50.0)))
        }

    def _aligned(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        logits = output(outputs, self.output)
        if logits.shape[:2] != targets.shape:
            raise TaskError(
                f"language_modelling takes logits (b, tokens, vocabulary) and tokens (b, tokens), got "
                f"{tuple(logits.shape)} and {tuple(targets.shape)}"
            )
        return (logits[:, :-1], targets[:, 1:]) if self.shift else (logits, targets)
