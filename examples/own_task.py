"""A study of a task and data of one's own, in one process. Run: python examples/own_task.py"""

import math

import numpy as np
import torch
from torch import nn

import prunefront as pf


class Angle(pf.Task):  # of a stripe, which is the same after half a turn
    metrics = (pf.Metric("degrees", "min", "°", chance=45.0, scale="positive"),)

    def loss(self, outputs, targets):
        return (1 - torch.cos(2 * (outputs[:, 0] - targets))).mean()

    def judge(self, outputs, targets):  # one number a sample, under the metric's name
        off = (outputs[:, 0] - targets + math.pi / 2) % math.pi - math.pi / 2
        return {"degrees": off.abs().rad2deg()}


class Stripes:  # samples that are drawn when they are needed, as a stream reads them
    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def batches(self, size, *, rng=None, device="cpu", smallest=1):
        rows = np.arange(self.count) if rng is None else rng.permutation(self.count)
        for start in range(0, self.count, size):
            drawn = [
                np.random.default_rng([self.seed, row]).uniform(0, math.pi) for row in rows[start:][:size]
            ]
            angle = torch.tensor(drawn, dtype=torch.float32, device=device)
            x, y = torch.meshgrid(*[torch.linspace(-3, 3, 12, device=device)] * 2, indexing="xy")
            wave = torch.cos(2 * (x * torch.cos(angle)[:, None, None] + y * torch.sin(angle)[:, None, None]))
            yield pf.Batch(pf.Inputs((wave[:, None],)), angle, len(angle))

    def first(self, count):
        return Stripes(min(count, self.count), self.seed)

    def fingerprint(self):
        return f"{self.count} stripes of {self.seed}"


def data():
    return pf.Parts(Stripes(1024, 0), Stripes(256, 1), Stripes(256, 2))


def network():
    layers = nn.Conv2d(1, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 9, 32), nn.ReLU(), nn.Linear(32, 1))


if __name__ == "__main__":
    study = {"name": "stripes", "model": {"factory": "own_task:network"}, "task": {"name": "own_task:Angle"}}
    study |= {"data": {"source": "own_task:data"}, "dense": {"epochs": 8}, "search": {"candidates": 8}}
    study |= {"training": {"candidates": 2, "epochs": 1}, "goal": {"constraints": ["degrees <= 3x"]}}
    for row in pf.search(study, without_ray=True, fresh=True, quiet=True):
        print(f"{row.quality:.2f}° {row.latency_ratio:5.2f} x dense {row.macs:,} MACs  {row.key}")
