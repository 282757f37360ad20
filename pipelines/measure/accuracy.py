"""Accuracy of a network, and its uncertainty."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from prunefront.pipelines.data import Split, Transform, batches
from prunefront.pruners.units.eval_mode import eval_mode
from prunefront.search.outcomes.measurement import NotFinite


@dataclass(frozen=True, slots=True)
class Accuracy:
    """An accuracy. value: share of images classified rightly, 0–1. low, high: 95 % interval. images: their number."""

    value: float
    low: float
    high: float
    images: int

    @classmethod
    def count(cls, right: int, images: int) -> "Accuracy":
        """Returns the accuracy of `right` answers on `images` images, in Wilson's interval (1927, eq. 4)."""
        from scipy.stats import binomtest  # slow to import

        low, high = binomtest(right, images).proportion_ci(0.95, method="wilson")
        return cls(right / images, float(low), float(high), images)


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
    device = next(model.parameters()).device
    right = torch.zeros((), dtype=torch.int64, device=device)
    broken = torch.zeros((), dtype=torch.bool, device=device)
    with eval_mode(model):
        for images, labels in batches(
            split, transform, batch_size, device=device, channels_last=channels_last
        ):
            with (
                yield_point(),
                torch.inference_mode(),
                torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"),
            ):
                outputs = model(images)
                right += (outputs.argmax(1) == labels).sum()
                broken |= outputs.isnan().any()
    if broken:
        raise NotFinite("the network's outputs are not finite: NaN on some of the images")
    return Accuracy.count(int(right), len(split))
