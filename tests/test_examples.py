"""The examples run as README says, and the short one stays short."""

import subprocess
import sys
from pathlib import Path

import pytest

from prunefront import load_front

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.slow


def run(name: str, folder: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_process_searches_without_ray_and_needs_one_import(tmp_path: Path) -> None:
    source = (EXAMPLES / "one_process.py").read_text()
    assert len(source.splitlines()) <= 40
    assert [line for line in source.splitlines() if line.startswith(("import", "from"))] == [
        "import prunefront as pf"
    ]
    *rows, last = run("one_process.py", tmp_path).splitlines()
    points = {line.split()[-1]: [float(line.split()[0]), float(line.split()[1])] for line in rows}
    assert len(points) > 3
    assert points["dense"][1] == pytest.approx(
        1.0, abs=0.2
    )  # measured beside itself, on a machine that may be busy
    best = last.split(": ")[1].split(",")[0]
    assert points[best][1] <= 1.0
    # strictly below: the ratio is printed rounded, and one a little over the dense network's also reads 1.00
    assert points[best][0] >= max(accuracy for accuracy, ratio in points.values() if ratio < 1.0)
    artifact = Path(last.rpartition(" in ")[2].removeprefix("file://"))
    assert (artifact / "model.onnx").exists()


def test_own_model_searches_a_network_and_data_of_its_own(tmp_path: Path) -> None:
    out = run("own_model.py", tmp_path)
    assert "dense" in out
    assert (tmp_path / "studies" / "own-model" / "front.json").exists()


def test_own_task_searches_a_task_and_a_stream_of_its_own(tmp_path: Path) -> None:
    assert len((EXAMPLES / "own_task.py").read_text().splitlines()) <= 60
    rows = run("own_task.py", tmp_path).splitlines()
    degrees = {row.split()[-1]: float(row.split("°")[0]) for row in rows}
    assert degrees["dense"] < 15  # by guessing it is 45
    assert len(degrees) > 2


@pytest.mark.parametrize(("name", "metric"), [("segmentation", "miou"), ("detector", "map")])
def test_studies_of_drawn_shapes_run_quickly(name: str, metric: str, tmp_path: Path) -> None:
    assert f"{metric} %" in run(f"shapes_{name}.py", tmp_path, "--quick")
    front = load_front(tmp_path / "studies" / f"shapes-{name}-quick")
    (dense,) = (row for row in front if row.key == "dense")
    assert (dense.metric.name, dense.images) == (metric, 64)
    assert 0 <= dense.quality_low < dense.quality < dense.quality_high
