"""Numbers the classes: labels as files hold them, integers or texts, become 0..k-1."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prunefront.pipelines.data.source import Say
from prunefront.pipelines.data.splits import DataError

Labels = NDArray[np.int64] | Sequence[str]
"""One label for each image, as a file holds it."""

SHOWN = 6
"""Most classes that a line names."""


def number(
    train: Labels, test: Labels, classes: Sequence[int | str] | None, say: Say
) -> tuple[NDArray[np.int64], NDArray[np.int64], int | None]:
    """Returns the labels of both files as numbers, and the number of classes, None where integers say it themselves.

    classes: labels in the order of their numbers, see `data.classes`; None = texts in the order of their names,
    integers as they are. Raises DataError for a label that is none of the classes.
    """
    if classes is None:
        if isinstance(train, np.ndarray) and isinstance(test, np.ndarray):
            return train, test, None
        if isinstance(train, np.ndarray) or isinstance(test, np.ndarray):
            raise DataError(
                "the labels of data.train are "
                + ("integers" if isinstance(train, np.ndarray) else "texts")
                + " and those of data.test are not; give both the same form"
            )
        classes = sorted(set(train))
        say(f"labels are texts: {len(classes)} classes in the order of their names ({named(classes)})")
    numbers = {label: i for i, label in enumerate(classes)}
    return _numbered(train, numbers, "train"), _numbered(test, numbers, "test"), len(classes)


def named(classes: Sequence[object]) -> str:
    """Returns the first classes, and that there are more."""
    return ", ".join(map(str, classes[:SHOWN])) + ", …" * (len(classes) > SHOWN)


def _numbered(labels: Labels, numbers: dict[int | str, int], key: str) -> NDArray[np.int64]:
    plain: Sequence[int | str] = labels.tolist() if isinstance(labels, np.ndarray) else labels
    try:
        return np.array([numbers[label] for label in plain], np.int64)
    except KeyError:
        strange = next(label for label in plain if label not in numbers)
        raise DataError(
            f"label {strange!r:.80} of data.{key} is none of the {len(numbers)} classes: {named([*map(repr, numbers)])}"
        ) from None
