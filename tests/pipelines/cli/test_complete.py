"""What a shell offers, asked for as a shell asks: by variables of the environment, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunefront.pipelines.artifacts.convert import SUFFIXES
from prunefront.pipelines.cli.catalogue import LISTS
from prunefront.pipelines.cli.complete import BOUNDED, FORMATS, OBJECTIVES
from prunefront.pipelines.fronts.choice import COLUMNS
from prunefront.search.outcomes import measurement
from prunefront.search.searchers import searchers

ROOT = Path(__file__).parents[3]


def offered(line: str, folder: Path, shell: str = "bash") -> list[str]:
    """What the shell offers for the last word of a line."""
    words = line.split(" ")
    env = os.environ | {"PYTHONPATH": str(ROOT), "_PRUNEFRONT_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        env |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    else:
        env |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(
        [sys.executable, "-m", "prunefront"], env=env, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two studies that were searched, and study files here and below."""
    for name in ("digits", "dogs", "cats"):
        (tmp_path / "studies" / name).mkdir(parents=True)
        (tmp_path / "studies" / name / "study.json").write_text("{}")
    (tmp_path / "studies" / "no-study").mkdir()
    (tmp_path / "examples").mkdir()
    for name in ("digits.toml", "other.toml", "examples/deep.toml", "examples/notes.md"):
        (tmp_path / name).write_text("")
    return tmp_path


def test_commands_and_options(folder: Path) -> None:
    assert offered("prunefront re", folder) == ["report", "rehearse"]
    assert offered("prunefront search --re", folder) == ["--resume"]
    assert offered("prunefront export --over", folder) == [], "an old spelling"
    assert offered("prunefront --show", folder) == ["--show-completion"]


@pytest.mark.parametrize(
    "command",
    ["inspect", "search", "status", "front", "fetch", "ui", "submit", "logs", "stop", "latency-table"],
)
def test_studies_by_name_and_by_file(command: str, folder: Path) -> None:
    assert offered(f"prunefront {command} d", folder) == ["digits", "dogs", "digits.toml"]


def test_more_of_studies(folder: Path) -> None:
    assert offered("prunefront gc ", folder) == ["cats", "digits", "dogs", "digits.toml", "other.toml"]
    assert offered("prunefront rehearse examples/", folder) == ["examples/deep.toml"]
    assert offered("prunefront front nowhere/", folder) == []
    assert offered("prunefront verify best --study c", folder) == ["cats"]
    assert offered(f"prunefront front {folder}/examples/d", folder) == [f"{folder}/examples/deep.toml"]
    assert offered("prunefront front x", folder / "studies") == []


def test_values_of_other_words(folder: Path) -> None:
    assert offered("prunefront list ", folder) == list(LISTS)
    assert offered("prunefront export best --format o", folder) == ["onnx", "openvino"]
    assert offered("prunefront fetch digits --best lat", folder) == ["latency_ms", "latency_ratio"]
    assert offered("prunefront fetch digits --under lat", folder) == [
        "latency_ms=",
        "latency_ratio=",
        "latency_ratio_high=",
    ]
    assert offered("prunefront rehearse digits --searcher ", folder) == sorted(searchers)


def test_other_shells(folder: Path) -> None:
    assert offered("prunefront list cr", folder, "fish") == ["criteria"]
    assert offered("prunefront list cr", folder, "zsh") == ["_arguments '*: :((\"criteria\"))'"]


def test_the_values_are_those_that_are_taken() -> None:
    assert tuple(SUFFIXES) == FORMATS
    assert tuple(measurement.OBJECTIVES) == OBJECTIVES
    assert {*COLUMNS} == {*BOUNDED} - {"accuracy", "accuracy_low", "accuracy_high"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_shown_and_installed(shell: str, tmp_path: Path) -> None:
    """typer looks at the shell that runs it; here it is told instead."""
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    command = [sys.executable, "-m", "prunefront"]
    script = subprocess.run(
        [*command, "--show-completion", shell], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert "_PRUNEFRONT_COMPLETE" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    subprocess.run([*command, "--install-completion", shell], env=env, capture_output=True, check=True)
    assert any("PRUNEFRONT_COMPLETE" in p.read_text() for p in tmp_path.rglob("*prunefront*") if p.is_file())
