"""A study with a task, a streaming data set and a training loop of one's own. Run: python examples/own_task.py"""

import numpy as np
import torch
from torch import nn

import prunefront as pf


class Angle(pf.Task):  # of a stripe, which is the same after half a turn
    metrics = (pf.Metric("degrees", "min", "°", chance=45.0, scale="positive"),)

    def loss(self, outputs, targets):
        return (1 - torch.cos(2 * (outputs[:, 0] - targets))).mean()

    def judge(self, outputs, targets):  # one number a sample, under the metric's name
        off = (outputs[:, 0] - targets + np.pi / 2) % np.pi - np.pi / 2
        return {"degrees": off.abs().rad2deg()}


class Stripes(torch.utils.data.Dataset):  # drawn when they are needed, as files are read
    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        angle = torch.tensor(np.random.default_rng([self.seed, index]).uniform(0, np.pi)).float()
        x = torch.linspace(-3, 3, 12)
        return torch.cos(2 * (x * torch.cos(angle) + x[:, None] * torch.sin(angle)))[None], angle


def data():
    return Stripes(1024, 0), Stripes(256, 1), Stripes(256, 2)


def network():
    layers = nn.Conv2d(1, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 9, 32), nn.ReLU(), nn.Linear(32, 1))


def loop(
    model, task, *, data, budget, on_epoch, **others
):  # others: the dense network as teacher, the device
    optimizer, rng = torch.optim.Adam(model.parameters()), np.random.default_rng(budget.seed)
    for epoch in range(1, budget.epochs + 1):
        for batch in data.part("train").batches(budget.batch_size, rng=rng):
            optimizer.zero_grad()
            task.loss(batch.inputs.call(model.train()), batch.targets).backward()
            optimizer.step()
        on_epoch(epoch)


if __name__ == "__main__":
    study = {"name": "stripes", "model": {"factory": "own_task:network"}, "task": {"name": "own_task:Angle"}}
    study |= {"data": {"source": "own_task:data"}, "goal": {"constraints": ["degrees <= 3x"]}}
    study |= {"search": {"candidates": 8}, "training": {"loop": "own_task:loop", "candidates": 2}}
    for row in pf.search(study, without_ray=True, fresh=True, quiet=True):
        print(f"{row.quality:.2f}° {row.latency_ratio:5.2f} x dense {row.macs:,} MACs  {row.key}")
