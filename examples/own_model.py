"""A whole study on a network and data that are defined in this file. Run: python examples/own_model.py"""

import numpy as np
import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn

import prunefront as pf
from prunefront.pipelines.data import Split


class Residual(nn.Module):
    """Two convolutions around which the input passes unchanged: their outputs can only be cut together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Network(nn.Module):
    """A stem, two residual blocks, a classifier."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(Residual(width), Residual(width))
        self.classifier = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


def odd_or_even() -> tuple[Split, Split, Split]:
    """Train, validation and test: is the handwritten digit odd?"""
    digits = load_digits()
    images = (digits.images[:, None] * 15).astype(np.uint8)
    labels = (digits.target % 2).astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    parts = order[:1000], order[1000:1400], order[1400:]
    train, validation, test = (Split(images[rows], labels[rows]) for rows in parts)
    return train, validation, test


# workers import this file by its name, so the study names what is in it as it would name any other module
STUDY = {
    "name": "own-model",
    "model": {"factory": "own_model:Network", "options": {"width": 16}},
    "data": {"source": "own_model:odd_or_even", "augment": "crop"},
    "dense": {"epochs": 6},
    "search": {"searcher": "random", "candidates": 8},
    "training": {"candidates": 4, "epochs": 2},
    "measure": {"pairs": 30},
}


def main() -> None:
    """Searches on this machine, and prints the front."""
    Console().print(pf.search(STUDY, fresh=True).table())


if __name__ == "__main__":
    main()
