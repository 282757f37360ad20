"""A store that keeps objects as files below a folder."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from prunefront.atomic import sync, target_name, temporary, write_whole
from prunefront.pipelines.stores.store import (
    CHUNK_BYTES,
    ArtifactError,
    ArtifactNotFound,
    StoredObject,
    Upload,
    check_key,
    check_limit,
)
from prunefront.reading import open_regular, read_bytes


class DirectoryStore:
    """Keeps objects as files below a folder. A reader sees an object whole or not at all, also after a crash."""

    conditional = True

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    @property
    def uri(self) -> str:
        return str(self.root)

    def put(self, key: str, file: Path) -> str:
        target = self.root / check_key(key)
        with folder_errors(f"{target} cannot be written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_regular(file) as source:
                write_whole(target, lambda out: shutil.copyfileobj(source, out, CHUNK_BYTES))
        return str(target)

    def put_new(self, key: str, file: Path) -> bool:
        target = self.root / check_key(key)
        with folder_errors(f"{target} cannot be written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with (
                open_regular(file) as source,
                temporary(target, lambda out: shutil.copyfileobj(source, out, CHUNK_BYTES)) as whole,
            ):
                try:
                    os.link(whole, target)  # unlike a rename, refused where the name is taken
                except FileExistsError:
                    return False
                except PermissionError:  # a file system without hard links
                    return _create(target, whole)
            sync(target.parent)
        return True

    def get(self, key: str, file: Path, *, limit: int | None = None) -> None:
        source = self.root / check_key(key)
        with folder_errors(f"{source} cannot be read"):
            if not source.is_file():
                raise ArtifactNotFound(f"there is no {key} in {self.root}")
            check_limit(source.stat().st_size, limit, str(source))
            with open_regular(source) as stored, file.open("wb") as copy:
                shutil.copyfileobj(stored, copy, CHUNK_BYTES)

    def exists(self, key: str) -> bool:
        return (self.root / check_key(key)).is_file()

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        for path, status in self._files():
            key = path.relative_to(self.root).as_posix()
            if key.startswith(prefix) and not target_name(path.name):
                yield StoredObject(key, status.st_size, status.st_mtime)

    def delete(self, key: str) -> None:
        path = self.root / check_key(key)
        with folder_errors(f"{path} cannot be deleted"):
            self._drop(path)

    def uploads(self) -> Iterator[Upload]:
        for path, status in self._files():
            if name := target_name(path.name):
                key = path.with_name(name).relative_to(self.root).as_posix()
                yield Upload(key, path.name, status.st_size, status.st_mtime)

    def abort(self, upload: Upload) -> None:
        if not target_name(upload.id):
            raise ArtifactError(f"{upload.id!r:.80} is no unfinished file of a store")
        path = (self.root / check_key(upload.key)).with_name(upload.id)
        with folder_errors(f"{path} cannot be deleted"):
            self._drop(path)

    def _drop(self, path: Path) -> None:
        """Deletes a file, and the folders below the root that are empty then."""
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == self.root:
                return
            with contextlib.suppress(OSError):  # not empty, or somebody has just created it again
                folder.rmdir()

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yields every file below the root. Links are not followed, so that nothing outside is ever named."""
        with folder_errors(f"{self.root} cannot be listed"):
            for folder, _, names in os.walk(self.root, onerror=_unless_absent):
                for name in names:
                    path = Path(folder) / name
                    with contextlib.suppress(FileNotFoundError):  # written under another name in the meantime
                        yield path, path.lstat()

    def probe(self) -> None:
        with folder_errors(f"artifacts cannot be written to {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as file:
                file.write(b"prunefront")


def _create(target: Path, source: Path) -> bool:
    """Copies `source`, a small file, to `target`, and returns True; False where that exists."""
    try:
        with target.open("xb") as file:
            file.write(read_bytes(source))
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def _unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


@contextlib.contextmanager
def folder_errors(what: str) -> Iterator[None]:
    """Turns an OSError into an ArtifactError. what: begin of its message."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{what}: {error.strerror or error}; check path, permissions and free space"
        ) from None
