"""Opens folders and shards as streams: parts, channels, statistics of pixels, checks that need no whole pass."""

import os
import shutil
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data import folder, parquet
from prunefront.pipelines.data.cache import cache_folder
from prunefront.pipelines.data.checks import LEAK_LIMIT, check_labels, check_order, pixel_statistics
from prunefront.pipelines.data.decode import Fit, free_memory, upright
from prunefront.pipelines.data.labels import number
from prunefront.pipelines.data.parquet import ORDER_SEED
from prunefront.pipelines.data.samples import Parts
from prunefront.pipelines.data.source import Say, files_of, validation_count
from prunefront.pipelines.data.splits import DataError, Split, Transform
from prunefront.pipelines.data.stream.encoded import Encoded
from prunefront.pipelines.data.stream.image_cache import ImageCache
from prunefront.pipelines.data.stream.images import Streamed
from prunefront.pipelines.data.stream.shards import packed
from prunefront.reading import read_bytes

SHARE = 0.25
"""Share of the free memory that decoded images may take before they are streamed."""

LOADERS = 2
"""Most loader processes of a worker, unless the study file names another number."""

DISK_SHARE = 0.1
"""Share of the free disk space that decoded images may take, unless the study file says how much."""

LOOKED_AT = 256
"""Most training images from which mean and standard deviation of pixels are found."""

CHANNELS_OF = 16
"""Most training images that are looked at for colours."""

MOST_COMPARED = 64
"""Most training images of the same number of bytes that a held-out one is compared with."""

LEAKS = 100
"""Held-out images that are compared with training images: those of the same number of bytes."""

