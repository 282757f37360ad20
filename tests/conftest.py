"""Settings for every test."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no bug, so no example has a time limit. In CI hypothesis has a profile of its own, which repeats.
settings.register_profile("unhurried", deadline=None)
if not os.environ.get("CI"):
    settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what prunefront remembers of this person apart from the tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with slow tests first, so that no worker is left alone with one at the end."""
    slow: dict[Path, int] = {}
    for item in items:
        slow.setdefault(item.path, 0)
        slow[item.path] += any(marker.name in ("slow", "services") for marker in item.iter_markers())
    items.sort(key=lambda item: -slow[item.path])  # stable: a file's own order stays
