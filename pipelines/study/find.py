"""Finding a study again: its folder, its front, its artifacts, its tracking store."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prunefront.errors import PrunefrontError, one_line
from prunefront.pipelines.artifacts.publish import MANIFEST, fetch
from prunefront.pipelines.artifacts.publish import locate as within
from prunefront.pipelines.artifacts.publish import read_front as read_stored_front
from prunefront.pipelines.config.read import load, parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.events.redaction import is_redacted
from prunefront.pipelines.fronts.page import FrontRow, read, select
from prunefront.pipelines.journal.journal import StudyFolderError, read_events, read_json
from prunefront.pipelines.journal.layout import BOUNDS, FRONT, JOURNAL, STUDIES, STUDY
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.store import ArtifactNotFound

if TYPE_CHECKING:
    from prunefront.pipelines.artifacts.convert import Converted
    from prunefront.pipelines.artifacts.verify import Verification
    from prunefront.pipelines.fronts.unfinished import PartialFront


class NoStudy(PrunefrontError):
    """There is no study where one was asked for."""


def locate(study: str) -> Path:
    """The folder of a study that was searched. study: a study file, a study's folder, or its name.

    Raises NoStudy, which lists the studies that there are.
    """
    path = Path(study)
    if path.suffix == ".toml":
        folder = load(path).path
        if not _is_there(folder / STUDY):
            raise NoStudy(f"{study} has not been searched yet; start with: prunefront search {study}")
        return folder
    for folder in (path, STUDIES / study):
        if _is_there(folder / STUDY):
            return folder
    known = sorted(p.parent.name for p in STUDIES.glob("*/study.json"))
    raise NoStudy(
        f"there is no study {study!r}; "
        + (
            f"in {STUDIES}/ there are: {', '.join(known)}"
            if known
            else "give a study file, a study's folder, or a name below studies/"
        )
    )


def _is_there(path: Path) -> bool:
    """False also for what is too long to be a path."""
    try:
        return path.exists()
    except OSError:
        return False


def kept_config(folder: Path) -> StudyConfig:
    """The configuration that a study was started with."""
    path = folder / STUDY
    try:
        data = read_json(path)
    except StudyFolderError as error:
        raise NoStudy(str(error)) from None
    return parse(data, source=str(path), base=Path())


def read_front(folder: Path) -> list[FrontRow]:
    """The front of a study that has one, fastest first. Raises NoStudy before its search has ended."""
    path = folder / FRONT
    if not path.exists():
        raise NoStudy(
            f"study {folder.name!r} has no front yet; if it was stopped, go on with: prunefront search STUDY --resume"
        )
    try:
        return read(read_json(path))
    except StudyFolderError as error:
        raise NoStudy(f"{error}; a search with --resume writes it again") from None


def partial_front_of(folder: Path) -> "PartialFront | None":
    """Of a study whose search has not come to its end: what is finished, from its journal. None where there is a front
    proper, or nothing yet."""
    from prunefront.pipelines.fronts.unfinished import partial_front

    if (folder / FRONT).exists():
        return None
    return partial_front(kept_config(folder), read_events(folder / JOURNAL))


def bounds_kept(folder: Path) -> str | None:
    """How the networks of a study stand to its bounds, in a line; None where it has none. Raises NoStudy for a file
    that is not what a search writes."""
    path = folder / BOUNDS
    if not path.exists():
        return None
    try:
        return one_line(str(read_json(path)["said"]))
    except (StudyFolderError, LookupError, TypeError) as error:
        raise NoStudy(f"{path} cannot be read ({error}); a search with --resume writes it again") from None


def fetch_best(
    source: str, under: Mapping[str, float], best: str, key: str | None, out: Path, endpoint_url: str | None
) -> tuple[FrontRow | None, Path]:
    """Fetches one network into `out`; returns its row (None for a bare artifact URI) and the folder.

    source: a study, the root of an artifact store that holds a front.json, or the URI of one artifact. Raises
    PrunefrontError when there is none, and for bounds or a key where one artifact was named.
    """
    if _is_there(Path(source) / MANIFEST):
        return None, _fetch_one(source, under, key, out, endpoint_url)
    remote = "://" in source or (_is_there(Path(source) / FRONT) and not _is_there(Path(source) / STUDY))
    if remote:
        store = open_store(source, endpoint_url)
        try:
            front = read_stored_front(store)
        except ArtifactNotFound:
            return None, _fetch_one(source, under, key, out, endpoint_url)
        row = _chosen(read(front), under, best, key)
    else:
        folder = locate(source)
        config = load(Path(source)) if source.endswith(".toml") else kept_config(folder)
        if endpoint_url is None and "://" in config.artifact_uri:  # a folder has no use for it
            endpoint_url = _whole(config.artifacts.endpoint_url or "", "artifacts.endpoint_url") or None
        store = open_store(config.artifact_uri, endpoint_url)
        row = _chosen(read_front(folder), under, best, key)
    return row, fetch(within(store.uri, row.artifact), out, endpoint_url)


def _fetch_one(
    source: str, under: Mapping[str, float], key: str | None, out: Path, endpoint_url: str | None
) -> Path:
    if under or key is not None:
        raise PrunefrontError(
            f"{source} is not a front, so --under and --key have nothing to choose from; leave them out, or name a "
            "study or the root of an artifact store"
        )
    return fetch(source, out, endpoint_url)


def _chosen(rows: list[FrontRow], under: Mapping[str, float], best: str, key: str | None) -> FrontRow:
    if key is None:
        return FrontRow.from_json(select([r.to_json() for r in rows], under, best))
    # `dense` names the dense network, although `dense-finetuned` begins like it
    found = [r for r in rows if r.key == key] or [r for r in rows if r.key.startswith(key)]
    if len(found) != 1:
        raise PrunefrontError(
            f"{len(found)} rows of the front have a key that begins with {key!r}; keys: "
            f"{', '.join(r.key for r in rows)}"
        )
    return found[0]


def tracking_uri(study: str | None) -> str:
    """The tracking store of a study; of the one searched last when none is named."""
    if study is not None:
        if study.endswith(".toml"):
            return load(Path(study)).tracking_uri
        return _whole(kept_config(locate(study)).tracking_uri, "tracking.uri")
    searched = sorted(STUDIES.glob("*/study.json"), key=lambda p: p.stat().st_mtime)
    if not searched:
        raise NoStudy(f"there is no study in {STUDIES.absolute()}; name one, or search first")
    return _whole(kept_config(searched[-1].parent).tracking_uri, "tracking.uri")


def _whole(address: str, key: str) -> str:
    """The address. Raises PrunefrontError where a password was in it, which a study's folder does not keep."""
    if is_redacted(address):
        raise PrunefrontError(
            f"the address {address} holds a password, which is not kept in the study's folder; name the study file, in "
            f"which {key} says it"
        )
    return address


