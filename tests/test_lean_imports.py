"""What an import costs: each runs in a fresh interpreter, which lists what came along."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch",
    "ray",
    "mlflow",
    "optuna",
    "boto3",
    "onnxruntime",
    "onnx",
    "pandas",
    "sklearn",
    "matplotlib",
}
LIGHT = (
    "search.searchers",
    "search.space",
    "search.measurement",
    "pruners.plan",
    "pruners.graph",
    "pruners.allocators",
)


def loaded(module: str) -> set[str]:
    """The top-level packages in memory after `import module`."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_the_plain_packages_load_nothing_heavy(module: str) -> None:
    assert loaded(module).isdisjoint(HEAVY)


@pytest.mark.parametrize("module", ["pipelines.cli", "pipelines.config"])
def test_the_command_line_starts_light(module: str) -> None:
    """`prunefront --help` and a typing error in a study file answer at once."""
    assert loaded(module).isdisjoint(HEAVY)


def test_pruners_needs_no_cluster_and_no_tracking() -> None:
    assert loaded("pruners.criteria").isdisjoint({"ray", "mlflow", "boto3", "optuna", "search", "pipelines"})
