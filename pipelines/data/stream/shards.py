"""Sharded files as one file of encoded images on this machine, which can be read in any order: parquet and tar."""

import hashlib
import json
import logging
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prunefront.atomic import move_whole
from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data.cache import FOLDER_VARIABLE, cache_folder, forget, locked
from prunefront.pipelines.data.folder import SUFFIXES
from prunefront.pipelines.data.labels import Labels
from prunefront.pipelines.data.parquet import BATCH, columns_of, image_bytes, labels_of
from prunefront.pipelines.data.source import on_this_machine, places_of
from prunefront.pipelines.data.splits import DataError
from prunefront.pipelines.data.stream.encoded import Encoded
from prunefront.reading import open_regular
from prunefront.text import one_line

Shard = Iterator[tuple[Sequence[bytes], Labels]]
"""Encoded images and their labels, some at a time."""

LABEL_SUFFIX = "cls"
"""Suffix of the labels in tar shards, unless `data.label` names another one."""

LONGEST_LABEL = 200
"""Most characters of a label in a tar shard."""

MOST_BYTES = 1 << 28
"""Most bytes of a file in a tar shard: some bytes can claim any size."""

NUMBER = re.compile("-?[0-9]{1,18}")
"""A label that is a number, of at most 64 bits."""

log = logging.getLogger(__name__)


def packed(section: DataSection, key: str) -> tuple[Encoded, Labels]:
    """Returns the images under data.`key` and their labels, and puts them into one file first where need be.

    Shards are read once, one after the other, a few rows at a time, so that memory stays flat; the copy of an object in
    S3 goes when it was read. The file belongs to the names, sizes and times (S3: ETags) of the shards and is kept in
    the folder of copies (`cache.cache_folder`). While another process makes it, this one waits. Raises DataError,
    S3Error, ArtifactNotFound.
    """
    read: Callable[[Path, str, DataSection], Shard] = READERS[section.source]
    shards = places_of(section, key)
    described = [_described(place, section, key) for place in shards]
    columns = (section.source, section.image, section.label)
    identity = hashlib.sha256(json.dumps([described, columns]).encode()).hexdigest()[:32]
    file = cache_folder() / f"{identity}.images"
    with locked(file.with_suffix(".lock")):
        if (found := _kept(file)) is not None:
            return found
        free, needed = shutil.disk_usage(file.parent).free, sum(size for _, size, _ in described)
        if free < needed:
            raise DataError(
                f"data.{key} has {needed:,} bytes, which are unpacked into {file.parent} to be read as a stream, and "
                f"{free:,} are free there; make room, or set {FOLDER_VARIABLE} to another folder"
            )
        log.info("unpacking %d shards of data.%s to %s", len(shards), key, file)
        part = file.with_suffix(".part")
        try:
            _write(part, file, _in_turn(shards, read, section, key))
        finally:
            part.unlink(missing_ok=True)
        made = _kept(file)
    assert made is not None  # it was just written, and nobody else may meanwhile
    return made


def _described(place: Path | str, section: DataSection, key: str) -> tuple[str, int, str]:
    """Returns name, bytes and version of a shard."""
    if isinstance(place, Path):
        stat = place.stat()
        return str(place), stat.st_size, str(stat.st_mtime_ns)
    # here, not above: most studies have their data at hand
    from prunefront.pipelines.stores.s3 import S3Store

    prefix, _, name = place.rpartition("/")
    version = S3Store(prefix, endpoint_url=section.endpoint_url, setting=f"data.{key}").version(name)
    return place, version.size_bytes, version.etag


def _in_turn(
    shards: Sequence[Path | str],
    read: Callable[[Path, str, DataSection], Shard],
    section: DataSection,
    key: str,
) -> Iterator[tuple[Shard, str]]:
    """Yields each shard and its name; of those in S3 one is on this machine at a time."""
    for place in shards:
        path = on_this_machine(section, key, place)
        yield read(path, str(place), section), str(place)
        if isinstance(place, str):
            forget(path)