def verify_folder(folder: Path, study: Path | None) -> "Verification":
    """Checks a fetched artifact; a study file, if given, is trusted for the network and the data."""
    from prunefront.pipelines.artifacts.verify import verify
    from prunefront.pipelines.data import load as load_data

    config = load(study) if study is not None else None
    return verify(
        folder,
        splits=load_data,
        factory=config.model if config else None,
        data=config.data if config else None,
    )


def export_folder(
    folder: Path, to: str, out: Path | None, study: Path | None, *, exclude: tuple[str, ...], overwrite: bool
) -> "Converted":
    """Writes a fetched artifact's network in another format; a study file, if given, is trusted as in `verify_folder`.

    Raises PrunefrontError for a format that there is not.
    """
    from prunefront.pipelines.artifacts.convert import SUFFIXES, convert
    from prunefront.pipelines.artifacts.verify import torch_network
    from prunefront.pipelines.data import load as load_data

    if to not in SUFFIXES:
        raise PrunefrontError(f"no format is called {to!r}; possible: {', '.join(SUFFIXES)}")
    config = load(study) if study is not None else None
    name = "model.int8" if to == "int8" else "model"
    return convert(
        folder,
        to,
        out or Path(f"{name}{SUFFIXES[to]}"),
        splits=load_data,
        data=config.data if config else None,
        network=lambda path: torch_network(path, config.model if config else None),
        exclude=exclude,
        overwrite=overwrite,
    )
