"""Parquet files in the Hugging Face image layout: `img` or `image` = {bytes, path}, and an integer `label`."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data.decode import decode, machine_memory
from prunefront.pipelines.data.source import Parts, path_of, validation_count
from prunefront.pipelines.data.splits import DataError, Split
from prunefront.text import one_line

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMN = "label"
BATCH = 256
"""Number of rows that are read at a time."""


def load(section: DataSection) -> Parts:
    """Returns the first rows of the train file, its last ones as validation, and the first rows of the test file.

    Validation rows are set aside before `train_limit` is applied, so that it does not change them. Only the rows that
    are used are decoded. Raises DataError for a missing file or column, other types, and undecodable images.
    """
    rows = _open(path_of(section, "train", "file"), f"{section.train}")
    test = _open(path_of(section, "test", "file"), f"{section.test}")
    count = validation_count(len(rows), section.validation)
    train = rows.slice(0, len(rows) - count).slice(0, section.train_limit)
    validation = rows.slice(len(rows) - count)
    return (
        _decode(train, f"{section.train}", 0),
        _decode(validation, f"{section.train}", len(rows) - count),
        _decode(test.slice(0, section.test_limit), f"{section.test}", 0),
    )


def _open(file: Path, name: str) -> pa.Table:
    """Returns the columns `image` (binary) and `label` of a parquet file. name: its name in an error."""
    try:
        with pq.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            column = next((c for c in IMAGE_COLUMNS if c in schema.names), None)
            if column is None or LABEL_COLUMN not in schema.names:
                absent = " or ".join(map(repr, IMAGE_COLUMNS)) if column is None else repr(LABEL_COLUMN)
                raise DataError(
                    f"{name} has no column {absent}; its columns: {', '.join(schema.names) or 'none'}"
                )
            table = _read(opened, [column, LABEL_COLUMN], name)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{name} cannot be read as parquet: {one_line(error)}") from error
    if not pa.types.is_integer(table.schema.field(LABEL_COLUMN).type):
        raise DataError(
            f"{name}: labels must be integers 0..k-1, got {table.schema.field(LABEL_COLUMN).type}"
        )
    if len(table) == 0:
        raise DataError(f"{name} holds no row")
    if table[LABEL_COLUMN].null_count:
        raise DataError(f"{name}: {table[LABEL_COLUMN].null_count} rows have no label")
    return pa.table({"image": _bytes(table[column], column, name), "label": table[LABEL_COLUMN]})


def _read(file: pq.ParquetFile, columns: list[str], name: str) -> pa.Table:
    """Reads columns a few rows at a time, since some bytes can claim to hold any number of rows.

    Raises DataError where they take more than half of this machine's memory.
    """
    read: list[pa.RecordBatch] = []
    rows, taken, most = 0, 0, machine_memory() // 2  # the other half is for the decoded ones
    for batch in file.iter_batches(BATCH, columns=columns):
        rows, taken = rows + len(batch), taken + batch.nbytes
        # an estimate from the rows so far: the error comes before memory is full
        if taken * max(1.0, file.metadata.num_rows / max(rows, 1)) > most:
            raise DataError(
                f"{name}: the images of its {file.metadata.num_rows:,} rows take more than the {most >> 20:,} MiB that "
                "are half of this machine's memory; give fewer or smaller ones"
            )
        read.append(batch)
    schema = pa.schema([file.schema_arrow.field(c) for c in columns])
    return pa.Table.from_batches(read, schema).select(columns)


def _bytes(images: pa.ChunkedArray, column: str, name: str) -> pa.ChunkedArray:
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


def _decode(table: pa.Table, name: str, first: int) -> Split:
    """Returns the decoded rows. first: number of the first one in its file."""
    names = [f"row {first + i} of {name}" for i in range(len(table))]
    images = decode(table["image"].to_pylist(), names)
    return Split(images, table["label"].to_numpy().astype(np.int64))
