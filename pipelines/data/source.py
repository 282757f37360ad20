"""Parts that a source returns, the files that it reads, and the split of training images into train and validation."""

import fnmatch
import glob
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data.cache import local_copy
from prunefront.pipelines.data.splits import DataError, Split

Say = Callable[[str], object]
"""Takes a line for the person who runs the study."""

WILDCARDS = "*?["
"""Characters that make a place a pattern, unless a file has that very name."""


FILE_KEYS = ("image", "label", "classes", "shuffle", "size", "resize", "stream", "loaders", "cache_gb")
"""Keys that say how files are read: only `folder` and `parquet` know them."""


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """The three parts of a data set. classes: their number where the source knows it; None = by the training labels.

    empty: classes that the source knows and that have no training image at all.
    """

    train: Split
    validation: Split
    test: Split
    classes: int | None = None
    empty: frozenset[int] = frozenset()


RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
MOST_SHARDS = 100_000
"""Most files that a range of numbers may stand for."""

SHARD = {"parquet": ".parquet", "webdataset": ".tar"}
"""Source -> how the names of its files end."""


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


def refuse_keys(section: DataSection, *keys: str) -> None:
    """Raises DataError for the first of the keys that is set, and that this source would ignore."""
    for key in keys:
        if getattr(section, key) is not None:
            raise DataError(f"data.{key} means nothing to data.source = {section.source!r}; remove it")


def folder_of(section: DataSection, key: str) -> Path:
    """Returns the folder under data.`key`. Raises DataError unless it is one folder, on this machine."""
    places = _asked(section, key, "folder")
    if len(places) > 1:
        raise DataError(
            f"data.{key} names {len(places)} places; data.source = {section.source!r} reads one folder"
        )
    (place,) = places
    if isinstance(place, str):
        raise DataError(
            f"data.{key} = {place!r}: data.source = {section.source!r} reads a folder; images in S3 come as parquet "
            "files, source = 'parquet', or tar shards, source = 'webdataset'"
        )
    if not place.exists():
        raise DataError(f"data.{key}: there is no folder {place}")
    if not place.is_dir():
        raise DataError(f"data.{key}: {place} is not a folder, which data.source = {section.source!r} needs")
    return place


def files_of(section: DataSection, key: str) -> list[tuple[Path, str]]:
    """Returns (file, its name in errors) of each file under data.`key`; an object in S3 is copied to this machine.

    Raises as `places_of`, S3Error, ArtifactNotFound.
    """
    return [(on_this_machine(section, key, place), str(place)) for place in places_of(section, key)]


def on_this_machine(section: DataSection, key: str, place: Path | str) -> Path:
    """Returns a file of `places_of`, or the copy of an object."""
    return local_copy(place, section.endpoint_url, key=f"data.{key}") if isinstance(place, str) else place


def places_of(section: DataSection, key: str) -> list[Path | str]:
    """Returns the files and the addresses of objects under data.`key`, patterns resolved, in the order of their names.

    Raises DataError for a place that is no file, and for a pattern that nothing matches.
    """
    found: list[Path | str] = []
    for place in chain.from_iterable(map(_numbered, _asked(section, key, "file"))):
        if isinstance(place, str):
            # an address that ends with "/" is all shards below it
            pattern = f"{place}*{SHARD.get(section.source, '')}" if place.endswith("/") else place
            found += _objects(pattern, section.endpoint_url, key)
        elif not place.exists() and any(c in str(place) for c in WILDCARDS):
            matching = sorted(glob.glob(str(place), recursive=True))
            if not matching:
                raise DataError(f"data.{key}: no file matches {place}")
            found += map(Path, matching)
        elif not place.exists():
            raise DataError(f"data.{key}: there is no file {place}")
        else:
            found.append(place)
    for place in found:
        if isinstance(place, Path) and not place.is_file():
            raise DataError(
                f"data.{key}: {place} is not a file, which data.source = {section.source!r} needs; for files in a "
                f"folder give a pattern, such as {place}/*{SHARD.get(section.source, '.parquet')}"
            )
    return found


def _numbered(place: Path | str) -> list[Path | str]:
    """Returns the places that `train-{000..146}.tar` stands for, as WebDataset writes it; others as they are.

    Raises DataError for more than MOST_SHARDS, and for a range that ends before it begins.
    """
    if (match := RANGE.search(str(place))) is None:
        return [place]
    first, last = match[1], match[2]
    if not int(first) <= int(last) < int(first) + MOST_SHARDS:
        raise DataError(
            f"{place} should name 1 to {MOST_SHARDS:,} files, from the smaller number to the larger"
        )
    names = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    texts = [f"{str(place)[: match.start()]}{name}{str(place)[match.end() :]}" for name in names]
    return [text if isinstance(place, str) else Path(text) for text in texts]


def _asked(section: DataSection, key: str, kind: str) -> tuple[Path | str, ...]:
    places = section.places(key)
    if not places:
        raise DataError(
            f"data.source = {section.source!r} needs data.{key}, the {kind} with the {key} images"
        )
    return places


def _objects(place: str, endpoint_url: str | None, key: str) -> list[str]:
    """Returns the addresses of the objects that an address stands for, which may be a pattern."""
    first = min((place.find(c) for c in WILDCARDS if c in place), default=-1)
    if first < 0:
        return [place]
    # here, not above: most studies have their data at hand
    from prunefront.pipelines.stores.s3 import S3Store

    prefix = place[:first].rpartition("/")[0]
    store = S3Store(prefix, endpoint_url=endpoint_url, setting=f"data.{key}")
    uris = sorted(f"{prefix}/{found.key}" for found in store.list(place[len(prefix) + 1 : first]))
    matching = [uri for uri in uris if fnmatch.fnmatchcase(uri, place)]
    if not matching:
        raise DataError(f"data.{key}: no object matches {place}; {len(uris)} begin like it")
    return matching
