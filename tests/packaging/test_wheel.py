"""What others install, wheel and sdist, and a study in a folder whose own modules have the names of our folders."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
SDIST = "import sys; to = sys.argv.pop(); from setuptools import build_meta; build_meta.build_sdist(to)"

STUDY = """\
name = "own"
[model]
factory = "search.nets:make"
[data]
source = "pipelines.images:made"
[dense]
epochs = 1
[space]
criteria = ["l1"]
calibration_images = 64
[search]
searcher = "random"
candidates = 3
[training]
candidates = 1
epochs = 1
precision = "float32"
[measure]
pairs = 10
[artifacts]
pt2 = false
[cluster]
workers = 1
"""
OWN = {
    "search/nets.py": """\
import os
from pathlib import Path

import prunefront
from models import head
from torch import nn
from utils.layers import layer

with Path(__file__).with_name("imported.txt").open("a") as seen:
    seen.write(f"{os.getpid()} {prunefront.__file__}\\n")


def make():
    return nn.Sequential(*layer(1, 8), *layer(8, 8), *head(8, 2))
""",
    "utils/layers.py": """\
from torch import nn


def layer(before, after):
    return nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
""",
    "models.py": """\
from torch import nn


def head(channels, classes):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
""",
    "pipelines/images.py": """\
import numpy as np
from prunefront.pipelines.data import Split


def made():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    images = rng.integers(0, 128, (400, 1, 8, 8)) + 100 * labels[:, None, None, None]
    data = Split(images.astype(np.uint8), labels.astype(np.int64))
    return data[:200], data[200:300], data[300:]
""",
}
IMPORTS = (
    "import prunefront, prunefront.search.simulator, prunefront.pruners, prunefront.pipelines.config.sections as p; "
    "print(prunefront.__file__); print(p.__file__)"
)
OLD_NAMES = (
    "from importlib.util import find_spec; "
    "print([name for name in ('search', 'pruners', 'pipelines', 'benchmarks') if find_spec(name)])"
)


def run(*line: str | Path, cwd: Path, **variables: str) -> str:
    """The standard output of a command that must succeed; it sees no PYTHONPATH and no Ray of this process."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("RAY_")}
    done = subprocess.run(
        line,
        cwd=cwd,
        env=inherited | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{line} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel by their path in it."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def build_wheel(tree: Path, to: Path) -> Path:
    run(*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", to, ".", cwd=tree)
    (wheel,) = to.glob("*.whl")
    return wheel


def environment(folder: Path, *installed: str | Path) -> Path:
    """Installs something of ours into a fresh environment; returns its folder of programs.

    The dependencies come from this interpreter's site-packages. A path configuration file names that folder, so the
    path configuration files in it, among them our own editable install, are not read.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin/python"
    dependencies = sysconfig.get_path("purelib")
    if installed:
        line = (
            "install",
            "--no-deps",
            "--no-index",
            "--no-build-isolation",
            "--ignore-installed",
            *installed,
        )
        # where something is built, this environment sees the setuptools of ours by the variable
        run(*PIP, "--python", python, *line, cwd=folder.parent, PYTHONPATH=dependencies)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone's files and links in a folder called `prunefront`, without what git ignores."""
    target = tmp_path_factory.mktemp("clone") / "prunefront"
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=CHECKOUT)
    for name in filter(None, listed.split("\0")):
        if os.path.lexists(source := CHECKOUT / name):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / name, follow_symlinks=False)
    return target


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel in it."""
    return environment(tmp_path_factory.mktemp("installed") / "venv", wheel)


def test_the_wheel_holds_one_package_and_its_types(tree: Path, wheel: Path) -> None:
    files = contents(wheel)
    (info,) = {name.partition("/")[0] for name in files} - {"prunefront"}
    assert info.endswith(".dist-info")
    assert files[f"{info}/top_level.txt"].decode().split() == ["prunefront"]
    assert "prunefront/py.typed" in files
    assert {f"prunefront/pipelines/fronts/report.{kind}" for kind in ("html", "css", "js")} <= files.keys()
    packed = {name for name in files if name.endswith(".py")}
    ground = {f"prunefront/{path.name}" for path in (tree / "prunefront").glob("*.py")}
    rooms = {
        f"prunefront/{path.relative_to(tree).as_posix()}"
        for folder in ("search", "pruners", "pipelines")
        for path in (tree / folder).rglob("*.py")
    }
    assert packed == ground | rooms
    assert len(packed) > 300


def test_the_sdist_makes_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-c", SDIST, tmp_path, cwd=tree)
    (packed,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        assert not [member.name for member in archive if not (member.isfile() or member.isdir())]
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / packed.name.removesuffix(".tar.gz")
    assert {path.name for path in unpacked.iterdir() if path.is_dir()} == {"src"}
    assert contents(build_wheel(unpacked, tmp_path / "again")) == contents(wheel)


@pytest.mark.parametrize(
    "packages",
    [pytest.param(True, id="packages"), pytest.param(False, id="plain folders", marks=pytest.mark.long)],
)
def test_a_study_runs_beside_modules_of_the_same_names(
    installed: Path, tmp_path: Path, packages: bool
) -> None:
    """The factory, the data and what they import lie in `search`, `pipelines`, `utils` and `models` of the person."""
    variables = {"OMP_NUM_THREADS": "1"}
    for name, text in {"s.toml": STUDY, **OWN}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    if packages:  # these go before everything that is installed, as does this variable
        variables["PYTHONPATH"] = "."
        for folder in ("search", "pipelines", "utils"):
            (tmp_path / folder / "__init__.py").write_text("")
    prunefront = installed / "prunefront"
    run(prunefront, "search", "s.toml", cwd=tmp_path, **variables)
    rows = json.loads((tmp_path / "studies/own/front.json").read_text())
    events = [json.loads(line) for line in (tmp_path / "studies/own/journal.jsonl").read_text().splitlines()]
    outcomes = [event["outcome"] for event in events if event["event"] in {"told", "trained"}]
    assert len(outcomes) >= 4
    assert not [outcome for outcome in outcomes if "failure" in outcome]
    imported = (tmp_path / "search/imported.txt").read_text().splitlines()
    processes, places = zip(*(line.split() for line in imported), strict=True)
    assert len(set(processes)) >= 2, "the workers import it as well"
    assert all(place.startswith(str(installed.parent)) for place in places)

    if packages:
        key = next(row["key"] for row in rows if row["key"] != "dense")
        run(prunefront, "fetch", "s.toml", "--key", key, "--out", "best", cwd=tmp_path, **variables)
        run(prunefront, "verify", "best", "--study", "s.toml", cwd=tmp_path, **variables)


def test_an_installed_package_is_found_beside_a_clone(tree: Path, installed: Path, tmp_path: Path) -> None:
    """The folder above a clone holds a folder `prunefront` without `__init__.py`, and python runs in it."""
    for line in run(installed / "python", "-c", IMPORTS, cwd=tree.parent).split():
        assert line.startswith(str(installed.parent))
    editable = environment(tmp_path / "editable", "--editable", tree)
    for line in run(editable / "python", "-c", IMPORTS, cwd=tree.parent).split():
        assert line.startswith(f"{tree}/src/prunefront/")
    assert run(editable / "python", "-c", OLD_NAMES, cwd=tmp_path) == "[]\n"


def test_a_clone_works_where_nothing_is_installed(tree: Path, tmp_path: Path) -> None:
    bare = environment(tmp_path / "bare")
    for line in run(bare / "python", "-c", IMPORTS, cwd=tree).split():
        assert line.startswith(f"{tree}/prunefront/")
