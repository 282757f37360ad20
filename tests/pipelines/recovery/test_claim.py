"""Who may run a study: from its start to its end on one machine, and on to the next."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import StudyConfig, TrackingSection
from prunefront.pipelines.journal.journal import Journal, StudyRunning, lock
from prunefront.pipelines.journal.layout import JOURNAL
from prunefront.pipelines.recovery.claim import Ownership, StudyPlace, claim_study, keep_ownership
from prunefront.pipelines.recovery.owner import NotOurs, read_owner
from prunefront.pipelines.recovery.state_store import TakenOver
from prunefront.pipelines.stores.folder import DirectoryStore
from prunefront.pipelines.stores.memory import MemoryStore
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.store import ArtifactStore
from prunefront.pipelines.study.find import load_config
from prunefront.pipelines.study.folder import open_folder
from prunefront.search.space.candidate import Candidate

NOTHING = Candidate({}).to_json()


def study(machine: Path, uri: Path | None, name: str = "digits", **artifacts: object) -> StudyConfig:
    """As the same study file gives it on a machine; uri: of a folder that all machines see."""
    where = {} if uri is None else {"uri": str(uri), "state": True}
    data = {
        "name": name,
        "folder": str(machine),
        "model": {"factory": "digits_cnn"},
        "artifacts": where | artifacts,
    }
    return parse(data, source="study.toml", base=machine)


@contextmanager
def running(
    config: StudyConfig, *, resume: bool = False, fresh: bool = False, said: list[str] | None = None
) -> Iterator[tuple[Ownership, Journal]]:
    """What `run.run` does before and after its stages."""
    lines = [] if said is None else said
    with lock(config.path):
        store = open_store(config.artifact_uri)
        store.probe()
        claim = claim_study(config.part(StudyPlace), store, lines.append, resume=resume, fresh=fresh)
        open_folder(config, resume=resume, fresh=fresh)
        with (
            keep_ownership(claim, config.part(StudyPlace), store, lines.append) as ownership,
            Journal(config.path / JOURNAL, guard=ownership.check) as journal,
        ):
            yield ownership, journal


def prepare(config: StudyConfig) -> None:
    (config.path / "prepared").mkdir(exist_ok=True)
    (config.path / "prepared" / "graph.json").write_text("{}")


def test_a_study_moves_from_machine_to_machine_and_back(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    first, second = (study(tmp_path / name, shared) for name in ("first", "second"))
    with running(first) as (_, journal):
        prepare(first)
        journal.append("asked", candidate=NOTHING, n=1)
    with pytest.raises(NotOurs, match="--resume continues it"), running(second):
        pass
    said: list[str] = []
    with running(second, resume=True, said=said) as (_, journal):
        assert [e["n"] for e in journal.events] == [1]
        assert (second.path / "prepared" / "graph.json").exists()
        journal.append("asked", candidate=NOTHING, n=2)
    assert "the study's folder was updated to its state in" in said[0]
    assert "run 1 on" in said[0]
    with (
        pytest.raises(PrunefrontError, match=r"searched elsewhere \(run 2 on .*--resume continues it here"),
        running(first),
    ):
        pass
    with running(first, resume=True) as (_, journal):
        assert [e["n"] for e in journal.events] == [1, 2]


def test_no_password_goes_to_the_store(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    first, second = (
        study(tmp_path / name, shared).model_copy(
            update={"tracking": TrackingSection(uri="postgresql://me:never-stored@host/mlflow")}
        )
        for name in ("first", "second")
    )
    with running(first) as (_, journal):
        prepare(first)
        journal.append("asked", candidate=NOTHING)
    assert not any(b"never-stored" in p.read_bytes() for p in shared.rglob("*") if p.is_file())
    with running(second, resume=True):
        assert load_config(second.path).tracking_uri == load_config(first.path).tracking_uri
    other = second.model_copy(update={"tracking": TrackingSection(uri="postgresql://me:x@elsewhere/mlflow")})
    with pytest.raises(PrunefrontError, match=r"another tracking\.uri"), running(other, resume=True):
        pass


def test_who_runs_is_left_alone_and_who_was_left_ends(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    first, second, third = (study(tmp_path / name, shared) for name in ("first", "second", "third"))
    with running(first) as (ours, journal):
        prepare(first)
        journal.append("asked", candidate=NOTHING, n=1)
        for how in ({"resume": True}, {"fresh": True}):
            with pytest.raises(StudyRunning, match=r"is running elsewhere.*run 1 on"), running(second, **how):
                pass
        store = open_store(first.artifact_uri)
        owner = read_owner(store)
        assert owner is not None
        store.delete(f"state/{owner.id}/heartbeat.json")  # as a minute without one
        with running(third, fresh=True):
            pass
        with pytest.raises(NotOurs, match="no front is written there"):
            ours.check_now()
    assert read_owner(store) != owner
    with pytest.raises(NotOurs, match="not the search that"), running(first, resume=True):
        pass


def test_a_run_that_was_taken_over_writes_no_more(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    first, second = (study(tmp_path / name, shared) for name in ("first", "second"))
    with running(first) as (ours, journal):
        prepare(first)
        journal.append("asked", candidate=NOTHING, n=1)
        store = open_store(first.artifact_uri)
        owner = read_owner(store)
        assert owner is not None
        store.delete(f"state/{owner.id}/heartbeat.json")
        with running(second, resume=True):
            with pytest.raises(TakenOver, match=r"run 2 on .* has taken over"):
                ours.check_now()
            with pytest.raises(TakenOver):
                journal.append("asked", candidate=NOTHING, n=2)


def test_a_start_that_is_repeated_asks_for_nothing(tmp_path: Path) -> None:
    """Killed while it prepared, a study is started again as before; so it always was."""
    config = study(tmp_path / "here", tmp_path / "shared")
    for attempt in range(3):
        with running(config) as (_, journal):
            prepare(config)
            journal.append("tracking", run=str(attempt))
    with running(config, fresh=True) as (_, journal):
        assert journal.events == []


def test_a_study_of_its_own_folder_is_as_it_was(tmp_path: Path) -> None:
    config = study(tmp_path, None)
    with running(config) as (ours, journal):
        assert ours.uploader is None
        journal.append("asked", candidate=NOTHING, n=1)
        prepare(config)
        ours.check_now()
    first = read_owner(open_store(config.artifact_uri))
    assert not (config.path / "artifacts" / "state").exists()
    with running(config, resume=True) as (_, journal):
        assert [e["n"] for e in journal.events] == [1]
    with running(config, fresh=True) as (_, journal):
        assert journal.events == []
    assert read_owner(open_store(config.artifact_uri)) != first


def test_without_state_there_a_study_is_gone_on_with_where_it_is(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    first, second = (study(tmp_path / name, shared, state=False) for name in ("first", "second"))
    with running(first) as (_, journal):
        journal.append("asked", candidate=NOTHING)
    with pytest.raises(NotOurs, match="its state is not stored there"), running(second, resume=True):
        pass
    with pytest.raises(NotOurs, match=r"uri = '.*/letters'"), running(study(tmp_path, shared, "letters")):
        pass


def test_a_state_in_the_folder_that_may_be_lost_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrunefrontError, match=r"set artifacts\.uri to a place that other machines see"):
        study(tmp_path, None, state=True)


def test_a_store_that_keeps_no_conditions_is_said_once(tmp_path: Path) -> None:
    class Careless(DirectoryStore):
        conditional = False

    config = study(tmp_path, None)
    config.path.mkdir(parents=True)
    said: list[str] = []
    store: ArtifactStore = Careless(tmp_path / "store")
    claim_study(config.part(StudyPlace), store, said.append, resume=False, fresh=False)
    (line,) = said
    assert line.startswith(f"{store.uri} does not support conditional writes (If-None-Match)")


def test_an_outage_is_not_taken_for_somebody_else(tmp_path: Path) -> None:
    class Away(MemoryStore):
        def get(self, key: str, file: Path, *, limit: int | None = None) -> None:
            raise PrunefrontError("no answer")

    config = study(tmp_path, None)
    with running(config) as (ours, _):
        Ownership(Away(), ours.owner, None).check_now()
