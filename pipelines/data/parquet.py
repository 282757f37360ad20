"""Parquet files in the Hugging Face image layout: `img` or `image` = {bytes, path}, and `label`, integers or texts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data.decode import Fit, decode, machine_memory
from prunefront.pipelines.data.labels import Labels, number
from prunefront.pipelines.data.source import Loaded, Say, files_of, validation_count
from prunefront.pipelines.data.splits import DataError, Split
from prunefront.text import one_line

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMN = "label"
BATCH = 256
"""Number of rows that are read at a time."""

ORDER_SEED = 20_240_229
"""Seed of the fixed order that `data.shuffle` asks for."""


def load(section: DataSection, say: Say) -> Loaded:
    """Returns the first rows of the train files, their last ones as validation, and the first rows of the test files.

    Validation rows are set aside before `train_limit` is applied, so that it does not change them. Only the rows that
    are used are decoded. Raises DataError for a missing file or column, other types, and undecodable images.
    """
    rows, test = _part(section, "train"), _part(section, "test")
    train_labels, test_labels, classes = number(rows.labels, test.labels, section.classes, say)
    order = np.arange(len(rows.names))
    if section.shuffle:
        order = np.random.default_rng(ORDER_SEED).permutation(len(order))
    count = validation_count(len(order), section.validation)
    train, validation = order[: len(order) - count][: section.train_limit], order[len(order) - count :]
    asked = np.arange(len(test.names))[: section.test_limit]
    fit = Fit.of(section)
    return Loaded(
        _decode(rows, train_labels, train, fit, "training", say),
        _decode(rows, train_labels, validation, fit, "validation", say),
        _decode(test, test_labels, asked, fit, "test", say),
        classes,
    )


class _Rows:
    """Rows of one or several files. images: encoded; names: name of each row in an error."""

    def __init__(self, tables: Sequence[tuple[pa.Table, str]]) -> None:
        self.images = pa.chunked_array([c for t, _ in tables for c in t["image"].chunks])
        self.names = [f"row {i} of {name}" for table, name in tables for i in range(len(table))]
        self.labels: Labels = _joined([labels_of(table["label"], name) for table, name in tables])


def _part(section: DataSection, key: str) -> _Rows:
    """Returns the rows of the files under data.`key`, in their order."""
    tables: list[tuple[pa.Table, str]] = []
    left = machine_memory() // 2  # the other half is for the decoded ones
    for file, name in files_of(section, key):
        table = _open(file, name, section.image, section.label, left)
        left -= table.nbytes
        tables.append((table, name))
    return _Rows(tables)


def _joined(labels: Sequence[Labels]) -> Labels:
    if all(isinstance(one, np.ndarray) for one in labels):
        return np.concatenate(labels)
    return [
        label for one in labels for label in (map(str, one.tolist()) if isinstance(one, np.ndarray) else one)
    ]


def _open(
    file: Path, name: str, image: str | None = None, label: str | None = None, most: int | None = None
) -> pa.Table:
    """Returns the columns `image` (binary) and `label` of a parquet file. name: its name in an error.

    image, label: the columns that a study file names. most: bytes that they may take; None = half of the memory.
    """
    try:
        with pq.ParquetFile(file) as opened:
            column, labels = columns_of(opened.schema_arrow.names, image, label, name)
            table = _read(opened, [column, labels], name, machine_memory() // 2 if most is None else most)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{name} cannot be read as parquet: {one_line(error)}") from error
    if len(table) == 0:
        raise DataError(f"{name} holds no row")
    if table[labels].null_count:
        raise DataError(f"{name}: {table[labels].null_count} rows have no label")
    return pa.table({"image": image_bytes(table[column], column, name), "label": table[labels]})


def columns_of(names: Sequence[str], image: str | None, label: str | None, file: str) -> tuple[str, str]:
    """Returns the columns of images and labels, see `_open`. Raises DataError where one is absent."""
    return (
        _column(names, "image", image, IMAGE_COLUMNS, file),
        _column(names, "label", label, (LABEL_COLUMN,), file),
    )


def glance(file: Path, name: str, section: DataSection) -> tuple[int, bytes]:
    """Returns the number of rows of a file and its first image, encoded, without reading the rest."""
    try:
        with pq.ParquetFile(file) as opened:
            column, _ = columns_of(opened.schema_arrow.names, section.image, section.label, name)
            for batch in opened.iter_batches(1, columns=[column]):
                (first,) = image_bytes(pa.Table.from_batches([batch])[column], column, name).to_pylist()
                return opened.metadata.num_rows, first
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{name} cannot be read as parquet: {one_line(error)}") from error
    raise DataError(f"{name} holds no row")


def _column(names: Sequence[str], key: str, asked: str | None, usual: Sequence[str], file: str) -> str:
    """Returns the name of a column: the one asked for, or the usual one. Raises DataError where it is absent."""
    found = next((c for c in ((asked,) if asked else usual) if c in names), None)
    if found is None:
        absent = " or ".join(map(repr, (asked,) if asked else usual))
        raise DataError(
            f"{file} has no column {absent}; set data.{key} to one of its columns: {', '.join(names) or 'none'}"
        )
    return found


def labels_of(column: pa.ChunkedArray, name: str) -> Labels:
    """Returns a column's labels as int64 or texts. Raises DataError for another type."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pa.types.is_integer(column.type):
        numbers: NDArray[np.int64] = column.to_numpy().astype(np.int64)
        return numbers
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts: list[str] = column.to_pylist()
        return texts
    raise DataError(f"{name}: labels must be integers or texts, got {column.type}")


def _read(file: pq.ParquetFile, columns: list[str], name: str, most: int) -> pa.Table:
    """Reads columns a few rows at a time, since some bytes can claim to hold any number of rows.

    Raises DataError where they take more than `most` bytes, which are part of half of this machine's memory.
    """
    read: list[pa.RecordBatch] = []
    rows, taken = 0, 0
    for batch in file.iter_batches(BATCH, columns=columns):
        rows, taken = rows + len(batch), taken + batch.nbytes
        # an estimate from the rows so far: the error comes before memory is full
        if taken * max(1.0, file.metadata.num_rows / max(rows, 1)) > most:
            raise DataError(
                f"{name}: the images of its {file.metadata.num_rows:,} rows take more than the {most >> 20:,} MiB that "
                "are left of half of this machine's memory; give fewer or smaller ones"
            )
        read.append(batch)
    schema = pa.schema([file.schema_arrow.field(c) for c in columns])
    return pa.Table.from_batches(read, schema).select(columns)


def image_bytes(images: pa.ChunkedArray, column: str, name: str) -> pa.ChunkedArray:
    """Returns the encoded images of a column. Raises DataError for another type, and for rows without an image."""
    if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
        images = pa.chunked_array(
            [chunk.field("bytes") for chunk in images.chunks], images.type.field("bytes").type
        )
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        raise DataError(
            f"{name}: column {column!r} must be {{bytes, path}} or encoded images, got {images.type}"
        )
    if images.null_count:
        raise DataError(
            f"{name}: {images.null_count} rows have no image bytes, only a path; embed the images"
        )
    return images


def _decode(
    rows: _Rows, labels: NDArray[np.int64], chosen: NDArray[np.int64], fit: Fit | None, part: str, say: Say
) -> Split:
    """Returns some of the rows, decoded."""
    encoded = rows.images.take(pa.array(chosen)).to_pylist()
    return Split(decode(encoded, [rows.names[i] for i in chosen], fit, part=part, say=say), labels[chosen])
