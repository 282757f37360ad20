"""Accuracy of a network, and its uncertainty."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import nn

from prunefront.pipelines.data import Arrays, Split, Transform
from prunefront.pipelines.measure.quality import quality
from prunefront.pipelines.tasks import CLASSIFICATION


@dataclass(frozen=True, slots=True)
class Accuracy:
    """An accuracy. value: share of images classified rightly, 0–1. low, high: 95 % interval. images: their number."""

    value: float
    low: float
    high: float
    images: int


def accuracy(
    model: nn.Module,
    split: Split,
    transform: Transform,
    *,
    batch_size: int = 256,
    precision: str = "float32",
    channels_last: bool = False,
    yield_point: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Accuracy:
    """Returns the share of the split's plain (never augmented) images whose largest output is their label.

    precision: "bfloat16" is faster on some machines, but moves single images across the border, and so candidates past
    each other: rank in float32. yield_point: context of each batch. The modules' modes are put back afterwards. Raises
    NotFinite where an output is NaN: the largest of such outputs means nothing.
    """
    found = quality(
        model,
        Arrays(split, transform),
        CLASSIFICATION,
        batch_size=batch_size,
        precision=precision,
        channels_last=channels_last,
        yield_point=yield_point,
    )["accuracy"]
    return Accuracy(found.value, found.low, found.high, found.samples)
