"""Training of the network that a study starts from, where a package's weights are of another task than the study's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

import prunefront as pf
from prunefront.pipelines.data import open_data
from prunefront.pipelines.tasks import make_task


def train(
    study: Mapping[str, Any],
    model: nn.Module,
    into: Path,
    *,
    epochs: int,
    learning_rate: float,
    batch: int = 32,
) -> None:
    """Trains a network on a study's training data and loss, and writes its weights as safetensors.

    AdamW with a one-cycle learning rate; seeded. learning_rate: its peak.
    """
    config = pf.load_study(study)
    task, samples = make_task(config.task), open_data(config.data).part("train")
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    steps = epochs * -(-(samples.count or 0) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1)
    model.train()
    for epoch in range(epochs):
        losses = []
        for step in samples.batches(batch, rng=rng, smallest=2):
            loss = task.loss(step.inputs.call(model), step.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"training first: pass {epoch + 1} of {epochs}, loss {np.mean(losses):.4f}", flush=True)
    into.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, into)
