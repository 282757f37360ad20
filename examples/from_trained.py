"""What the studies of trained networks share: settings, the quick form, and training of the network they start from.

Training comes first where a package's weights are of another task than the study's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from fetch_assets import ASSETS
from torch import nn

import prunefront as pf
from prunefront.pipelines.data import open_data
from prunefront.pipelines.tasks import make_task

ONE_PASS = {"candidates": 2, "epochs": 1, "precision": "float32", "optimizer": "adamw"}
"""[training] of all of them, but for learning rate and batch size."""


def quick_form(
    study: Mapping[str, Any],
    options: Mapping[str, Any],
    data: Mapping[str, Any],
    *,
    learning_rate: float,
    batch: int = 128,
) -> dict[str, Any]:
    """Returns the same study of a narrow network on made-up data: four candidates, of which one is trained.

    options: of the network's factory.
    """
    name = f"{study['name']}-quick"
    weights = str(ASSETS / f"{name}.safetensors")
    return {
        **study,
        "name": name,
        "model": {"factory": study["model"]["factory"], "options": dict(options), "weights": weights},
        "data": dict(data),
        "search": {"candidates": 4},
        "training": ONE_PASS | {"candidates": 1, "learning_rate": learning_rate, "batch_size": batch},
        "measure": {"pairs": 10},
        "artifacts": {"pt2": False},  # a third of the time, and `prunefront export` makes one later
    }


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
