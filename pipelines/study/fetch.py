"""Fetches the network of a front that is best within bounds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.fetch import fetch, read_stored_front
from prunefront.pipelines.artifacts.manifest import MANIFEST, artifact_uri
from prunefront.pipelines.fronts.choice import best_row, find_row
from prunefront.pipelines.fronts.row import FrontRow, read_rows
from prunefront.pipelines.journal.layout import FRONT, STUDY
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.store import ArtifactNotFound
from prunefront.pipelines.study.find import exists, find, read_front


def fetch_best(
    source: str,
    under: Mapping[str, float],
    best: str | None,
    key: str | None,
    out: Path,
    endpoint_url: str | None,
    require: Sequence[str] = (),
) -> tuple[FrontRow | None, Path]:
    """Fetches one network into `out`; returns its row (None for a bare artifact URI) and the folder.

    source: a study, the root of an artifact store that holds a front.json, or the URI of one artifact. under, best,
    key, require: the row with that key, else the one that is best within the bounds, see `fronts.choice`. Raises
    PrunefrontError where there is no such network, and for bounds or a key where `source` is one artifact.
    """
    if exists(Path(source) / MANIFEST):
        return None, _fetch_artifact(source, under or require, key, out, endpoint_url)
    if is_store(source):
        store = open_store(source, endpoint_url)
        try:
            rows = read_rows(read_stored_front(store))
        except ArtifactNotFound:
            return None, _fetch_artifact(source, under or require, key, out, endpoint_url)
    else:
        study = find(source)
        rows = read_front(study.searched_folder())
        endpoint_url = endpoint_url or study.endpoint_url()
        store = open_store(study.config.artifact_uri, endpoint_url)
    row = best_row(rows, under, best, require) if key is None else find_row(rows, key)
    return row, fetch(artifact_uri(store.uri, row.artifact), out, endpoint_url)


def is_store(source: str) -> bool:
    """Tells whether a word names an artifact store, or the folder of one, rather than a study."""
    return "://" in source or (exists(Path(source) / FRONT) and not exists(Path(source) / STUDY))


def rows_of(source: str, endpoint_url: str | None = None) -> list[FrontRow]:
    """Returns a front, fastest first. source: a study, or the root of an artifact store. Raises PrunefrontError."""
    if is_store(source):
        return read_rows(read_stored_front(open_store(source, endpoint_url)))
    return read_front(find(source).searched_folder())


def _fetch_artifact(
    source: str, bounded: object, key: str | None, out: Path, endpoint_url: str | None
) -> Path:
    if bounded or key is not None:
        raise PrunefrontError(
            f"{source} is not a front, so --under, --require and --key have nothing to choose from; leave them out, or "
            "name a study or the root of an artifact store"
        )
    return fetch(source, out, endpoint_url)
