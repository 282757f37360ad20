"""scikit-learn's handwritten digits (UCI optical recognition of handwritten digits, 1998): no download."""

import numpy as np

from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data.source import FILE_KEYS, Loaded, Say, refuse_keys, split_validation
from prunefront.pipelines.data.splits import DataError, Split

TEST_IMAGES = 400
"""Number of test images."""

VALIDATION_IMAGES = 300
"""Number of validation images, unless the study file asks for another."""

ORDER_SEED = 20_240_229
"""Seed of the order that decides which image is in which part, the same for every study."""


def load(section: DataSection, say: Say) -> Loaded:
    """Returns 1797 images (1, 8, 8) of ten classes, shuffled once: 1097 train, 300 validation, 400 test."""
    for key in ("train", "test"):
        if getattr(section, key) is not None:
            raise DataError(
                f"data.{key} is a file, but data.source is 'digits'; set source = 'parquet' or 'folder'"
            )
    refuse_keys(section, *FILE_KEYS)
    # here, not above: search workers import this package without these data
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)[:, None]
    order = np.random.default_rng(ORDER_SEED).permutation(len(images))
    everything = Split(images[order], bunch.target[order].astype(np.int64))
    rest = everything[: len(everything) - TEST_IMAGES]
    train, validation = split_validation(rest, section.validation or VALIDATION_IMAGES)
    return Loaded(train, validation, everything[len(rest) :])
