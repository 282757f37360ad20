"""Events of a run as lines of JSON and as figures: from the journal's records to the text that machines read."""

import json
import logging
import queue
from pathlib import Path
from typing import Any

import pytest

from prunefront.errors import PrunefrontError
from prunefront.pipelines.events.events import Events
from prunefront.pipelines.events.log import JsonFormatter, json_lines, log_target, to_logging
from prunefront.pipelines.events.metrics import FAMILIES, export_metrics, samples
from prunefront.pipelines.events.redaction import redact
from prunefront.pipelines.journal.journal import Journal
from prunefront.pipelines.stages.session import Timing

FINE = {"values": {"accuracy": 0.9, "macs": 10.0}, "noise": {}}
CRASHED = {"failure": "crashed", "reason": "died"}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def a_run(events: Events, folder: Path) -> None:
    """All that a study announces, in the order of a study."""
    timing = Timing(on_stage=events.on_stage)
    with events.run(resumed=False), Journal(folder / "journal.jsonl", events.on_journal) as journal:
        journal.append("tracking", run="r")
        events.report("joined", workers=2)
        with timing.stage("screen"):
            journal.append("asked", candidate={})
            journal.append("told", key="a", outcome=FINE, seconds=1.5)
            events.report("progress", scored=1, hypervolume=0.25, front=1)
            events.report("worker_lost", candidate="b", reason="died")
            journal.append("told", key="b", outcome=CRASHED)
        with timing.stage("finetune"):
            journal.append("promoted", candidates=[{}, {}])
            journal.append("rung", name="b", epoch=1, outcome=FINE, share=1.0, of=2, seconds=3.0)
            journal.append("stopped", name="b", epoch=2, outcome=FINE, share=0.5, of=2, seconds=6.0)
            journal.append(
                "trained",
                name="a",
                outcome=FINE,
                artifact="a-0123456789ab",
                epochs=4,
                seconds=20.0,
                epoch_seconds=4.5,
                latency_seconds=0.5,
                artifact_bytes=1000,
            )
            journal.append("trained", name="c", outcome=CRASHED, artifact="", epochs=0, seconds=2.0)
        events.report("outage", store="tracking", reason="no answer")


def test_each_event_is_a_line_with_its_study_stage_and_candidate(tmp_path: Path) -> None:
    events = Events("s")
    with json_lines(str(tmp_path / "log" / "s.jsonl")), events.attach(to_logging):
        a_run(events, tmp_path)
    found = lines(tmp_path / "log" / "s.jsonl")
    assert [e["event"] for e in found] == [
        "study_begins", "tracking", "joined", "stage_begins", "scored", "progress", "worker_lost", "failed",
        "stage_ends", "stage_begins", "promoted", "rung", "stopped_early", "trained", "failed", "stage_ends",
        "outage", "study_ends",
    ]  # fmt: skip
    assert all(e["study"] == "s" and e["time"].endswith("+00:00") for e in found)
    by_name = {e["event"]: e for e in found}
    assert by_name["scored"]["stage"] == "screen"
    assert (by_name["scored"]["candidate"], by_name["scored"]["seconds"]) == ("a", 1.5)
    assert by_name["scored"]["values"] == FINE["values"]
    assert (by_name["failed"]["stage"], by_name["failed"]["kind"]) == ("finetune", "crashed")
    assert by_name["failed"]["level"] == by_name["outage"]["level"] == "warning"
    assert by_name["trained"]["logger"] == "prunefront.candidates"
    assert by_name["study_ends"]["status"] == "finished"
    assert "stage" not in by_name["study_ends"]


@pytest.mark.parametrize(
    ("error", "status", "level", "reason"),
    [
        (KeyboardInterrupt("SIGTERM"), "stopped", "warning", "SIGTERM"),
        (PrunefrontError("the disk is full"), "failed", "error", "the disk is full"),
        (RuntimeError("Traceback:\n  line 1\nValueError: no\n"), "failed", "error", "ValueError: no"),
    ],
)
def test_how_a_run_ended(error: BaseException, status: str, level: str, reason: str, tmp_path: Path) -> None:
    events = Events("s")
    with (
        json_lines(str(tmp_path / "log")),
        events.attach(to_logging),
        pytest.raises(type(error)),
        events.run(),
    ):
        raise error
    last = lines(tmp_path / "log")[-1]
    assert (last["event"], last["status"], last["level"], last["reason"]) == (
        "study_ends",
        status,
        level,
        reason,
    )


def test_figures_of_a_run(tmp_path: Path) -> None:
    total: dict[tuple[str, ...], float] = {}
    kinds = {family.name: family.kind for family in FAMILIES}

    def count(event: Any) -> None:
        for sample in samples(event):
            family = next(f for f in FAMILIES if f.name == sample.family)
            assert set(sample.labels) == {"study", *family.labels}
            key = (sample.family, *(sample.labels[name] for name in family.labels))
            before = 0.0 if kinds[sample.family] == "gauge" else total.get(key, 0.0)
            total[key] = before + sample.value

    events = Events("s")
    with events.attach(count):
        a_run(events, tmp_path)
    assert total == {
        ("workers",): 2,
        ("candidates_scored",): 1,
        ("score_seconds",): 1.5,
        ("worker_seconds", "screen"): 1.5,
        ("hypervolume",): 0.25,
        ("front_size",): 1,
        ("workers_lost",): 1,
        ("candidates_failed", "crashed", "screen"): 1,
        ("candidates_failed", "crashed", "finetune"): 1,
        ("candidates_stopped_early",): 1,
        ("worker_seconds", "finetune"): 28.0,
        ("candidates_trained",): 1,
        ("epoch_seconds",): 4.5,
        ("latency_seconds",): 0.5,
        ("artifacts_published",): 1,
        ("artifact_bytes",): 1000,
        ("outages", "tracking"): 1,
    }
    watched = {"workers_busy", "tracking_waiting", "artifacts_waiting"}
    assert {name for name, *_ in total} | watched == kinds.keys()


