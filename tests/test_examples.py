"""The examples run as README says, and the short one stays short."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.slow


def run(name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], cwd=folder, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_process_prints_a_front_in_forty_lines(tmp_path: Path) -> None:
    assert len((EXAMPLES / "one_process.py").read_text().splitlines()) <= 40
    lines = run("one_process.py", tmp_path).splitlines()
    points = [(float(line.split()[0]), float(line.split()[1])) for line in lines]
    assert len(points) > 3
    # a front: who is more accurate costs more
    assert points == sorted(points, reverse=True)


def test_own_model_searches_a_network_and_data_of_its_own(tmp_path: Path) -> None:
    out = run("own_model.py", tmp_path)
    assert "dense" in out
    assert (tmp_path / "studies" / "own-model" / "front.json").exists()