STREAMS = ("folder", "parquet", "webdataset")
"""Sources that can be streams."""


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Images of one set of files, their labels as numbers, and the rows of each part."""

    held: Encoded
    labels: NDArray[np.int64]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: tuple[Encoded, NDArray[np.int64], NDArray[np.int64]]
    classes: int | None
    empty: frozenset[int]


def wants_stream(section: DataSection) -> bool:
    """Tells whether a study file's data are read as a stream: it says so, or the decoded images would not fit.

    Raises DataError where it asks for a stream of a source that cannot be one.
    """
    if section.source not in STREAMS:
        return False
    if section.stream is None:
        return section.source == "webdataset" or _decoded_bytes(section) > SHARE * free_memory()
    return section.stream


def open_stream(section: DataSection, say: Say) -> Parts:
    """Returns the parts of a data set as streams, checked as far as a few images tell. Raises DataError.

    All labels are checked; held-out images that are also training images are looked for among a few; pixels are checked
    when they are decoded.
    """
    if section.padding and section.size is not None and "padding" in section.model_fields_set:
        raise DataError(
            "data.padding shifts images that have one size; with data.size, crops are drawn from larger ones"
        )
    found = _folder(section, say) if section.source == "folder" else _shards(section, say)
    test, test_labels, test_rows = found.test
    labels = {
        "training": found.labels[found.train],
        "validation": found.labels[found.validation],
        "test": test_labels[test_rows],
    }
    check_order(labels["training"], labels["validation"])
    classes = int(labels["training"].max()) + 1 if found.classes is None else found.classes
    check_labels(labels, classes, found.empty)
    fit = Fit.of(section)
    channels, height, width = _shape(found.held, found.train, fit)
    most = _most_cached(section)

    def part(held: Encoded, of: NDArray[np.int64], rows: NDArray[np.int64], transform: Transform) -> Streamed:
        name = f"{held.version}-{fit.resize if fit else 0}.pixels"  # earlier versions resized otherwise: .decoded
        cache = ImageCache(cache_folder() / name, most) if most else None
        loaders = min(LOADERS, len(os.sched_getaffinity(0))) if section.loaders is None else section.loaders
        return Streamed(held, of, rows, transform, (channels, height, width), fit, cache, loaders)

    plain = part(found.held, found.labels, found.train, Transform((0.0,) * channels, (1.0,) * channels))
    transform = _transform(plain, section, say)
    parts = Parts(
        train=replace(plain, transform=transform),
        validation=replace(plain, transform=transform, rows=found.validation),
        test=part(test, test_labels, test_rows, transform),
        classes=classes,
        input_shape=(channels, height, width),
    )
    _check_leaks(found, say)
    say(
        f"images are decoded while they are used, by {plain.loaders} processes a worker; "
        + (
            f"up to {most / 1e9:.1f} GB of decoded ones are kept in {cache_folder()}"
            if most
            else "none is kept"
        )
    )
    return parts


def _folder(section: DataSection, say: Say) -> _Found:
    train, validation, test, classes, empty = folder.find(section, say)
    held, labels = _of_files([*train, *validation])
    return _Found(
        held,
        labels,
        np.arange(len(train)),
        np.arange(len(train), len(labels)),
        (*_of_files(test), np.arange(len(test))),
        classes,
        empty,
    )


def _of_files(rows: list[folder.Row]) -> tuple[Encoded, NDArray[np.int64]]:
    return Encoded.files([path for path, _ in rows]), np.array([label for _, label in rows], np.int64)


def _shards(section: DataSection, say: Say) -> _Found:
    held, raw = packed(section, "train")
    test, test_raw = packed(section, "test")
    labels, test_labels, classes = number(raw, test_raw, section.classes, say)
    order = np.arange(len(held))
    if section.shuffle:
        order = np.random.default_rng(ORDER_SEED).permutation(len(order))
    count = validation_count(len(order), section.validation)
    return _Found(
        held,
        labels,
        order[: len(order) - count][: section.train_limit],
        order[len(order) - count :],
        (test, test_labels, np.arange(len(test))[: section.test_limit]),
        classes,
        frozenset(),
    )


def _decoded_bytes(section: DataSection) -> int:
    """Returns about how many bytes all images take decoded: each as many as the first one."""
    if section.source == "folder":
        places = folder.find(section, lambda line: None)
        count = sum(map(len, places[:3]))
        first, name = read_bytes(places[0][0][0]), str(places[0][0][0])
    else:
        count, first, name = 0, b"", ""
        for path, shown in (*files_of(section, "test"), *files_of(section, "train")):
            rows, first, name = *parquet.glance(path, shown, section), shown
            count += rows
    height, width, channels = upright(first, name, Fit.of(section)).pixels.shape
    side = (section.size,) * 2 if section.size is not None else (height, width)
    return int(count * side[0] * side[1] * channels)


def _shape(held: Encoded, rows: NDArray[np.int64], fit: Fit | None) -> tuple[int, int, int]:
    """Returns (c, h, w): three channels where one of a few images has colours; without `fit`, the first one's size."""
    few = rows[:: max(1, -(-len(rows) // CHANNELS_OF))].tolist()
    shapes = [upright(held.read(row), held.name(row), fit).pixels.shape for row in few]
    height, width = shapes[0][:2] if fit is None else (fit.size, fit.size)
    return max(channels for _, _, channels in shapes), height, width


def _transform(train: Streamed, section: DataSection, say: Say) -> Transform:
    """Returns the transform that a study file asks for; without mean or std there, some training images give them."""
    mean, std = section.mean, section.std
    if mean is None or std is None:
        rows = train.rows[:: max(1, -(-len(train.rows) // LOOKED_AT))]
        images = np.stack([train.image(row, None) for row in rows.tolist()])
        own_mean, own_std = pixel_statistics(Split(images, np.zeros(len(rows), np.int64)))
        mean, std = own_mean if mean is None else mean, own_std if std is None else std
        say(f"mean and std of pixels are those of {len(rows):,} training images")
    channels = train.shape[0]
    if len(mean) != channels:
        raise DataError(
            f"mean and std have {len(mean)} values, the images have {channels} channels; give one value per channel, "
            "or leave both out"
        )
    return Transform(mean, std, section.augment, 0 if train.fit else section.padding)


def _most_cached(section: DataSection) -> int:
    """Returns how many bytes of decoded images are kept on disk."""
    if section.cache_gb is not None:
        return int(section.cache_gb * 1e9)
    place = next(p for p in (cache_folder(), *cache_folder().parents) if p.exists())
    return int(DISK_SHARE * shutil.disk_usage(place).free)


def _check_leaks(found: _Found, say: Say) -> None:
    """Raises DataError where some held-out images are also training images, by their bytes."""
    of_size: dict[int, list[int]] = {}
    for row in found.train.tolist():
        of_size.setdefault(int(found.held.lengths[row]), []).append(row)
    test, _, test_rows = found.test
    for name, held, rows in (("validation", found.held, found.validation), ("test", test, test_rows)):
        few = rows[:: max(1, -(-len(rows) // LEAKS))].tolist()
        shared = 0
        for row in few:
            same = of_size.get(int(held.lengths[row]), ())
            content = held.read(row) if same else b""
            shared += any(found.held.read(other) == content for other in same[:MOST_COMPARED])
        if shared > max(1, LEAK_LIMIT * len(few)):
            raise DataError(
                f"{shared} of {len(few)} {name} images are also training images, so quality would mean nothing; "
                "give different images"
            )
        if shared:
            say(f"{shared} of {len(few)} {name} images is also a training image")
