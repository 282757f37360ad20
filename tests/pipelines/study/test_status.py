"""How far a study is said to be, from journals at every stage."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront.pipelines.cli.look import status_rows
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import ControlsSection
from prunefront.pipelines.journal.journal import Journal, lock, write_json
from prunefront.pipelines.study.find import NoStudy
from prunefront.pipelines.study.status import RECENT_SECONDS, Status, status, summarise

CONFIG = parse(
    {
        "name": "s",
        "model": {"factory": "digits_cnn"},
        "search": {"candidates": 10},
        "training": {"candidates": 3},
    },
    source="s.toml",
    base=Path(),
)
FINE: dict[str, Any] = {"values": {"accuracy": 0.9}, "noise": {}}
CRASHED = {"failure": "crashed", "reason": "the worker process died, twice"}


def told(key: str, at: float, outcome: dict[str, Any] = FINE, seconds: float = 2.0) -> dict[str, Any]:
    return {"event": "told", "key": key, "outcome": outcome, "seconds": seconds, "time": at}


def of(
    events: list[dict[str, Any]], now: float, process: str = "77", since: float = 0.0, finished: bool = False
):
    return summarise(CONFIG, events, process=process, since=since, finished=finished, now=now)


def test_rate_time_left_busy_workers_and_failures_while_candidates_are_scored() -> None:
    events = [told(str(i), 1000.0 + 10 * i) for i in range(3)] + [told("x", 1030.0, CRASHED)]
    found = of(events, now=1040.0, since=1000.0)
    assert found.state == "running"
    assert [(s.name, s.done, s.total, s.failed) for s in found.stages] == [("scored", 4, 10, 1)]
    assert found.per_minute == pytest.approx(6.0)
    assert found.seconds_left == pytest.approx(60.0)
    assert found.busy == pytest.approx(8.0 / 40.0)
    assert (found.worker_seconds, found.idle_seconds) == (8.0, 10.0)
    text = dict(status_rows(found))
    assert text["study"] == "s: running, process 77"
    assert text["scored"] == "4 of 10, 1 failed"
    assert text["failed"] == "1 crashed, the last one: the worker process died, twice"
    assert text["rate"] == "6 a minute, about 60.0 s left of this stage"


def test_an_earlier_run_and_what_is_long_ago_say_nothing_of_the_rate() -> None:
    events = [told(str(i), 10.0 * i) for i in range(5)] + [told("late", 5000.0)]
    assert of(events, now=5030.0, since=4970.0).per_minute == pytest.approx(1.0)
    assert of(events, now=5030.0, since=0.0).per_minute == pytest.approx(60.0 / RECENT_SECONDS)
    assert of(events, now=5030.0, process="").per_minute == 0.0


def test_fine_tuning_counts_each_network_once_and_not_the_dense_ones() -> None:
    events = [told(str(i), 100.0) for i in range(10)]
    events += [{"event": "promoted", "candidates": [{}, {}, {}], "time": 200.0}]
    made = [("dense", FINE), ("dense-finetuned", FINE), ("a", CRASHED), ("a", FINE)]
    events += [
        {"event": "trained", "name": name, "outcome": outcome, "seconds": 30.0, "time": 260.0}
        for name, outcome in made
    ]
    events += [{"event": "stopped", "name": "b", "seconds": 5.0, "time": 260.0}]
    found = of(events, now=320.0)
    assert [(s.done, s.total, s.failed) for s in found.stages] == [(10, 10, 0), (2, 3, 0)]
    assert found.failures == {}
    assert found.worker_seconds == 20.0 + 4 * 30.0 + 5.0
    assert found.seconds_left is not None
    assert of(events, now=320.0, process="", finished=True).state == "finished"
    assert of(events, now=320.0, process="").state == "stopped"


def test_controls_are_a_stage_of_their_own() -> None:
    controls = ControlsSection(methods=("scratch_e", "random_units"))
    config = CONFIG.model_copy(update={"controls": controls})
    events = [{"event": "promoted", "candidates": [{}], "time": 1.0}]
    events += [{"event": "trained", "name": "a", "outcome": FINE, "time": 2.0}]
    events += [{"event": "controlled", "names": ["a"], "time": 3.0}]
    events += [{"event": "trained", "name": "scratch_e-a", "outcome": CRASHED, "time": 4.0}]
    found = summarise(config, events, process="7", since=0.0, finished=False, now=5.0)
    assert [(s.name, s.done, s.total, s.failed) for s in found.stages[1:]] == [
        ("fine-tuned", 1, 1, 0),
        ("controls", 1, 2, 1),
    ]


@given(st.lists(st.floats(0, 1e10), max_size=6), st.floats(0, 1e10), st.floats(0, 1e10))
def test_clocks_that_jump_give_no_negative_times(times: list[float], now: float, since: float) -> None:
    found = of([told(str(i), at) for i, at in enumerate(times)], now=now, since=since)
    assert found.per_minute >= 0
    assert found.busy >= 0
    assert found.seconds_left is None or found.seconds_left >= 0
    assert found.idle_seconds is None or found.idle_seconds >= 0
    assert status_rows(found)


def test_a_folder_says_whether_its_study_runs(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with pytest.raises(NoStudy):
        status(folder)
    with lock(folder):
        write_json(folder / "study.json", CONFIG.to_json())
        assert status(folder).state == "preparing"
        with Journal(folder / "journal.jsonl") as journal:
            journal.append("told", key="a", outcome=FINE, seconds=1.0)
        found: Status = status(folder)
        assert (found.state, found.process) == ("running", str(os.getpid()))
        assert found.per_minute > 0
    assert status(folder).state == "stopped"
