"""Objects that are put while a store is away arrive when it is back: all, in order, whatever dies in between."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.fetch import fetch_from
from prunefront.pipelines.artifacts.manifest import LIMITS, MANIFEST
from prunefront.pipelines.artifacts.publish import publish
from prunefront.pipelines.stores.memory import MemoryStore
from prunefront.pipelines.stores.s3 import S3Away, S3Error
from prunefront.pipelines.stores.spool import PATIENCE, Spool, SpoolingStore, add_all, spooling
from prunefront.pipelines.stores.store import StoreAway, StoreRefused
from prunefront.pipelines.workers.failures import PASSING, REFUSED, failure
from prunefront.pipelines.workers.publish import published
from tests.stores import file_of_artifact


class Shaky(MemoryStore):
    """Takes and gives while it is `up`; remembers in which order it was written."""

    def __init__(self) -> None:
        super().__init__("s3://shaky")
        self.up, self.refuses = True, False
        self.order: list[str] = []
        self.tried = threading.Semaphore(0)

    def put(self, key: str, file: Path) -> str:
        self._answer()
        self.order.append(key)
        return super().put(key, file)

    def get(self, key: str, file: Path, *, limit: int | None = None) -> None:
        self._answer()
        super().get(key, file, limit=limit)

    def exists(self, key: str) -> bool:
        self._answer()
        return super().exists(key)

    def _answer(self) -> None:
        self.tried.release()
        if self.refuses:
            raise S3Error("the server does not accept the credentials")
        if not self.up:
            raise S3Away("no answer")


@contextmanager
def opened(
    behind: Shaky, folder: Path, said: list[str] | None = None, patience: float = 60.0
) -> Iterator[SpoolingStore]:
    said = [] if said is None else said
    store = SpoolingStore(behind, Spool(folder), said.append, patience=patience, pause=0.001)
    try:
        yield store
    finally:
        store.close(drain=False)


def file(folder: Path, content: str) -> Path:
    path = folder / "file"
    path.write_text(content)
    return path


def text(store: SpoolingStore | MemoryStore, key: str, folder: Path) -> str:
    store.get(key, folder / "got")
    return (folder / "got").read_text()


Step = tuple[str, str]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abc")),
        st.tuples(st.sampled_from(["away", "back", "crash", "wait"]), st.just("")),
    ),
    max_size=20,
)


@given(STEPS)
def test_whatever_happens_in_between_all_arrives_in_order(steps: list[Step]) -> None:
    """The last content of every key, each put at least once, and none before one that was put earlier."""
    behind, written = Shaky(), []
    with TemporaryDirectory() as name:
        folder = Path(name)
        store = SpoolingStore(behind, Spool(folder / "spool"), lambda line: None, pause=0.001)
        for number, (what, key) in enumerate(steps):
            if what == "put":
                store.put(key, file(folder, str(number)))
                written.append((key, str(number)))
                assert text(store, key, folder) == str(number)  # read back at once, wherever it is
            elif what == "crash":  # the next run finds what this one left
                store.close(drain=False)
                store = SpoolingStore(behind, Spool(folder / "spool"), lambda line: None, pause=0.001)
            elif what == "wait":
                behind.tried.acquire(timeout=0.002)
            else:
                behind.up = what == "back"
        behind.up = True
        store.close(drain=True)
        assert {key: value.decode() for key, value in behind.objects.items()} == dict(written)
        assert not store.spool.entries()
        # a crash between sending and forgetting sends again, so repeats are allowed, but not another order
        assert [k for i, k in enumerate(behind.order) if i == 0 or behind.order[i - 1] != k] == [
            k for i, (k, _) in enumerate(written) if i == 0 or written[i - 1][0] != k
        ]


def test_a_line_says_that_a_store_is_away_and_one_that_it_is_back(tmp_path: Path) -> None:
    behind, said = Shaky(), list[str]()
    behind.up = False
    with opened(behind, tmp_path / "spool", said) as store:
        for key in "abc":
            store.put(key, file(tmp_path, key))
        until(lambda: bool(said))
        behind.up = True
        until(lambda: len(said) == 2)
    assert said == [
        f"no answer; the search continues, results wait in {tmp_path / 'spool'} and are sent when it is back",
        "s3://shaky answers again; waiting objects that were sent: 3",
    ]
    assert behind.order == ["a", "b", "c"]


def test_reading_waits_for_the_store(tmp_path: Path) -> None:
    behind, said = Shaky(), list[str]()
    behind.put("a", file(tmp_path, "1"))
    behind.up = False
    back = threading.Timer(0.05, lambda: setattr(behind, "up", True))
    with opened(behind, tmp_path / "spool", said) as store:
        back.start()
        assert text(store, "a", tmp_path) == "1"
    back.join()
    assert said == ["waiting for s3://shaky, up to 60 s: no answer"]


def test_the_end_waits_only_so_long_and_says_what_is_left(tmp_path: Path) -> None:
    behind = Shaky()
    behind.up = False
    store = SpoolingStore(behind, Spool(tmp_path / "spool"), lambda line: None, patience=0.05, pause=0.001)
    store.put("a", file(tmp_path, "1"))
    with pytest.raises(
        PrunefrontError, match=r"did not answer within 0\.05 s; objects waiting in .*: 1; .*--resume"
    ):
        store.close(drain=True)
    behind.up = True
    with spooling(behind, Spool(tmp_path / "spool"), lambda line: None):
        pass  # the next run sends what it finds
    assert behind.objects == {"a": b"1"}


def test_a_refusal_while_sending_is_raised_at_the_next_call_and_nothing_is_lost(tmp_path: Path) -> None:
    behind = Shaky()
    behind.up = False
    with opened(behind, tmp_path / "spool") as store:
        store.put("a", file(tmp_path, "1"))
        behind.refuses = True
        until(lambda: store._refused is not None)
        with pytest.raises(StoreRefused, match=r"does not accept the credentials; objects waiting in .*: 1"):
            store.put("b", file(tmp_path, "2"))
        with pytest.raises(StoreRefused, match="does not accept"):
            store.close(drain=True)
    assert len(Spool(tmp_path / "spool").entries()) == 1
    assert failure(S3Error("no")).kind == REFUSED
    assert {failure(S3Error("no")).kind, failure(S3Away("no")).kind} <= set(PASSING)


def test_what_cannot_be_sent_for_another_reason_is_no_outage_and_ends_no_thread_in_silence(
    tmp_path: Path,
) -> None:
    """Such as an entry that somebody damaged: waiting for the store would not help."""
    behind = Shaky()
    behind.up = False
    with opened(behind, tmp_path / "spool") as store:
        store.put("a", file(tmp_path, "1"))
        (entry,) = store.spool.entries()
        (entry / "object").unlink()
        behind.up = True
        with pytest.raises(
            StoreRefused, match=r"FileNotFoundError: .*No such file.*objects waiting in .*: 1"
        ) as raised:
            store.close(drain=True)
    assert isinstance(raised.value.__cause__, FileNotFoundError)  # where it came from is told as well


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    for name in LIMITS:
        (folder / name).write_bytes(file_of_artifact(name, name.encode() * 100))
    return folder


def test_an_artifact_that_waits_is_whole_and_its_manifest_comes_last(made: Path, tmp_path: Path) -> None:
    behind = Shaky()
    behind.up = False
    with opened(behind, tmp_path / "spool") as store:
        artifact = publish(store, made, "dense")
        assert artifact.uri == f"s3://shaky/{artifact.id}"
        fetch_from(store, artifact.id, tmp_path / "from the spool")  # digests are checked
        behind.up = True
        store.close(drain=True)
    assert behind.order[-1] == f"{artifact.id}/{MANIFEST}"
    fetch_from(behind, artifact.id, tmp_path / "from the store")


def test_a_worker_without_a_refuge_tries_again(made: Path) -> None:
    assert PATIENCE > 1
    behind = Shaky()
    behind.up = False
    back = threading.Timer(0.05, lambda: setattr(behind, "up", True))
    back.start()
    artifact = published(behind, made, "dense", None)
    back.join()
    assert f"{artifact.id}/{MANIFEST}" in behind.objects


def test_many_processes_may_add(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=add_all, args=(tmp_path / "spool", {f"{n}/a": b"1", f"{n}/b": b"2"}, "away"))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = [(entry / "key").read_text() for entry in Spool(tmp_path / "spool").entries()]
    assert len(keys) == len(set(keys)) == 16
    for n in range(8):
        assert keys.index(f"{n}/a") < keys.index(f"{n}/b")


def test_away_is_a_kind_of_storage_failure() -> None:
    assert failure(StoreAway("gone")).kind == "storage"


def until(met: Callable[[], bool]) -> None:
    for _ in range(2000):
        if met():
            return
        threading.Event().wait(0.005)
    raise AssertionError("never")
