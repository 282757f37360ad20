"""Circles, squares and triangles on noise, drawn by a seed: data of two example studies."""

import sys
import tomllib
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch.utils.data import TensorDataset

import prunefront as pf

MOST = 3
"""Most shapes in an image."""


def draw(rng, size):
    """Returns an image (3, size, size), classes of its pixels (size, size), 0 = background, and boxes (shapes, 5).

    A row of boxes is x1, y1, x2, y2, shape: 0 = circle, 1 = square, 2 = triangle.
    """
    y, x = np.mgrid[:size, :size] + 0.5
    slope = rng.uniform(-0.3, 0.3, (3, 2))
    image = (
        rng.uniform(0.2, 0.8, (3, 1, 1)) + slope[:, :1, None] * (x / size) + slope[:, 1:, None] * (y / size)
    )
    classes, boxes = np.zeros((size, size), np.int64), []
    for _ in range(rng.integers(1, MOST + 1)):
        shape, radius, turn = rng.integers(3), rng.uniform(0.12, 0.24) * size, rng.uniform(0, np.pi)
        across, down = x - rng.uniform(radius, size - radius), y - rng.uniform(radius, size - radius)
        u, v = across * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - across * np.sin(turn)
        edges = (
            np.hypot(u, v),
            np.maximum(abs(u), abs(v)) * 1.2,
            np.maximum(v, abs(u) * np.sqrt(0.75) - v / 2) * 1.8,
        )
        inside = edges[shape] < radius
        if (classes[inside] > 0).any():
            continue  # shapes never lie over each other
        classes[inside] = shape + 1
        image[:, inside] = rng.uniform(0, 1, (3, 1))
        boxes.append(
            (
                x[inside].min() - 0.5,
                y[inside].min() - 0.5,
                x[inside].max() + 0.5,
                y[inside].max() + 0.5,
                shape,
            )
        )
    return image + rng.normal(0, 0.1, image.shape) - 0.5, classes, np.array(boxes)


def drawn(parts, size):
    """Yields images, classes of their pixels, and boxes padded with shape -1, of each part."""
    for seed, count in enumerate(parts):
        made = [draw(np.random.default_rng([seed, index]), size) for index in range(count)]
        padded = [np.pad(b, ((0, MOST - len(b)), (0, 0)), constant_values=-1) for _, _, b in made]
        images, classes = (np.stack([one[i] for one in made]) for i in range(2))
        yield tuple(
            map(torch.from_numpy, (images.astype(np.float32), classes, np.stack(padded).astype(np.float32)))
        )


def masks(train, validation, test, size):
    """The three parts of a study that segments."""
    return tuple(TensorDataset(x, classes) for x, classes, _ in drawn((train, validation, test), size))


def boxes(train, validation, test, size):
    """The three parts of a study that detects."""
    return tuple(TensorDataset(x, boxes) for x, _, boxes in drawn((train, validation, test), size))


def search(file, quick_size):
    """Searches as a study file beside this one says; with `--quick` in this process, on few images of that size."""
    study = tomllib.loads((Path(__file__).parent / file).read_text())
    if short := "--quick" in sys.argv:
        study["data"]["options"] = {"train": 256, "validation": 64, "test": 64, "size": quick_size}
        study["dense"] |= {"epochs": 6, "batch_size": 8}
        study["training"] |= {"candidates": 1, "epochs": 1}
        study |= {"search": {"candidates": 4}, "measure": {"pairs": 10}, "goal": {}}
        study["name"] += "-quick"
    Console().print(pf.search(study, fresh=True, without_ray=short, quiet=short).table())
