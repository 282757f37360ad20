"""Data sets: `load` returns three disjoint parts, `batches` turns a part into network input."""

import logging

from prunefront.pipelines.config.imported import call, import_callable
from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data import digits, folder, parquet
from prunefront.pipelines.data.arrays import Arrays, SearchData, Splits
from prunefront.pipelines.data.batches import batches
from prunefront.pipelines.data.checks import check_splits, count_classes, transform_for
from prunefront.pipelines.data.samples import Batch, DataSet, Inputs, Part, Parts, Samples
from prunefront.pipelines.data.source import FILE_KEYS, Loaded, Say, refuse_keys, split_validation
from prunefront.pipelines.data.splits import DataError, Split, Transform
from prunefront.pipelines.data.stream.datasets import OwnData, own_part
from prunefront.pipelines.data.stream.opening import open_stream, wants_stream
from prunefront.pipelines.data.tensors import Tensors

log = logging.getLogger(__name__)

__all__ = [
    "Arrays",
    "Batch",
    "DataError",
    "DataSet",
    "Inputs",
    "OwnData",
    "Part",
    "Parts",
    "Samples",
    "SearchData",
    "Split",
    "Splits",
    "Tensors",
    "Transform",
    "batches",
    "load",
    "open_data",
    "sources",
]

sources = {"digits": digits.load, "parquet": parquet.load, "folder": folder.load}
"""Name -> built-in source, which takes the section `data` and where to say what it found, and returns `Loaded`."""


SETTLED = {"mean", "std", "augment", "padding", "validation"}
"""Keys that a source settles which returns whole parts."""


def open_data(section: DataSection, *, say: Say = log.warning) -> Splits | Parts:
    """Returns the data set that a study file asks for: in memory as `load` does, or as a stream where it would not fit.

    A `module:callable` source may return what `load` takes, `Parts`, or a tuple of torch data sets or loaders: (train,
    validation, test). Raises DataError for data that cannot be used.
    """
    return open_stream(section, say) if wants_stream(section) else _loaded(section, say)


def _changed(section: DataSection, keys: set[str]) -> list[str]:
    """Returns those of the keys that are not at their defaults. A study that was kept names every key."""
    return sorted(key for key in keys if getattr(section, key) != DataSection.model_fields[key].default)


def _own_parts(returned: tuple[object, ...], section: DataSection) -> Parts:
    """Returns the parts of a tuple of torch data sets or loaders. Raises DataError for another number of them."""
    if len(returned) != 3:
        raise DataError(
            f"{section.source!r} returned {len(returned)} data sets; it must return three: (train, validation, test)"
        )
    names = ("train", "validation", "test")
    parts = [
        own_part(one, f"the {name} part of {section.source!r}")
        for one, name in zip(returned, names, strict=True)
    ]
    if ignored := _changed(section, SETTLED):
        raise DataError(
            f"data.{ignored[0]} is for images; data sets of {section.source!r} settle it themselves"
        )
    train, validation, test = parts
    return Parts(
        train if section.train_limit is None else train.first(section.train_limit),
        validation,
        test if section.test_limit is None else test.first(section.test_limit),
    )


def _returned(section: DataSection) -> object:
    """Returns what a `module:callable` source returns."""
    refuse_keys(section, *FILE_KEYS)
    function = import_callable(section.source, key="data.source")
    return call(function, section.options, key="data.source", spec=section.source)


def load(section: DataSection, *, say: Say = log.warning) -> Splits:
    """Returns the data set that a study file asks for, checked. Raises DataError for data that cannot be used.

    say: takes each line on how data were read that are not in their plain form.

    A `module:callable` source is called with `section.options`. It returns `Splits`, or a tuple of `Split`: (train,
    validation, test), or (train, test), whose last training images become validation.
    """
    found = _loaded(section, say)
    if not isinstance(found, Splits):
        raise DataError(f"{section.source!r} returns Parts, and this needs all images in memory")
    return found


def _loaded(section: DataSection, say: Say) -> Splits | Parts:
    if section.stream or section.source == "webdataset":
        raise DataError(
            f"data.source = {section.source!r} is read as a stream here, and this needs all images in memory; remove "
            "data.stream, or give fewer images"
        )
    if section.source in sources:
        if section.options:
            raise DataError(
                f"data.options are for a module:callable source; {section.source!r} takes none, "
                f"got {', '.join(section.options)}"
            )
        return _finish(sources[section.source](section, say), section)
    if ":" not in section.source:
        raise DataError(
            f"data.source = {section.source!r} is unknown; "
            f"possible: {', '.join(sources)}, webdataset, or 'module:callable'"
        )
    return _accept(_returned(section), section)


def _accept(returned: object, section: DataSection) -> Splits | Parts:
    """Returns the checked data of the value that a user's callable returned. Raises DataError for another value."""
    if isinstance(returned, Parts):
        if ignored := _changed(section, {*SETTLED, "train_limit", "test_limit"}):
            raise DataError(
                f"{section.source!r} returns Parts, which settle data.{ignored[0]} themselves; remove that key"
            )
        if returned.test is None:
            raise DataError(f"{section.source!r} returns Parts without a test part")
        return returned
    if isinstance(returned, Splits):
        if ignored := _changed(section, SETTLED):
            raise DataError(
                f"{section.source!r} returns Splits, which settle data.{ignored[0]} themselves; "
                "remove that key, or return a tuple of Split"
            )
        return check_splits(
            Splits(
                returned.train[: section.train_limit],
                returned.validation,
                returned.test[: section.test_limit],
                returned.transform,
                returned.classes,
            )
        )
    if (
        isinstance(returned, tuple)
        and len(returned) in (2, 3)
        and all(isinstance(part, Split) for part in returned)
    ):
        if len(returned) == 2:
            return _finish(Loaded(*split_validation(returned[0], section.validation), returned[1]), section)
        if section.validation is not None:
            raise DataError(f"{section.source!r} returns its own validation part; remove data.validation")
        return _finish(Loaded(*returned), section)
    if isinstance(returned, tuple) and returned and not isinstance(returned[0], Split):
        return _own_parts(returned, section)
    raise DataError(
        f"{section.source!r} returned a {type(returned).__name__}; it must return prunefront.pipelines.data.Splits, "
        "Parts, or a tuple of prunefront.pipelines.data.Split: (train, validation, test) or (train, test)"
    )


def _finish(loaded: Loaded, section: DataSection) -> Splits:
    train, test = loaded.train[: section.train_limit], loaded.test[: section.test_limit]
    transform = transform_for(
        train, mean=section.mean, std=section.std, augment=section.augment, padding=section.padding
    )
    classes = count_classes(train) if loaded.classes is None else loaded.classes
    return check_splits(Splits(train, loaded.validation, test, transform, classes), empty=loaded.empty)
