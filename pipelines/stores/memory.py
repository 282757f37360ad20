"""A store in this process, for tests and for networks that are published nowhere."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from prunefront.pipelines.stores.store import ArtifactNotFound, StoredObject, Upload, check_key, check_limit
from prunefront.reading import LARGEST_WEIGHTS, read_bytes


class MemoryStore:
    """Keeps objects as bytes in this process, in the order in which they came."""

    conditional = True

    def __init__(self, uri: str = "memory:") -> None:
        self.uri = uri
        self.objects: dict[str, bytes] = {}
        self.modified: dict[str, float] = {}
        self._lock = threading.Lock()

    def put(self, key: str, file: Path) -> str:
        self.objects[check_key(key)] = read_bytes(file, limit=LARGEST_WEIGHTS)
        self.modified[key] = time.time()
        return f"{self.uri}/{key}"

    def put_new(self, key: str, file: Path) -> bool:
        with self._lock:
            if new := not self.exists(key):
                self.put(key, file)
        return new

    def get(self, key: str, file: Path, *, limit: int | None = None) -> None:
        if check_key(key) not in self.objects:
            raise ArtifactNotFound(f"there is no {key} in memory")
        check_limit(len(self.objects[key]), limit, key)
        file.write_bytes(self.objects[key])

    def exists(self, key: str) -> bool:
        return check_key(key) in self.objects

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield StoredObject(key, len(self.objects[key]), self.modified.get(key, 0.0))

    def delete(self, key: str) -> None:
        self.objects.pop(check_key(key), None)

    def uploads(self) -> Iterator[Upload]:
        return iter(())

    def abort(self, upload: Upload) -> None:
        """Does nothing: a store in memory has no uploads."""

    def probe(self) -> None:
        """Does nothing: memory can always be written."""
