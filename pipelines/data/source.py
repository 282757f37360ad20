"""Parts that a data source returns, its files, and the split of training images into train and validation."""

from collections.abc import Callable
from pathlib import Path

from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data.cache import local_copy
from prunefront.pipelines.data.splits import DataError, Split

Say = Callable[[str], object]
"""Takes a line for the person who runs the study."""

Parts = tuple[Split, Split, Split]
"""Training, validation and test part."""


def validation_count(rows: int, wanted: int | None) -> int:
    """Returns the number of validation images, by default a sixth of `rows` training images.

    Raises DataError where no training image would be left.
    """
    count = max(1, rows // 6) if wanted is None else wanted
    if count >= rows:
        raise DataError(
            f"data.validation = {count} would take all of the {rows} training images; "
            f"at most {max(0, rows - 1)} can be set aside"
        )
    return count


def split_validation(rest: Split, wanted: int | None) -> tuple[Split, Split]:
    """Returns (train, validation): the last `wanted` images, by default a sixth, become validation."""
    count = validation_count(len(rest), wanted)
    return rest[: len(rest) - count], rest[len(rest) - count :]


def path_of(section: DataSection, key: str, kind: str) -> Path:
    """Returns the path under data.`key`; for an object in S3, the path of its copy on this machine.

    kind: "file" or "folder". Raises DataError unless the path exists and is of that kind.
    """
    given: Path | str | None = getattr(section, key)
    if given is None:
        raise DataError(
            f"data.source = {section.source!r} needs data.{key}, the {kind} with the {key} images"
        )
    if isinstance(given, str):
        if kind != "file":
            raise DataError(
                f"data.{key} = {given!r}: data.source = {section.source!r} reads a {kind}; images in S3 come as a "
                "parquet file, source = 'parquet'"
            )
        return local_copy(given, section.endpoint_url, key=f"data.{key}")
    if not given.exists():
        raise DataError(f"data.{key}: there is no {kind} {given}")
    if given.is_dir() != (kind == "folder"):
        raise DataError(f"data.{key}: {given} is not a {kind}, which data.source = {section.source!r} needs")
    return given
