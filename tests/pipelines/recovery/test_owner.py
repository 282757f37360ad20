"""A store's root has one study: whoever comes second is told so before anything is spent."""

import contextlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront.pipelines.journal.layout import FRONT, OWNER
from prunefront.pipelines.recovery.owner import (
    NotOurs,
    Owner,
    check_owner,
    claim_root,
    load_owner,
    read_owner,
)
from prunefront.pipelines.stores.folder import DirectoryStore
from prunefront.pipelines.stores.memory import MemoryStore
from prunefront.pipelines.stores.store import ArtifactError, ArtifactStore, put_json


@pytest.fixture(params=["directory", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return DirectoryStore(tmp_path / "store") if request.param == "directory" else MemoryStore()


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """Makes the folder of a study on a machine."""

    def made(machine: str) -> Path:
        path = tmp_path / machine
        path.mkdir()
        return path

    return made


def test_the_first_one_gets_it_and_keeps_it(store: ArtifactStore, folder: Callable[[str], Path]) -> None:
    here = folder("a")
    first = claim_root(store, here, "digits", begun=False)
    assert claim_root(store, here, "digits", begun=False) == first  # as after a crash before the first event
    assert claim_root(store, here, "digits", begun=True, resume=True) == first
    assert read_owner(store) == load_owner(here) == first
    check_owner(store, first)


@pytest.mark.parametrize("fresh", [False, True])
def test_another_study_is_refused_and_told_where_to_go(
    store: ArtifactStore, folder: Callable[[str], Path], fresh: bool
) -> None:
    first = claim_root(store, folder("a"), "digits", begun=False)
    with pytest.raises(
        NotOurs, match=r"belongs to study 'digits', which was started on .*uri = '.*/letters'$"
    ):
        claim_root(store, folder("b"), "letters", begun=False, fresh=fresh)
    assert read_owner(store) == first


def test_the_same_study_elsewhere_must_say_what_it_wants(
    store: ArtifactStore, folder: Callable[[str], Path]
) -> None:
    first = claim_root(store, folder("a"), "digits", begun=False)
    there = folder("b")
    with pytest.raises(NotOurs, match="--resume continues it, --fresh starts again"):
        claim_root(store, there, "digits", begun=False, restorable=True)
    with pytest.raises(NotOurs, match="its state is not stored there"):
        claim_root(store, there, "digits", begun=False, resume=True)
    assert claim_root(store, there, "digits", begun=False, resume=True, restorable=True) == first
    assert load_owner(there) == first


def test_whoever_was_started_afresh_elsewhere_can_write_no_front(
    store: ArtifactStore, folder: Callable[[str], Path]
) -> None:
    here = folder("a")
    first = claim_root(store, here, "digits", begun=False)
    asked: list[Owner] = []
    second = claim_root(store, folder("b"), "digits", begun=False, fresh=True, take_over=asked.append)
    assert asked == [first]
    assert second.id != first.id
    with pytest.raises(NotOurs, match="no front is written there"):
        check_owner(store, first)
    with pytest.raises(NotOurs, match="not the search that"):
        claim_root(store, here, "digits", begun=True, resume=True)


def test_a_front_of_an_older_prunefront_is_not_written_over(
    store: ArtifactStore, folder: Callable[[str], Path]
) -> None:
    put_json(store, FRONT, [])
    with pytest.raises(NotOurs, match="holds a front without an owner"):
        claim_root(store, folder("a"), "digits", begun=False)
    claim_root(store, folder("b"), "digits", begun=True, resume=True)  # it may be this study's own
    with pytest.raises(NotOurs, match="belongs to study 'digits'"):
        claim_root(store, folder("c"), "letters", begun=False)


def test_a_store_that_was_emptied_is_claimed_again(
    store: ArtifactStore, folder: Callable[[str], Path]
) -> None:
    here = folder("a")
    owner = claim_root(store, here, "digits", begun=False)
    store.delete(OWNER)
    assert claim_root(store, here, "digits", begun=True) == owner
    store.delete(OWNER)
    check_owner(store, owner)
    assert read_owner(store) == owner


def test_of_many_that_start_at_once_one_gets_it(tmp_path: Path) -> None:
    store, together = DirectoryStore(tmp_path / "store"), threading.Barrier(8)

    def start(number: int) -> Owner | None:
        folder = tmp_path / str(number)
        folder.mkdir()
        together.wait()
        try:
            return claim_root(store, folder, f"study-{number}", begun=False)
        except NotOurs:
            return None

    with ThreadPoolExecutor(8) as threads:
        owners = [owner for owner in threads.map(start, range(8)) if owner]
    assert owners == [read_owner(store)]


@given(
    data=st.recursive(
        st.none() | st.integers() | st.floats() | st.text(), lambda i: st.lists(i), max_leaves=4
    )
    | st.fixed_dictionaries(
        {
            "study": st.text() | st.just("digits"),
            "id": st.text() | st.just("0" * 32),
            "host": st.text() | st.integers(),
            "begun": st.floats() | st.integers() | st.booleans(),
        }
    )
)
def test_an_owner_is_somebodys_word(data: object) -> None:
    text = json.dumps(data)
    with contextlib.suppress(ArtifactError):
        owner = Owner.parse(text, source="here")
        assert str(owner).isprintable()
        assert Owner.parse(text, source="there") == owner