def test_secrets_are_in_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abcdefgh12345678")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/token")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    events = Events("s")
    with json_lines(str(tmp_path / "log")), events.attach(to_logging):
        events.report("said", line="key wJalrXUtnFEMI/K7MDENG to postgresql://me:hunter2@db/x")
        events.report("failed", kind="error", reason="x", nested={"a": ["Bearer abcdefgh12345678"]})
        logging.getLogger("prunefront.cluster").warning(
            "token %s in %s", "abcdefgh12345678", "/var/run/secrets/token"
        )
    text = (tmp_path / "log").read_text()
    for secret in ("wJalrXUtnFEMI", "hunter2", "abcdefgh"):
        assert secret not in text
    assert text.count("***") == 4
    assert "/var/run/secrets/token" in text
    assert redact({"n": 1, "x": None}) == {"n": 1, "x": None}


def test_a_listener_that_breaks_is_dropped_with_a_line_and_the_others_go_on() -> None:
    said: list[str] = []
    heard: list[str] = []
    events = Events("s", said.append)

    def broken(event: Any) -> None:
        raise OSError(28, "No space left on device")

    with events.attach(broken), events.attach(lambda event: heard.append(event["event"])):
        events.report("one")
        events.report("two")
    events.report("three")
    assert heard == ["one", "two"]
    assert said == ["events are no longer passed to broken: OSError: [Errno 28] No space left on device"]


def test_a_log_on_a_full_disk_ends_the_log_and_nothing_else() -> None:
    said: list[str] = []
    events = Events("s", said.append)
    with json_lines("/dev/full"), events.attach(to_logging):
        events.report("one")
        events.report("two")
    assert len(said) == 1
    assert "No space left" in said[0]


def test_without_being_asked_for_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    events = Events("s")
    with json_lines(None), events.attach(to_logging):
        events.report("failed", kind="error", reason="x")
    assert capsys.readouterr() == ("", "")
    assert logging.getLogger("prunefront").propagate


def test_where_lines_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("PRUNEFRONT_LOG", raising=False)
    assert (log_target(None), log_target("f")) == (None, "f")
    monkeypatch.setenv("PRUNEFRONT_LOG", "json")
    assert (log_target(None), log_target("f")) == ("-", "f")
    monkeypatch.setenv("PRUNEFRONT_LOG", "xml")
    with pytest.raises(PrunefrontError, match="possible: json, text"):
        log_target(None)
    with json_lines("-"):
        to_logging({"event": "one", "time": 0.0, "study": "s", "stage": ""})
    assert json.loads(capsys.readouterr().out)["time"] == "1970-01-01T00:00:00.000+00:00"
    with pytest.raises(PrunefrontError, match="Is a directory"), json_lines(str(tmp_path)):
        pass


def test_a_record_of_another_kind_is_a_line_too() -> None:
    record = logging.makeLogRecord(
        {"name": "prunefront.x", "msg": "a %s", "args": ("b",), "levelname": "INFO"}
    )
    line = json.loads(JsonFormatter().format(record))
    assert (line["event"], line["message"]) == ("log", "a b")


def test_gauges_are_set_again_while_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray drops those that are not. What Ray makes of them is seen in test_finish."""
    recorded: queue.Queue[set[tuple[str, float]]] = queue.Queue()

    class Recorder:
        def record(self, found: Any) -> None:
            recorded.put({(sample.family, sample.value) for sample in found})

    monkeypatch.setattr("prunefront.pipelines.events.metrics.Exporter", Recorder)
    monkeypatch.setattr("prunefront.pipelines.events.metrics.EVERY_SECONDS", 0.01)
    events = Events("s")
    events.watched["workers_busy"] = lambda: 1
    with export_metrics(events, workers=2, remote=False):
        assert recorded.get(timeout=10) == {("workers", 2)}
        for _ in range(2):
            assert recorded.get(timeout=10) == {("workers", 2), ("workers_busy", 1)}


def test_what_cannot_be_looked_at_ends_the_figures_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said: queue.Queue[str] = queue.Queue()

    class Recorder:
        def record(self, found: Any) -> None:
            """Nobody reads it."""

    monkeypatch.setattr("prunefront.pipelines.events.metrics.Exporter", Recorder)
    monkeypatch.setattr("prunefront.pipelines.events.metrics.EVERY_SECONDS", 0.01)
    events = Events("s", said.put)
    events.watched["workers_busy"] = lambda: 1 / 0
    with export_metrics(events, workers=2, remote=False):
        assert "ZeroDivisionError" in said.get(timeout=10)
