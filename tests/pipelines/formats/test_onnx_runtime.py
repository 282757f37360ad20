"""ONNX Runtime is imported in one place, without its telemetry, and the environment stays as it was."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
NAME = "ORT_DISABLE_TELEMETRY"
OURS = "prunefront.pipelines.formats.onnx_runtime"
FILES = sorted(
    path
    for folder in ("prunefront", "search", "pruners", "pipelines", "benchmarks", "examples", "tests")
    for path in (ROOT / folder).rglob("*.py")
)

TRACES = {"deviceid", "onnxruntime.db", ".ses"}
"""Files that its telemetry leaves in the home and in the folder for temporary files."""

SESSION = """
import os
before = dict(os.environ)
import prunefront.search, prunefront.pruners, prunefront.pipelines
assert os.environ == before, "by the packages"
from pathlib import Path
import torch
from torch import nn
from prunefront.pipelines.formats.int8 import quantise_onnx
from prunefront.pipelines.formats.onnx_export import check, export
from prunefront.pipelines.measure.runtimes import runtimes
assert os.environ == before, "by what imports ONNX Runtime"
images = torch.zeros(2, 3, 8, 8)
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
path = Path.home() / "network.onnx"
export(network, images, path)
check(network, path, images)
quantise_onnx(path, [images], path)
runtimes["onnxruntime"](network, path, images, 1)()
print(os.environ.get("ORT_DISABLE_TELEMETRY"))
"""


def run(code: str, home: Path, **variables: str) -> list[str]:
    """Returns the lines that `code` prints in a fresh interpreter whose home is `home`; in CI it would send nothing."""
    kept = {name: value for name, value in os.environ.items() if name not in (NAME, "XDG_CACHE_HOME", "CI")}
    environment = kept | {"HOME": str(home), "TMPDIR": str(home)} | variables
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def traces(home: Path) -> set[str]:
    return TRACES & {path.name for path in home.rglob("*")}


def test_sessions_leave_no_device_id_and_the_environment_as_it_was(tmp_path: Path) -> None:
    assert run(SESSION, tmp_path) == ["None"]
    assert traces(tmp_path) == set()


def test_what_a_person_asked_of_it_stays(tmp_path: Path) -> None:
    assert run(f"import os, {OURS}; print(os.environ[{NAME!r}])", tmp_path, **{NAME: "1"}) == ["1"]
    assert traces(tmp_path) == set()


def test_without_it_there_would_be_a_device_id(tmp_path: Path) -> None:
    """The test above sees only these files: ONNX Runtime may come to store others."""
    run("import onnxruntime", tmp_path)
    assert traces(tmp_path) == TRACES


def imported(path: Path) -> set[str]:
    """Modules that a source imports, functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_everybody_imports_it_from_there() -> None:
    """int8 alone imports a part of it, in a function: by then its own import from there has been carried out."""
    direct = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        if any(name.partition(".")[0] == "onnxruntime" for name in imported(path))
    }
    assert direct == {"pipelines/formats/onnx_runtime.py", "pipelines/formats/int8.py"}
    assert OURS in imported(ROOT / "pipelines/formats/int8.py")
