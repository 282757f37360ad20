"""What an import costs: each runs in a fresh interpreter, which lists what came along."""

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import nn

from prunefront.choice import GroupChoice
from prunefront.pruners.cut.prune import prune
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.saved import PLAN, WEIGHTS, pack_network, plan_document
from prunefront.pruners.trace.tracer import trace

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
    "prunefront.search.searchers",
    "prunefront.search.space.search_space",
    "prunefront.search.outcomes.measurement",
    "prunefront.pruners.plan.decide",
    "prunefront.pruners.graph.channel_graph",
    "prunefront.pruners.allocators",
)


def loaded(module: str) -> set[str]:
    """The top-level packages, and the packages of prunefront, in memory after `import module`."""
    code = (
        f"import sys, {module}; names = [name.split('.') for name in sys.modules]; "
        "print(*{'.'.join(n[:1 + (n[0] == 'prunefront')]) for n in names})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_the_plain_packages_load_nothing_heavy(module: str) -> None:
    assert loaded(module).isdisjoint(HEAVY)


@pytest.mark.parametrize("module", ["prunefront.pipelines.cli.main", "prunefront.pipelines.config.sections"])
def test_the_command_line_starts_light(module: str) -> None:
    """`prunefront --help` and a typing error in a study file answer at once."""
    assert loaded(module).isdisjoint(HEAVY)


def test_pruners_needs_no_cluster_and_no_tracking() -> None:
    assert loaded("prunefront.pruners.criteria").isdisjoint(
        {"ray", "mlflow", "boto3", "optuna", "prunefront.search", "prunefront.pipelines"}
    )


LOADS = """
import sys
elsewhere = "prunefront.search prunefront.pipelines ray mlflow optuna boto3 onnx onnxruntime pydantic moocore".split()
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in elsewhere:
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Refuse())
from pathlib import Path
import torch
from torch import nn
from prunefront.pruners.saved import load_network
torch.manual_seed(0)
dense = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten())
network = load_network(dense, Path(sys.argv[1]))
print(repr(network(torch.ones(1, 3, 5, 5)).tolist()))
"""


def test_an_artifact_loads_where_there_are_only_torch_and_pruners(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten()
    ).eval()
    graph = trace(dense, torch.ones(2, 3, 5, 5))
    choices = {
        "0": GroupChoice("none", 0.5, keep="ff"),
        "3.weight": GroupChoice("l2", 0.5, "kernel", bits=4),
    }
    aim = plan(graph, choices, {})
    made = prune(dense, graph, aim)
    pack_network(made, graph, aim, tmp_path / WEIGHTS)
    (tmp_path / PLAN).write_text(json.dumps(plan_document(graph, aim)))
    digests = {n: {"sha256": sha256((tmp_path / n).read_bytes()).hexdigest()} for n in (WEIGHTS, PLAN)}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": digests}))
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert done.stdout.strip() == repr(made(torch.ones(1, 3, 5, 5)).tolist())
