"""Restores a study's folder from the snapshot in its store."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from prunefront.atomic import sync
from prunefront.pipelines.artifacts.manifest import FileRecord, measure_file
from prunefront.pipelines.journal.journal import read_events
from prunefront.pipelines.journal.layout import JOURNAL, PREPARED, SUPERSEDED_JOURNAL, WEIGHTS
from prunefront.pipelines.recovery.snapshot import FILES, Snapshot, digest_of, is_weights
from prunefront.pipelines.recovery.state_store import StateStore
from prunefront.pipelines.stores.store import ArtifactError, ArtifactNotFound
from prunefront.reading import open_regular, read_bytes


def is_ahead(folder: Path, snapshot: Snapshot) -> bool:
    """Tells whether a study's folder holds the journal of the snapshot, and perhaps more.

    Of a snapshot without events it is the files that the folder must hold.
    """
    journal = folder / JOURNAL
    if not snapshot.segments and not snapshot.tail:
        return all((folder / name).exists() for name in snapshot.files)
    if not journal.exists():
        return False
    with open_regular(journal) as file:
        known = all(digest_of(file.read(r.size_bytes)) == r for r in snapshot.segments)
        tail = snapshot.tail.encode()
        return known and file.read(len(tail)) == tail


def restore(state: StateStore, snapshot: Snapshot, folder: Path) -> None:
    """Makes a study's folder what the snapshot says, once everything is fetched and every digest is right.

    The journal comes last, so that a restore which was cut short is begun again. An earlier journal stays under another
    name. Raises PrunefrontError, with the folder as it was.
    """
    free = shutil.disk_usage(folder).free
    if snapshot.size_bytes > free:
        raise ArtifactError(
            f"the state in {state.uri} has {snapshot.size_bytes} bytes, but {folder} has only {free} free"
        )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        part = Path(temporary)
        for name, record in snapshot.files.items():
            (part / name).parent.mkdir(exist_ok=True)
            try:
                _fetch(state, record, part / name)
            except ArtifactNotFound:
                # without its parent's weights a child starts from the dense network, which is recorded
                if not is_weights(name):
                    raise
        _fetch_journal(state, snapshot, part)
        for path in part.rglob("*"):
            sync(path)
        for name in (PREPARED, WEIGHTS):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in FILES.keys() - snapshot.files.keys():  # such as the front of a search that was begun anew
            (folder / name).unlink(missing_ok=True)
        for path in sorted(part.iterdir()):
            if path.name != JOURNAL:
                os.replace(path, folder / path.name)
        if (folder / JOURNAL).exists():
            os.replace(folder / JOURNAL, folder / SUPERSEDED_JOURNAL)
        os.replace(part / JOURNAL, folder / JOURNAL)


def fetch_events(state: StateStore, snapshot: Snapshot) -> list[dict[str, Any]]:
    """Returns the events of a snapshot's journal, without a folder for the study. Raises PrunefrontError."""
    with tempfile.TemporaryDirectory() as temporary:
        return _fetch_journal(state, snapshot, Path(temporary))


def _fetch_journal(state: StateStore, snapshot: Snapshot, folder: Path) -> list[dict[str, Any]]:
    """Writes the journal of a snapshot into a folder; returns its events. Raises PrunefrontError."""
    segment = folder / "segment"
    with (folder / JOURNAL).open("wb") as journal:
        for record in snapshot.segments:
            _fetch(state, record, segment)
            journal.write(read_bytes(segment))
        journal.write(snapshot.tail.encode())
    segment.unlink(missing_ok=True)
    return read_events(folder / JOURNAL)


def _fetch(state: StateStore, record: FileRecord, file: Path) -> None:
    key = state.object_key(record.sha256)
    state.store.get(key, file, limit=record.size_bytes)
    if measure_file(file) != record:
        raise ArtifactError(
            f"{state.store.uri}/{key} was damaged or changed: its content has another digest; nothing was restored"
        )
