"""Who may know whom, read from the source (docs/decisions and CONTRIBUTING.md say why)."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("search", "pruners", "pipelines")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

VAGUE = {"utils", "util", "helpers", "helper", "misc", "common"}
STANDARD = sys.stdlib_module_names | {"_typeshed"}  # the latter is for type checkers only


@dataclass(frozen=True)
class Rule:
    """What the modules below `where` may import, beside the standard library and their own package."""

    where: str
    may: frozenset[str]

    def allows(self, name: str) -> bool:
        """Whether `name` or a package that holds it may be imported."""
        parents = {name} | {name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)}
        return bool(parents & self.may)


# The first rule whose folder holds a module is the one for it.
RULES = (
    Rule(
        "search/searchers/optuna.py",
        may=frozenset(
            {"search", "numpy", "optuna", "prunefront.choice", "prunefront.registry", "prunefront.errors"}
        ),
    ),
    Rule(
        "search",
        may=frozenset(
            {
                "search",
                "numpy",
                "scipy",
                "moocore",
                "threadpoolctl",
                "prunefront.choice",
                "prunefront.registry",
                "prunefront.errors",
            }
        ),
    ),
    Rule("pruners", may=frozenset({"pruners", "torch", "numpy", "jaxtyping", "safetensors"})),
)


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported anywhere in a module, functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            assert node.module is not None
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def violations(name: str, source: str) -> list[str]:
    """What a module at the path `name` imports against its rule."""
    rule = next((r for r in RULES if name == r.where or name.startswith(f"{r.where}/")), None)
    if rule is None:
        return []
    return [
        f"{name}:{line} imports {module}"
        for line, module in imported(ast.parse(source))
        if module.split(".")[0] not in STANDARD and not rule.allows(module)
    ]


PICKLING = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
RUNS_CODE = {
    "eval", "exec", "compile", "__import__", "torch.jit.load", "torch.hub.load", "torch.export.load",
    "torch.package.PackageImporter", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "pd.read_pickle",
    "pandas.read_pickle",
}  # fmt: skip


OWN_FILES = {("pipelines/formats/pt2_export.py", "torch.export.load")}
"""It compares what it has just written."""


def unsafe(name: str, source: str) -> list[str]:
    """Where a module could run code from a file that it loads. Naming pickle's exceptions is no such place."""
    tree = ast.parse(source)
    used = [
        *imported(tree),
        *((n.lineno, ast.unparse(n)) for n in ast.walk(tree) if isinstance(n, ast.Attribute)),
    ]
    found = [
        f"{name}:{line} uses {what}"
        for line, what in used
        if what.split(".")[0] in PICKLING and "." in what and not what.endswith("Error")
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        call, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if call == "torch.load" and given.get("weights_only") != "True":
            found.append(f"{name}:{node.lineno} torch.load without weights_only=True")
        if call in {"np.load", "numpy.load"} and given.get("allow_pickle", "False") != "False":
            found.append(f"{name}:{node.lineno} numpy.load with pickles")
        if call in {"yaml.load", "yaml.load_all"} and "Safe" not in given.get("Loader", ""):
            found.append(f"{name}:{node.lineno} yaml.load with a loader that makes objects")
        if given.get("shell", "False") != "False":
            found.append(f"{name}:{node.lineno} a shell")
        if call in RUNS_CODE and (name, call) not in OWN_FILES:
            found.append(f"{name}:{node.lineno} {call}")
    return found + [
        f"{name}:{n} {what}" for n, what in imported(tree) if what in {"torch.load", "numpy.load"} | RUNS_CODE
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_source_keeps_the_rules(path: Path) -> None:
    name, source = path.relative_to(ROOT).as_posix(), path.read_text()
    assert violations(name, source) == []
    assert unsafe(name, source) == []
    assert ast.get_docstring(ast.parse(source)), f"{name} does not say what it is for"
    assert path.stem not in VAGUE, "a name that could hold anything"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("search/outcomes/front.py", "import torch"),
        ("search/outcomes/front.py", "def f():\n    from prunefront.pruners.cut.surgery import apply"),
        ("search/outcomes/front.py", "import optuna.samplers"),
        ("search/outcomes/front.py", "from pruners import plan"),
        ("search/searchers/optuna.py", "import torch"),
        ("pruners/plan/decide.py", "from prunefront.search.space.search_space import SearchSpace"),
        ("pruners/plan/decide.py", "import ray"),
        ("pruners/plan/decide.py", "from pipelines import config"),
    ],
)
def test_the_import_rules_can_fail(name: str, source: str) -> None:
    assert len(violations(name, source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(file)",
        "from torch import load",
        "from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "torch.export.load(path)",
        "from torch.export import load",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "import shelve\nshelve.open(path)",
        "import joblib\njoblib.load(path)",
    ],
)
def test_the_safety_rules_can_fail(source: str) -> None:
    assert len(unsafe("pipelines/x.py", source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "search/space/search_space.py",
            "import json\nimport numpy as np\nfrom prunefront.choice import GroupChoice",
        ),
        (
            "search/searchers/optuna.py",
            "import optuna\nfrom prunefront.search.space.search_space import SearchSpace",
        ),
        (
            "pruners/plan/decide.py",
            "import torch\nfrom torch import nn\nfrom prunefront.pruners.graph.channel_graph import ChannelGraph",
        ),
        ("pipelines/x.py", "import ray\nimport search\ntorch.load(path, weights_only=True)\nmodel.eval()"),
        (
            "pipelines/x.py",
            "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)\nsubprocess.run([a], shell=False)",
        ),
        ("pipelines/x.py", "import pickle\ntry: f()\nexcept pickle.UnpicklingError: g()"),
    ],
)
def test_the_intended_arrows_pass(name: str, source: str) -> None:
    assert violations(name, source) == unsafe(name, source) == []
