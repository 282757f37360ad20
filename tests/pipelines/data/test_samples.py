"""Samples: the contract that arrays keep, and that the fast path gives the numbers of before."""

import numpy as np
import pytest
import torch

from prunefront.errors import PrunefrontError
from prunefront.pipelines.data import Arrays, Inputs, Samples, Split, Splits, Transform, batches


def arrays(count: int = 11) -> Arrays:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)
    return Arrays(Split(images, np.arange(count)), Transform((0.5,), (0.2,), "crop_flip", 1))


def test_arrays_give_what_batches_gives() -> None:
    part: Samples = arrays()
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    old = batches(arrays().split, arrays().transform, 5, augment=first, shuffle=first, smallest=2)
    for (images, labels), batch in zip(old, part.batches(5, rng=second, smallest=2), strict=True):
        assert torch.equal(batch.inputs.args[0], images)
        assert torch.equal(batch.targets, labels)
        assert batch.count == len(labels)
    assert first.bit_generator.state == second.bit_generator.state


def test_in_order_every_sample_once_and_the_first_ones() -> None:
    part = arrays()
    assert torch.cat([b.targets for b in part.batches(4)]).tolist() == list(range(11))
    assert torch.cat([b.targets for b in part.first(3).batches(4)]).tolist() == [0, 1, 2]
    assert part.first(3).count == 3
    assert part.fingerprint() == arrays().fingerprint() != part.first(3).fingerprint()


def test_the_search_has_no_test_part() -> None:
    split, transform = arrays().split, arrays().transform
    splits = Splits(split[:5], split[5:8], split[8:], transform, 11)
    assert splits.part("test").count == 3
    assert splits.for_search().part("calibration").count == 5
    with pytest.raises(PrunefrontError, match="search sees no test data"):
        splits.for_search().part("test")


def test_inputs_call_a_network_with_all_that_they_hold() -> None:
    inputs = Inputs((torch.ones(2),), {"mask": {"a": torch.zeros(2)}, "plain": None})
    called = inputs.map(lambda t: t + 1).call(lambda x, mask, plain: (x + mask["a"], plain))
    assert called[0].tolist() == [3.0, 3.0]
    assert called[1] is None
    assert len(inputs.tensors()) == 2
