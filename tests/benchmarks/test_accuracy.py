"""Accuracy and its interval."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.accuracy import Accuracy, accuracy
from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data import Split, Transform, load
from prunefront.pipelines.formats.weights import load_weights
from prunefront.pipelines.models import models
from prunefront.pipelines.tasks.estimate import share

SHARED = Path(__file__).parents[4] / "shared" / "data"


@settings(deadline=None)
@given(st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_ends_where_the_share_is_two_deviations_off(counts: tuple[int, int]) -> None:
    """Wilson's definition: an end p of the interval is z standard deviations √(p(1 - p)/n) from the share."""
    right, images = counts
    found = share(right, images)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    for p in {found.low, found.high} - {0.0, 1.0}:
        assert abs(p - right / images) / math.sqrt(p * (1 - p) / images) == pytest.approx(1.96, abs=1e-4)


class Brightest(nn.Module):
    """Answers with the channel whose mean is highest; counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        return x.mean((2, 3)) * self.gain


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_counts_right_answers_on_plain_images(precision: str) -> None:
    labels = np.arange(50, dtype=np.int64) % 3
    images = np.zeros((50, 3, 4, 4), np.uint8)
    images[np.arange(50), labels] = 200
    labels[:7] = (labels[:7] + 1) % 3
    images.flags.writeable = False
    entered: list[int] = []

    class Turn:
        def __enter__(self) -> None:
            entered.append(1)

        def __exit__(self, *_: object) -> None: ...

    model = Brightest().train()
    model.frozen = nn.Dropout().eval()
    transform = Transform((0.1,) * 3, (0.5,) * 3, "crop_flip", 4)
    got = accuracy(
        model, Split(images, labels), transform, batch_size=20, precision=precision, yield_point=Turn
    )
    exact = share(43, 50)
    assert got == Accuracy(exact.value, exact.low, exact.high, 50)
    assert (model.training, model.frozen.training) == (True, False), "each module's mode is put back"
    assert model.modes == [False] * 3
    assert len(entered) == 3


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data (CIFAR-10 and ResNet-20) is absent")
def test_resnet20_reproduces_its_recorded_accuracy() -> None:
    splits = load(
        DataSection(
            source="parquet",
            train=SHARED / "cifar10-train.parquet",
            test=SHARED / "cifar10-test.parquet",
            validation=5000,
            train_limit=1000,
            test_limit=1000,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        )
    )
    model = models["resnet20"]()
    load_weights(model, SHARED / "resnet20-cifar10.safetensors")
    # the recorded 86.96 % is what bfloat16 gives; float32, whose answers agree with float64's, gets five more images
    short = accuracy(model, splits.validation, splits.transform, precision="bfloat16", channels_last=True)
    assert short.images == 5000
    assert short.value == pytest.approx(0.8696, abs=0.0005), "a machine's bfloat16 may move two images"
    exact = accuracy(model, splits.validation, splits.transform)
    assert exact.value == pytest.approx(0.8706, abs=0.0003), "one image on the border may fall either way"
