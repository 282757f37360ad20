"""Parquet files and the images in them."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data import DataError, load
from tests.hostile.strategies import answered, damaged, fuzzed

# pillow tells of damaged tags in images that it reads all the same
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROWS = 24


def encoded(size: tuple[int, int] = (8, 8), mode: str = "L", format: str = "PNG", seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    shape = (*size[::-1], *((3,) if mode == "RGB" else ()))
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).convert(mode).save(buffer, format)
    return buffer.getvalue()


def written(images: Any, labels: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": labels}), buffer, **options)
    return buffer.getvalue()


LABELS = [i % 3 for i in range(ROWS)]
IMAGES = [encoded(seed=i) for i in range(ROWS)]
FILES = [
    written(pa.array(IMAGES), pa.array(LABELS)),
    written(pa.array([{"bytes": i, "path": "x"} for i in IMAGES]), pa.array(LABELS), compression="zstd"),
    written(
        pa.array(IMAGES), pa.array(LABELS), row_group_size=4, use_dictionary=False, data_page_version="2.0"
    ),
    written(pa.array(IMAGES), pa.array(LABELS, pa.uint8()), compression="gzip"),
]


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """Whole parquet files with strange columns, labels and images."""
    images: list[Any] = list(IMAGES)
    for _ in range(draw(st.integers(1, 3))):
        images[draw(st.integers(0, ROWS - 1))] = draw(
            st.one_of(
                st.none(),
                st.binary(max_size=20),
                st.sampled_from(
                    [
                        encoded((9, 8)),
                        encoded((1, 1)),
                        encoded(mode="RGB"),
                        encoded(format="JPEG"),
                        encoded(format="GIF"),
                        encoded(format="TIFF"),
                        encoded(format="BMP"),
                        b"\x89PNG\r\n\x1a\n",
                    ]
                ),
                damaged(IMAGES[0]),
                damaged(encoded(format="JPEG")),
                damaged(encoded(format="TIFF")),
                damaged(encoded(format="GIF")),
            )
        )
    labels: Any = draw(
        st.sampled_from(
            [
                pa.array(LABELS),
                pa.array([float(n) for n in LABELS]),
                pa.array([str(n) for n in LABELS]),
                pa.array([2**63 + n for n in LABELS], pa.uint64()),
                pa.array([-1, *LABELS[1:]]),
                pa.array([None, *LABELS[1:]], pa.int64()),
                pa.array([0] * ROWS),
                pa.array([10**9, *LABELS[1:]]),
                pa.array(LABELS, pa.int8()).dictionary_encode(),
                pa.array([[n] for n in LABELS]),
            ]
        )
    )
    kind = draw(st.sampled_from(["binary", "large", "struct", "dictionary", "other"]))
    column: Any = pa.array(images, pa.large_binary() if kind == "large" else pa.binary())
    if kind == "struct":
        column = pa.array([None if i is None else {"bytes": i, "path": "p"} for i in images])
    elif kind == "dictionary":
        column = column.dictionary_encode()
    elif kind == "other":
        column = draw(
            st.sampled_from([pa.array(LABELS), pa.array([[1.0]] * ROWS), pa.array([{"a": 1}] * ROWS)])
        )
    return written(column, labels, compression=draw(st.sampled_from(["none", "zstd", "snappy"])))


def test_a_file_that_unfolds_without_end_is_refused_before_it_does(tmp_path: Path) -> None:
    """One image of a megabyte, named by three million rows: some kilobytes, and three terabytes."""
    rows = 3_000_000
    indices = pa.array(np.zeros(rows, np.int32))
    images = pa.DictionaryArray.from_arrays(indices, pa.array([bytes(1 << 20)]))
    file = tmp_path / "train.parquet"
    file.write_bytes(
        written(images, pa.array(np.zeros(rows, np.int8)), compression="zstd", store_schema=False)
    )
    assert file.stat().st_size < 1 << 20
    with pytest.raises(DataError, match="half of this machine's memory"):
        load(DataSection(source="parquet", train=file, test=file))


def test_an_image_that_claims_a_billion_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    chunk = (
        struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    bomb = b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    file = tmp_path / "train.parquet"
    file.write_bytes(written(pa.array([bomb] * ROWS), pa.array(LABELS)))
    with pytest.raises(DataError, match=r"row 0 of .*(pixels|bomb)"):
        load(DataSection(source="parquet", train=file, test=file))


@given(content=st.one_of(tables(), st.sampled_from(FILES).flatmap(damaged), st.binary(max_size=64)))
@fuzzed
def test_parquet(tmp_path: Path, content: bytes) -> None:
    train, test = tmp_path / "train.parquet", tmp_path / "test.parquet"
    train.write_bytes(content)
    held_out = [encoded(seed=100 + i) for i in range(6)]
    test.write_bytes(written(pa.array(held_out), pa.array([0, 1, 2] * 2)))
    section = DataSection(source="parquet", train=train, test=test, validation=6)
    splits = answered(lambda: load(section))
    if splits is not None:
        assert splits.train.images.dtype == np.uint8
        assert {len(part.images) == len(part.labels) for part in (splits.train, splits.validation)} == {True}
