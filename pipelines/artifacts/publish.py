"""Publishes networks into a store: the files first, the manifest last."""

from dataclasses import dataclass
from pathlib import Path

from prunefront.atomic import write_whole
from prunefront.pipelines.artifacts.manifest import (
    FILES,
    LIMITS,
    MANIFEST,
    MANIFEST_LIMIT,
    OPTIONAL,
    PROGRAM,
    FileRecord,
    Manifest,
    is_artifact_name,
    measure_file,
)
from prunefront.pipelines.stores.store import (
    ArtifactError,
    ArtifactStore,
    StoreAway,
    StoreRefused,
    check_limit,
    read_text,
)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published network. sha256: the manifest's. size_bytes: all files together."""

    uri: str
    id: str
    sha256: str
    size_bytes: int


def publish(store: ArtifactStore, folder: Path, name: str) -> Artifact:
    """Copies the files of a pruned network from `folder` into the store, then the manifest, which `folder` keeps too.

    Files that an artifact may hold go along where they are there.
    Publishing the same content again changes nothing and sends nothing. Where the stored manifest is absent or differs,
    an earlier upload was cut short, and all is sent again. Raises ArtifactError for another file that is not there.
    """
    if not is_artifact_name(name):
        raise ArtifactError(f"{name!r:.80} cannot name an artifact; possible: letters, digits, '.', '_', '-'")
    may_miss = {PROGRAM, *OPTIONAL}
    names = [n for n in FILES if n not in may_miss or (folder / n).exists()]
    manifest = Manifest(name, {n: _measure(folder / n, FILES[n]) for n in names})
    local = folder / MANIFEST
    write_whole(local, lambda out: out.write(manifest.text().encode()))
    if not _is_stored(store, manifest):
        for file in names:
            store.put(f"{manifest.id}/{file}", folder / file)
        store.put(f"{manifest.id}/{MANIFEST}", local)
    return Artifact(f"{store.uri}/{manifest.id}", manifest.id, manifest.sha256, manifest.size_bytes)


def _measure(file: Path, limit: int) -> FileRecord:
    try:
        check_limit(file.stat().st_size, limit, str(file))
        return measure_file(file)
    except OSError as error:
        raise ArtifactError(
            f"{file} cannot be published: {error.strerror}; an artifact is exactly {', '.join(LIMITS)}, perhaps "
            f"without {PROGRAM}, and perhaps with {', '.join(OPTIONAL)}"
        ) from None


def _is_stored(store: ArtifactStore, manifest: Manifest) -> bool:
    key = f"{manifest.id}/{MANIFEST}"
    if not store.exists(key):
        return False
    try:
        return read_text(store, key, limit=MANIFEST_LIMIT) == manifest.text()
    except (StoreAway, StoreRefused):
        raise
    except ArtifactError:
        return False  # an unreadable manifest is as good as none: publishing again mends it
