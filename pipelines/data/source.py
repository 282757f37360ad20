"""What a data source hands over, and how validation images are set aside."""

from pathlib import Path

from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data.cache import fetched
from prunefront.pipelines.data.splits import DataError, Split

Parts = tuple[Split, Split, Split]
"""train, validation, test."""


def validation_count(rows: int, asked: int | None) -> int:
    """How many of `rows` training images are set aside. Raises DataError when none would be left."""
    count = max(1, rows // 6) if asked is None else asked
    if count >= rows:
        raise DataError(
            f"data.validation = {count} would take all of the {rows} training images; "
            f"at most {max(0, rows - 1)} can be set aside"
        )
    return count


def set_aside(rest: Split, asked: int | None) -> tuple[Split, Split]:
    """(train, validation): the last `asked` images, by default a sixth, become validation."""
    count = validation_count(len(rest), asked)
    return rest[: len(rest) - count], rest[len(rest) - count :]


def path_of(section: DataSection, key: str, kind: str) -> Path:
    """The path under data.`key`, which must exist and be a `kind` ("file" or "folder"); of an object in S3, its copy on
    this machine. Raises DataError."""
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
        return fetched(given, section.endpoint_url, key=f"data.{key}")
    if not given.exists():
        raise DataError(f"data.{key}: there is no {kind} {given}")
    if given.is_dir() != (kind == "folder"):
        raise DataError(f"data.{key}: {given} is not a {kind}, which data.source = {section.source!r} needs")
    return given
