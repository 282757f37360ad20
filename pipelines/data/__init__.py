"""Data sets: `load` gives three disjoint parts, `batches` turns a part into network input."""

from prunefront.pipelines.config.imported import call, import_callable
from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data import digits, folder, parquet
from prunefront.pipelines.data.batches import batches
from prunefront.pipelines.data.checks import checked, count_classes, transform_for
from prunefront.pipelines.data.source import set_aside
from prunefront.pipelines.data.splits import DataError, SearchData, Split, Splits, Transform

__all__ = ["DataError", "SearchData", "Split", "Splits", "Transform", "batches", "load", "sources"]

sources = {"digits": digits.load, "parquet": parquet.load, "folder": folder.load}
"""Built-in sources, by name: data section in, (train, validation, test) out."""


def load(section: DataSection) -> Splits:
    """The data set that a study file asks for, checked. Raises DataError for data that cannot be used.

    A `module:callable` source is called with `section.options` and returns `Splits`, or a tuple of `Split`:
    (train, validation, test) or (train, test), of which the last training images are then set aside.
    """
    if section.source in sources:
        if section.options:
            raise DataError(
                f"data.options are for a module:callable source; {section.source!r} takes none, "
                f"got {', '.join(section.options)}"
            )
        train, validation, test = sources[section.source](section)
        return _finish(train, validation, test, section)
    if ":" not in section.source:
        raise DataError(
            f"data.source = {section.source!r} is unknown; "
            f"possible: {', '.join(sources)}, or 'module:callable'"
        )
    function = import_callable(section.source, key="data.source")
    return _accept(call(function, section.options, key="data.source", spec=section.source), section)


def _accept(made: object, section: DataSection) -> Splits:
    """What a user's callable returned, as checked Splits."""
    if isinstance(made, Splits):
        ignored = sorted(section.model_fields_set & {"mean", "std", "augment", "padding", "validation"})
        if ignored:
            raise DataError(
                f"{section.source!r} returns Splits, which say all that data.{ignored[0]} says; "
                "remove that key, or return a tuple of Split"
            )
        return checked(
            Splits(
                made.train[: section.train_limit],
                made.validation,
                made.test[: section.test_limit],
                made.transform,
                made.classes,
            )
        )
    if isinstance(made, tuple) and len(made) in (2, 3) and all(isinstance(part, Split) for part in made):
        if len(made) == 2:
            return _finish(*set_aside(made[0], section.validation), made[1], section)
        if section.validation is not None:
            raise DataError(f"{section.source!r} returns its own validation part; remove data.validation")
        train, validation, test = made
        return _finish(train, validation, test, section)
    raise DataError(
        f"{section.source!r} returned a {type(made).__name__}; it must return prunefront.pipelines.data.Splits, "
        "or a tuple of prunefront.pipelines.data.Split: (train, validation, test) or (train, test)"
    )


def _finish(train: Split, validation: Split, test: Split, section: DataSection) -> Splits:
    train, test = train[: section.train_limit], test[: section.test_limit]
    transform = transform_for(
        train, mean=section.mean, std=section.std, augment=section.augment, padding=section.padding
    )
    return checked(Splits(train, validation, test, transform, count_classes(train)))
