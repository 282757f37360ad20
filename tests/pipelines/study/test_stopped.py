"""A study that is stopped has the time to say so."""

import signal
from pathlib import Path

import pytest
from rich.console import Console

from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.study import opening
from prunefront.pipelines.study import run as study
from prunefront.pipelines.tracking.tracker import MemoryTracker


def test_the_alarm_that_ray_sets_at_sigterm_does_not_cut_the_end_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three seconds after SIGTERM it would end the process, whatever MLflow still waits for."""
    tracker = MemoryTracker()
    monkeypatch.setattr(opening, "MlflowTracker", lambda *_, **__: tracker)

    def stages(*_: object) -> None:
        signal.alarm(60)  # as Ray's signal handler in C++ does, and then Ray's in Python
        raise SystemExit(signal.SIGTERM)

    monkeypatch.setattr(study, "_stages", stages)
    given = {"name": "s", "folder": str(tmp_path), "model": {"factory": "digits_cnn"}}
    config: StudyConfig = parse(given, source="s.toml", base=tmp_path)
    try:
        with pytest.raises(SystemExit):
            study.run(config, display=Display(Console()))
    finally:
        left = signal.alarm(0)
    assert left == 0
    assert tracker.status == "KILLED"
