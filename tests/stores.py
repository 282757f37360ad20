"""What every store must do, whatever it is made of: called with folders, memory, moto and Ceph."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx

from prunefront.pipelines.artifacts.fetch import fetch_from, read_stored_front
from prunefront.pipelines.artifacts.manifest import LIMITS
from prunefront.pipelines.artifacts.publish import publish
from prunefront.pipelines.journal.layout import FRONT
from prunefront.pipelines.recovery.owner import NotOurs, claim_root, read_owner
from prunefront.pipelines.stores.store import ObjectStore, put_json

WRITERS = 6


def file_of_artifact(name: str, content: bytes) -> bytes:
    """Bytes that may stand in an artifact under a name of LIMITS: its ONNX network is looked into, the rest is not."""
    if name != "model.onnx":
        return content
    return onnx.ModelProto(
        metadata_props=[onnx.StringStringEntryProto(value=content.hex())]
    ).SerializeToString()


NETWORKS = 8


def check_first_come_first_served(store: ObjectStore, folder: Path) -> None:
    """Of many that create an object at once one is told that it did, and what it wrote stays."""
    store.probe()
    assert store.conditional
    together = threading.Barrier(WRITERS)
    for key in ("first.json", "deep/second.json"):

        def create(number: int, key: str = key) -> bool:
            file = folder / f"{number}.json"
            file.write_text(json.dumps({"writer": number}))
            together.wait()
            return store.put_new(key, file)

        with ThreadPoolExecutor(WRITERS) as threads:
            created = list(threads.map(create, range(WRITERS)))
        assert sum(created) == 1
        store.get(key, folder / "back")
        assert json.loads((folder / "back").read_text()) == {"writer": created.index(True)}


def check_list_and_delete(store: ObjectStore, folder: Path) -> None:
    """All keys are listed with their sizes, what is deleted is gone, and may be deleted again."""
    file = folder / "file"
    for number in range(5):
        file.write_bytes(bytes(number))
        store.put(f"a/{number}", file)
        store.put(f"a{number}", file)
    assert {s.key: s.size_bytes for s in store.list("a/")} == {f"a/{n}": n for n in range(5)}
    assert len(list(store.list())) == 10
    store.delete("a/0")
    store.delete("a/0")
    assert sorted(s.key for s in store.list("a/")) == [f"a/{n}" for n in range(1, 5)]
    modified = [s.modified for s in store.list()]
    assert max(modified) - min(modified) < 3600.0
    for found in list(store.list()):
        store.delete(found.key)
    assert list(store.list()) == list(store.uploads()) == []


def check_two_studies_do_no_harm(open_root: Callable[[], ObjectStore], folder: Path) -> None:
    """Two studies that are started at once below one root, some of whose networks are the same: one owns the root, the
    other is told so and goes where it was told to; every network of both is whole, and each has its front."""
    root, together = open_root(), threading.Barrier(2)

    def study(name: str) -> bool:
        here = folder / name
        here.mkdir()
        store = open_root()
        store.probe()
        together.wait()
        try:
            owner, refused = claim_root(store, here, name, begun=False), ""
        except NotOurs as error:
            owner, refused = None, str(error)
        assert owner is not None or f"uri = '{store.uri}/{name}'" in refused
        together.wait()
        rng = np.random.default_rng([len(name)])
        rows = []
        for number in range(NETWORKS):
            common = number % 2 == 0
            made = here / str(number)
            made.mkdir()
            for file in LIMITS:
                content = f"{number} {file}".encode() if common else rng.bytes(2000)
                (made / file).write_bytes(file_of_artifact(file, content))
            artifact = publish(store, made, "common" if common else name)
            rows.append({"key": f"{name}-{number}", "artifact": artifact.uri})
        if owner is not None:
            put_json(store, FRONT, rows)
        for row in rows:
            fetch_from(store, row["artifact"].rpartition("/")[2], here / "fetched" / row["key"])
        return owner is not None

    with ThreadPoolExecutor(2) as threads:
        owning = list(threads.map(study, ("one", "another")))
    assert sum(owning) == 1
    owner = read_owner(root)
    assert owner is not None
    assert owner.study == ("one", "another")[owning.index(True)]
    assert [row["key"] for row in read_stored_front(root)] == [f"{owner.study}-{n}" for n in range(NETWORKS)]
    whole = {s.key.partition("/")[0] for s in root.list() if "/" in s.key}
    assert len(whole) == NETWORKS // 2 + 2 * NETWORKS // 2
