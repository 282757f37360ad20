"""Fetches published networks, and the front that names them, from a store; every digest is checked."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.manifest import (
    MANIFEST,
    MANIFEST_LIMIT,
    Manifest,
    artifact_uri,
    check_digests,
    check_file,
    is_artifact_id,
)
from prunefront.pipelines.journal.layout import FRONT
from prunefront.pipelines.stores.folder import folder_errors
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.store import (
    ArtifactError,
    ArtifactNotFound,
    ArtifactStore,
    read_json,
    read_text,
)


def fetch(uri: str, out: Path, endpoint_url: str | None = None) -> Path:
    """Copies the artifact at `uri` into the folder `out` and returns it; `out` appears once every file is checked.

    An `out` that already holds this artifact stays as it is. Raises ArtifactError where `out` holds anything else, and
    for an artifact that is absent, not whole, or not what its manifest and its id say.
    """
    root, _, artifact = uri.rstrip("/").rpartition("/")
    if not is_artifact_id(artifact):
        raise ArtifactError(
            f"{uri!r} does not name an artifact; its last part should look like dense-0123456789ab, "
            "`prunefront front` lists them"
        )
    return fetch_from(open_store(root or ".", endpoint_url), artifact, out)


def check_artifact(folder: Path) -> Manifest:
    """Returns the manifest of a fetched artifact whose files are as it says, and whose ONNX network is whole in itself.

    Raises ArtifactError.
    """
    manifest = check_digests(folder)
    _check_onnx(folder)
    return manifest


def _check_onnx(folder: Path) -> None:
    # here, not above: an artifact that is there already is listed without it
    from prunefront.pipelines.formats.onnx_file import read_model

    try:
        read_model(folder / "model.onnx")
    except PrunefrontError as error:
        raise ArtifactError(f"{error}; this is no artifact of prunefront's") from None


def fetch_from(store: ArtifactStore, artifact: str, out: Path) -> Path:
    """Fetches an artifact from an open store, like `fetch`. artifact: its id."""
    source = f"{store.uri}/{artifact}"
    out = out.resolve()
    try:
        text = read_text(store, f"{artifact}/{MANIFEST}", limit=MANIFEST_LIMIT)
    except ArtifactNotFound:
        raise ArtifactNotFound(f"there is no artifact at {source}, or its upload never finished") from None
    manifest = Manifest.parse(text, source=f"{source}/{MANIFEST}")
    if manifest.id != artifact:
        raise ArtifactError(
            f"{source}/{MANIFEST} belongs to {manifest.id}, not to {artifact}: it was changed after it was "
            "published; publish the artifact again"
        )
    if _holds(out, manifest):
        return out
    with folder_errors(f"{out} cannot be written"):
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if manifest.size_bytes > free:
            raise ArtifactError(
                f"{source} has {manifest.size_bytes} bytes, but {out.parent} has only {free} free"
            )
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            part = Path(temporary) / "artifact"
            part.mkdir()
            _download(store, artifact, manifest, part)
            (part / MANIFEST).write_text(manifest.text())
            os.replace(part, out)  # an empty folder at `out` is replaced, anything else makes it fail
    return out


def read_stored_front(store: ArtifactStore) -> list[dict[str, Any]]:
    """Returns the rows of the `front.json` at the store's root, as `put_json(store, FRONT, rows)` left them.

    Each row's `artifact` is a URI under this root. Raises ArtifactError where one points elsewhere: the writer of a
    front must not choose what else is read with the reader's credentials.
    """
    source = f"{store.uri}/{FRONT}"
    rows = read_json(store, FRONT)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ArtifactError(f"{source} is not a front: it must be a list of objects")
    for row in rows:
        if row.get("artifact") is not None:
            row["artifact"] = artifact_uri(store.uri, row["artifact"])
    return rows


def _holds(out: Path, manifest: Manifest) -> bool:
    """Returns True where `out` is this artifact, False where it is free. Raises ArtifactError otherwise."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        if out.is_dir() and check_artifact(out) == manifest:
            return True
    except ArtifactError as error:
        raise ArtifactError(
            f"{out} is not empty and is no whole artifact ({error}); choose another folder"
        ) from None
    raise ArtifactError(f"{out} is not empty and does not hold {manifest.id}; choose another folder")


def _download(store: ArtifactStore, artifact: str, manifest: Manifest, part: Path) -> None:
    for name, record in manifest.files.items():
        try:
            store.get(f"{artifact}/{name}", part / name, limit=record.size_bytes)
            check_file(part / name, record)
        except ArtifactError as error:
            raise type(error)(f"{store.uri}/{artifact}: {error}") from None
    _check_onnx(part)