def _write(part: Path, file: Path, shards: Iterator[tuple[Shard, str]]) -> None:
    """Writes the images one after the other, and then, which says that they are whole, where each ends."""
    lengths: list[int] = []
    texts: list[str] = []
    numbers: list[int] = []
    digest = hashlib.blake2b(digest_size=16)
    with part.open("wb") as out:
        for shard, name in shards:
            for images, labels in shard:
                for image in images:
                    out.write(image)
                    digest.update(image)
                lengths += map(len, images)
                if isinstance(labels, np.ndarray):
                    numbers += labels.tolist()
                else:
                    texts += labels
            if texts and numbers:
                raise DataError(
                    f"labels of {name} and those of earlier shards are texts and integers; give them one form"
                )
    if not lengths:
        raise DataError("the shards hold no image")
    move_whole(part, file)
    index = file.with_suffix(".part")
    with index.open("wb") as out:
        np.savez(out, ends=np.cumsum(lengths), labels=np.array(texts or numbers), digest=digest.hexdigest())
    move_whole(index, file.with_suffix(".npz"))


def _kept(file: Path) -> tuple[Encoded, Labels] | None:
    """Returns what an earlier process wrote; None where it is not there, or not whole."""
    try:
        with np.load(file.with_suffix(".npz"), allow_pickle=False) as index:
            ends, labels, digest = index["ends"], index["labels"], str(index["digest"])
        if file.stat().st_size != ends[-1]:
            return None
    except (OSError, ValueError, KeyError):
        return None
    return Encoded.ranges(file, ends, digest), labels.astype(
        np.int64
    ) if labels.dtype.kind == "i" else labels.tolist()


def _parquet(path: Path, name: str, section: DataSection) -> Shard:
    """Yields the rows of a parquet file."""
    try:
        with pq.ParquetFile(path) as opened:
            image, label = columns_of(opened.schema_arrow.names, section.image, section.label, name)
            for batch in opened.iter_batches(BATCH, columns=[image, label]):
                table = pa.Table.from_batches([batch])
                if table[label].null_count:
                    raise DataError(f"{name}: {table[label].null_count} rows have no label")
                yield image_bytes(table[image], image, name).to_pylist(), labels_of(table[label], name)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{name} cannot be read as parquet: {one_line(error)}") from error


def _tar(path: Path, name: str, section: DataSection) -> Shard:
    """Yields the samples of a tar file as webdataset has them: their files have one name before the first dot."""
    wanted = section.label or LABEL_SUFFIX
    sample, image, label = "", None, None

    def ended() -> tuple[list[bytes], Labels]:
        if image is None or label is None:
            absent = (
                "an image" if image is None else f"a file .{wanted}, its label (data.label names its suffix)"
            )
            raise DataError(f"sample {sample!r} of {name} has not {absent}")
        text = label.decode(errors="replace").strip()
        if len(text) > LONGEST_LABEL:
            raise DataError(
                f"the label of sample {sample!r} of {name} has more than {LONGEST_LABEL} characters"
            )
        return [image], np.array([int(text)]) if NUMBER.fullmatch(text) else [text]

    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                base = os.path.basename(member.name)
                if not member.isfile() or base.startswith("."):
                    continue
                stem, _, suffix = base.partition(".")
                key = os.path.join(os.path.dirname(member.name), stem)
                if key != sample:
                    if sample:
                        yield ended()
                    sample, image, label = key, None, None
                if member.size > MOST_BYTES:
                    raise DataError(
                        f"{member.name!r} of {name} claims {member.size:,} bytes; at most {MOST_BYTES:,} are read"
                    )
                opened = tar.extractfile(member)
                if opened is None:
                    continue
                if suffix == wanted:
                    label = opened.read()
                elif (section.image and suffix == section.image) or (
                    not section.image and f".{suffix.lower()}".endswith(SUFFIXES)
                ):
                    image = opened.read()
        if sample:
            yield ended()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{name} cannot be read as tar: {one_line(error)}") from error


READERS: dict[str, Callable[[Path, str, DataSection], Shard]] = {"parquet": _parquet, "webdataset": _tar}
"""Name of a source -> what reads one of its shards."""
