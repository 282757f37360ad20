"""Image folders: <train>/<class>/*.png and <test>/<class>/*.png; classes are numbered in name order."""

from pathlib import Path

import numpy as np

from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data.decode import decode
from prunefront.pipelines.data.source import Parts, path_of, validation_count
from prunefront.pipelines.data.splits import DataError, Split

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
"""Ends of the names of image files."""

ORDER_SEED = 20_240_229
"""Seed of a fixed order: files are sorted by class, and after a shuffle the last ones are of all classes."""


def load(section: DataSection) -> Parts:
    """Returns images in a fixed shuffled order; the last `validation` training ones are set aside before the limits.

    Raises DataError for a missing folder, a folder without classes or images, and a test class that train lacks.
    """
    train_folder = path_of(section, "train", "folder")
    test_folder = path_of(section, "test", "folder")
    classes = _classes(train_folder)
    strange = sorted(set(_classes(test_folder)) - set(classes))
    if strange:
        raise DataError(
            f"class {strange[0]!r} of {test_folder} is not in {train_folder}, which has: {', '.join(classes)}"
        )
    rows = _files(train_folder, classes)
    count = validation_count(len(rows), section.validation)
    train = rows[: len(rows) - count][: section.train_limit]
    test = _files(test_folder, classes)[: section.test_limit]
    return _decode(train), _decode(rows[len(rows) - count :]), _decode(test)


def _classes(folder: Path) -> list[str]:
    """Returns the names of the class folders, in order."""
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(f"{folder} holds no class folder; it must hold one folder of images for each class")
    return names


def _files(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Returns (file, label) of every image, in the fixed order."""
    rows = [
        (path, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not rows:
        raise DataError(f"{folder} holds no image; known suffixes: {', '.join(SUFFIXES)}")
    order = np.random.default_rng(ORDER_SEED).permutation(len(rows))
    return [rows[i] for i in order]


def _decode(rows: list[tuple[Path, int]]) -> Split:
    images = decode([path for path, _ in rows], [str(path) for path, _ in rows])
    return Split(images, np.array([label for _, label in rows], np.int64))
