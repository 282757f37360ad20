"""Checks that every data set must pass before a study spends anything on it."""

import logging
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from prunefront.pipelines.data.arrays import Splits
from prunefront.pipelines.data.splits import Augment, DataError, Split, Transform

LEAK_LIMIT = 0.01
"""Largest share of held-out images that may also be training images. Well-known data sets hold a few exact duplicates
and stay usable, with a warning in the log. A larger share means that the same images were given twice."""

log = logging.getLogger(__name__)


def check_splits(splits: Splits, *, empty: frozenset[int] = frozenset()) -> Splits:
    """Returns the splits. Raises DataError, in one line, for the first fault that it finds.

    empty: classes that have no training image, as their source has said.
    """
    parts = {"training": splits.train, "validation": splits.validation, "test": splits.test}
    for name, part in parts.items():
        if len(part) == 0:
            raise DataError(
                f"the {name} part is empty; at least one image is needed in each of the three parts"
            )
    for name, part in parts.items():
        if part.images.shape[1:] != splits.train.images.shape[1:]:
            raise DataError(
                f"{name} images are {_size(part)} and training images {_size(splits.train)}; "
                "give all images one size and number of channels"
            )
        if part.images.dtype != splits.train.images.dtype:
            raise DataError(
                f"{name} images are {part.images.dtype} and training images {splits.train.images.dtype}; "
                "give all parts the same type"
            )
        if part.images.dtype == np.float32 and not np.isfinite(part.images).all():
            raise DataError(f"{name} images hold NaN or infinite pixels")
    channels = splits.train.images.shape[1]
    if len(splits.transform.mean) != channels:
        raise DataError(
            f"mean and std have {len(splits.transform.mean)} values, the images have {channels} channels; "
            "give one value per channel, or leave both out"
        )
    check_order(splits.train.labels, splits.validation.labels)
    check_labels({name: part.labels for name, part in parts.items()}, splits.classes, empty)
    _check_leaks(splits)
    return splits


def count_classes(train: Split) -> int:
    """Returns the number of classes of training labels 0..k-1, which `check_splits` checks."""
    return int(train.labels.max(initial=-1)) + 1


def pixel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns (mean, std) per channel; uint8 pixels are scaled to [0, 1]. A constant channel gets std 1."""
    means, stds = [], []
    for channel in range(split.images.shape[1]):
        pixels = split.images[:, channel]
        if pixels.dtype == np.uint8:  # the histogram is exact and needs no float copy of the images
            weights = np.bincount(pixels.ravel(), minlength=256) / max(1, pixels.size)
            values = np.arange(256) / 255.0
            mean = float(weights @ values)
            std = float(np.sqrt(weights @ (values - mean) ** 2))
        else:
            mean, std = float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64))
        means.append(mean)
        stds.append(std if std > 0.0 else 1.0)
    return tuple(means), tuple(stds)


def transform_for(
    train: Split,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    augment: Augment,
    padding: int,
) -> Transform:
    """Returns the transform that a study file asks for; without mean or std there, the training part gives them."""
    own_mean, own_std = pixel_statistics(train)
    return Transform(
        tuple(own_mean if mean is None else mean), tuple(own_std if std is None else std), augment, padding
    )


def _digests(split: Split) -> list[bytes]:
    """Returns a digest of each image's bytes."""
    return [blake2b(np.ascontiguousarray(image).data, digest_size=12).digest() for image in split.images]


def check_order(train: NDArray[np.int64], validation: NDArray[np.int64]) -> None:
    """Raises DataError where validation was cut from rows that are sorted by class, and so lacks most classes."""
    labels = np.concatenate([train, validation])
    held, all_ = len(np.unique(validation)), len(np.unique(labels))
    if all_ > 1 and held < all_ and len(labels) > all_ and np.all(np.diff(labels) >= 0):
        raise DataError(
            f"the training rows are sorted by class, and the last {len(validation)}, set aside for validation, "
            f"hold {held} of {all_} classes; shuffle the rows (source = 'parquet': data.shuffle = true)"
        )


def check_labels(parts: dict[str, NDArray[np.int64]], classes: int, empty: frozenset[int]) -> None:
    """Raises DataError unless labels of the training, validation and test part are 0..classes-1. empty: see above."""
    train = parts["training"]
    if train.min() < 0:
        raise DataError(f"labels must be integers 0..k-1, but one training label is {train.min()}")
    if train.min() == train.max():
        raise DataError(
            f"all {len(train)} training images have label {train[0]}; at least two classes are needed"
        )
    if classes > len(train):  # before anything of that size is made
        raise DataError(
            f"labels must be 0..{classes - 1} without a gap, and there are {len(train)} training images; "
            "number the classes from 0, raise data.train_limit, or shuffle rows that are sorted by class"
        )
    if train.max() >= classes:
        raise DataError(
            f"the highest training label is {train.max()}, which needs more than {classes} classes"
        )
    if train.min() == 1 and 0 not in empty and classes == len(np.unique(train)) + 1:
        raise DataError(
            f"labels run from 1 to {train.max()} and must begin at 0; renumber them, or (source = 'parquet') set "
            "data.classes to all labels in order: [1, 2, …]"
        )
    absent = np.setdiff1d(np.arange(classes), [*np.unique(train), *empty])
    if len(absent):
        raise DataError(
            f"labels must be 0..{classes - 1} without a gap, but no training image has label {absent[0]}; "
            "number the classes from 0, raise data.train_limit, or shuffle rows that are sorted by class"
        )
    for name, labels in parts.items():
        strange = labels[(labels < 0) | (labels >= classes)]
        if len(strange):
            raise DataError(f"one {name} label is {strange[0]}; the training labels are 0..{classes - 1}")


def _check_leaks(splits: Splits) -> None:
    known = set(_digests(splits.train))
    for name, part in (("validation", splits.validation), ("test", splits.test)):
        digests = _digests(part)
        shared = sum(digest in known for digest in digests)
        if shared > LEAK_LIMIT * len(part):
            raise DataError(
                f"{shared} of {len(part)} {name} images are also training images, so quality would mean nothing; "
                "give different images"
            )
        if shared:
            log.warning("%d of %d %s images are also earlier images", shared, len(part), name)
        known.update(digests)  # a test image must not be a validation image either


def _size(split: Split) -> str:
    _, c, h, w = split.images.shape
    return f"{h}x{w} with {c} channel{'s' if c > 1 else ''}"
