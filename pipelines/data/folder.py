"""Image folders: <train>/<class>/*.png and <test>/<class>/*.png; classes are numbered in name order."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data.decode import Fit, decode
from prunefront.pipelines.data.labels import named
from prunefront.pipelines.data.source import Loaded, Say, folder_of, refuse_keys, validation_count
from prunefront.pipelines.data.splits import DataError, Split

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
"""Ends of the names of image files."""

ORDER_SEED = 20_240_229
"""Seed of a fixed order: files are sorted by class, and after a shuffle the last ones are of all classes."""

OF_PROGRAMS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
"""Folders that programs leave beside images, in addition to those whose name begins with a dot."""

Row = tuple[Path, int]
"""An image's file and label."""


def load(section: DataSection, say: Say) -> Loaded:
    """Returns images in a fixed shuffled order; the last `validation` training ones are set aside before the limits.

    Hidden files are left out and counted, links are followed. Raises DataError for a missing folder, a folder without
    classes or images, and a test class that train lacks.
    """
    train, validation, test, classes, empty = find(section, say)
    fit = Fit.of(section)
    return Loaded(
        _decode(train, fit, "training", say),
        _decode(validation, fit, "validation", say),
        _decode(test, fit, "test", say),
        classes,
        empty,
    )


def find(section: DataSection, say: Say) -> tuple[list[Row], list[Row], list[Row], int, frozenset[int]]:
    """Returns the files of the three parts, the number of classes, and the classes without a training image."""
    refuse_keys(section, "image", "label", "shuffle")
    train_folder, test_folder = folder_of(section, "train"), folder_of(section, "test")
    classes = _classes(train_folder)
    if section.classes is not None:
        asked = [str(name) for name in section.classes]
        if strange := [name for name in classes if name not in asked]:
            raise DataError(
                f"class folder {strange[0]!r} of {train_folder} is not in data.classes: {named(asked)}"
            )
        classes = asked
    strange = sorted(set(_classes(test_folder)) - set(classes))
    if strange:
        raise DataError(
            f"class {strange[0]!r} of {test_folder} is not in {train_folder}, which has: {', '.join(classes)}"
        )
    rows, test = _files(train_folder, classes, say), _files(test_folder, classes, say)
    empty = frozenset(range(len(classes))) - {label for _, label in rows}
    if empty:
        names = [classes[label] for label in sorted(empty)]
        say(
            f"{len(empty)} of {len(classes)} classes have no training image in {train_folder}: {named(names)}; they "
            "keep their numbers"
        )
    count = validation_count(len(rows), section.validation)
    train = rows[: len(rows) - count][: section.train_limit]
    return train, rows[len(rows) - count :], test[: section.test_limit], len(classes), empty


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in OF_PROGRAMS


def _classes(folder: Path) -> list[str]:
    """Returns the names of the class folders, in order."""
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not _hidden(p.name))
    if not names:
        raise DataError(f"{folder} holds no class folder; it must hold one folder of images for each class")
    return names


def _files(folder: Path, classes: Sequence[str], say: Say) -> list[Row]:
    """Returns (file, label) of every image, in the fixed order."""
    rows: list[Row] = []
    aside = sorted(p for p in folder.iterdir() if p.is_dir() and _hidden(p.name))
    hidden = [path for place in aside for path in sorted(_images(place))]
    for label, name in sorted(
        enumerate(classes), key=lambda numbered: numbered[1]
    ):  # whatever their numbers are
        for path in sorted(_images(folder / name)):
            if any(map(_hidden, path.relative_to(folder).parts)):
                hidden.append(path)
            else:
                rows.append((path, label))
    if hidden:
        shown = named([path.relative_to(folder) for path in hidden[:3]])
        say(f"{len(hidden)} hidden files in {folder} are left out ({shown})")
    if not rows:
        raise DataError(f"{folder} holds no image; known suffixes: {', '.join(SUFFIXES)}")
    order = np.random.default_rng(ORDER_SEED).permutation(len(rows))
    return [rows[i] for i in order]


def _images(folder: Path) -> Iterator[Path]:
    """Yields the image files of a folder and those in it, links followed, each folder once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in files if name.lower().endswith(SUFFIXES))


def _decode(rows: list[Row], fit: Fit | None, part: str, say: Say) -> Split:
    images = decode([path for path, _ in rows], [str(path) for path, _ in rows], fit, part=part, say=say)
    return Split(images, np.array([label for _, label in rows], np.int64))
