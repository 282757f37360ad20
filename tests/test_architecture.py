"""Who may know whom, read from the source (docs/decisions and CONTRIBUTING.md say why)."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("search", "pruners", "pipelines")
SOURCES = sorted(path for package in ("prunefront", *PACKAGES) for path in (ROOT / package).rglob("*.py"))

VAGUE = {"utils", "util", "helpers", "helper", "misc", "common"}
STANDARD = sys.stdlib_module_names | {"_typeshed"}  # the latter is for type checkers only

LARGEST_ROOM = 15
"""Most files of a folder, beside its `__init__.py`."""

FLOORS = {
    "search": ("simulator", "searchers", "prediction", "promotion", "space", "outcomes"),
    "pruners": (
        "shrink", "saved", "controls", "procedures", "trace", "cut", "scoring", "allocators", "plan", "criteria",
        "bits", "granularities", "statistics", "quantisers", "storage", "units", "graph",
    ),
    "pipelines": (
        "job", "cli", "study", "stages", "prepare", "recovery", "workers", "fronts", "artifacts", "cluster", "measure",
        "formats", "loops", "tasks", "data", "models", "stores", "tracking", "config", "journal", "events",
    ),
}  # fmt: skip
"""Rooms of each package from the top down: a room may import those below it, and none above it."""

OUTSIDE = {
    "prunefront": frozenset({"numpy"}),
    "search": frozenset({"prunefront", "numpy", "scipy", "moocore", "threadpoolctl"}),
    "pruners": frozenset({"prunefront", "torch", "numpy", "jaxtyping", "safetensors"}),
}
"""What a package may import beside the standard library; `pipelines` may import everything."""

BELOW = {"pipelines": ("search", "pruners"), "search": (), "pruners": (), "prunefront": ()}
"""Which of our packages a package may import, beside itself and the ground."""


DOOR = {"prunefront/__init__.py", "prunefront/__main__.py", "prunefront/door.py"}
"""The front door, which may look at everything: it imports when a name is used."""


def module_of(path: str) -> str:
    """The dotted name of a source: `search/space/budget.py` is `prunefront.search.space.budget`."""
    dotted = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    return dotted if dotted.startswith("prunefront") else f"prunefront.{dotted}"


def place(module: str) -> tuple[str, str]:
    """Package and room of a module of ours; the ground, which everything stands on, is ("prunefront", "")."""
    parts = module.split(".")[1:]
    if not parts or parts[0] not in PACKAGES:
        return "prunefront", ""
    return parts[0], parts[1] if len(parts) > 1 else ""


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


def violations(path: str, source: str) -> list[str]:
    """Imports of a source that point upwards, across packages, or outside to what its package goes without."""
    if path in DOOR:
        return []
    package, room = place(module_of(path))
    floors = FLOORS.get(package, ())
    found = []
    for line, name in imported(ast.parse(source)):
        top = name.split(".")[0]
        if top != "prunefront":
            allowed = OUTSIDE.get(package)
            optuna = path == "search/searchers/optuna.py" and top == "optuna"
            if allowed is not None and top not in STANDARD and top not in allowed and not optuna:
                found.append(f"{path}:{line} imports {name}")
            continue
        to, below = place(name)
        if to == "prunefront":
            continue
        if to != package:
            wrong = to not in BELOW[package]
        else:
            wrong = bool(room) and room != below and floors.index(room) >= floors.index(below)
        if wrong:
            found.append(f"{path}:{line} imports {name}")
    return found


def circles(imports: Mapping[str, Set[str]]) -> list[list[str]]:
    """Groups of modules that import each other in a loop."""
    sorter = TopologicalSorter(imports)
    try:
        sorter.prepare()
    except CycleError as error:
        return [error.args[1]]
    return []


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {module_of(path.relative_to(ROOT).as_posix()): path for path in SOURCES}
    graph = {}
    for module, path in names.items():
        targets = [
            name for _, name in imported(ast.parse(path.read_text())) if name.startswith("prunefront.")
        ]
        graph[module] = {t if t in names else t.rpartition(".")[0] for t in targets}
    assert sum(map(len, graph.values())) > 1000, "the imports were read"
    assert circles(graph) == []


WHOLE_STUDY = ("pipelines/config/", "pipelines/study/", "pipelines/cli/", "prunefront/door.py")
"""Places that may hold a whole study; every other module is given the sections that concern it."""

HANDS_OUT_A_STUDY = {
    "prunefront.pipelines.config.sections.StudyConfig",
    "prunefront.pipelines.config.read.load",
    "prunefront.pipelines.config.read.parse",
    "prunefront.pipelines.study.find.load_config",
}


def whole_study(path: str, source: str) -> list[str]:
    """Returns what a source imports or names that gives it a whole study, where it may hold none."""
    if path.startswith(WHOLE_STUDY):
        return []
    tree = ast.parse(source)
    found = [name for _, name in imported(tree) if name in HANDS_OUT_A_STUDY]
    names = [
        n.id if isinstance(n, ast.Name) else n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Name | ast.Attribute)
    ]
    return found + [name for name in names if name == "StudyConfig"]


def test_only_entry_points_hold_a_whole_study() -> None:
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in SOURCES}
    assert {name: found for name, text in sources.items() if (found := whole_study(name, text))} == {}
    in_commands = [
        name for name, text in sources.items() if name.startswith("pipelines/cli/") and "StudyConfig" in text
    ]
    assert in_commands == ["pipelines/cli/resolve.py"], "commands ask it for the study that they hand on"


@pytest.mark.parametrize(
    "source",
    [
        "from prunefront.pipelines.config.sections import StudyConfig",
        "from prunefront.pipelines.config import sections\ndef f(study: sections.StudyConfig): ...",
        "def f():\n    from prunefront.pipelines.config.read import load",
    ],
)
def test_a_module_that_takes_a_whole_study_is_seen(source: str) -> None:
    assert whole_study("pipelines/stages/x.py", source)
    assert not whole_study("pipelines/study/x.py", source)


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []


def test_every_room_is_on_a_floor_and_none_is_a_hall() -> None:
    for package, floors in FLOORS.items():
        inside = {
            path.stem
            for path in (ROOT / package).iterdir()
            if path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py")))
        }
        assert inside - {"__init__"} == set(floors)
    sizes = Counter(path.parent for path in SOURCES if path.name != "__init__.py")
    assert {str(room): n for room, n in sizes.items() if n > LARGEST_ROOM} == {}


OPENINGS = {"Of", "As", "What", "Where", "Whether", "Else", "Who", "That", "How", "When", "Which"}
"""First words after which a reader must decode a docstring: it should say what returns, writes or is."""


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields line and text of every docstring: of modules, classes, functions, and of names that are assigned."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield getattr(node, "lineno", 1), text
            for before, after in pairwise(node.body):
                if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
                    value = after.value
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        yield before.lineno, value.value


def to_decode(source: str) -> list[int]:
    """Returns the lines whose docstring opens with a word that makes it a riddle."""
    found = docstrings(ast.parse(source))
    return [line for line, text in found if text.split(maxsplit=1)[0].rstrip(",:") in OPENINGS]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_can_be_read_at_once(path: Path) -> None:
    assert to_decode(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        '"""What a module is."""',
        'def f():\n    """Whether it is."""',
        'X = 1\n"""Of a file."""',
        'class A:\n    x = 1\n    """As `y`."""',
    ],
)
def test_a_riddle_is_seen(source: str) -> None:
    assert len(to_decode(source)) == 1


OLD_NAMES = re.compile(r"^[\s\"']*(?:from|import)\s+(search|pruners|pipelines)\b", re.MULTILINE)


def test_nobody_imports_by_the_old_names() -> None:
    """A module imported as `search.x` and as `prunefront.search.x` would be loaded twice."""
    known = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in known.stdout.splitlines()]
    texts = [f for f in files if f.suffix in {".py", ".md", ".sh", ".toml", ".yaml"} and f.is_file()]
    assert len(texts) > 300
    assert [str(f) for f in texts if OLD_NAMES.search(f.read_text())] == []


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
        ("search/outcomes/front.py", "from prunefront.search.searchers import searchers"),
        ("search/searchers/optuna.py", "import torch"),
        ("pruners/plan/cost.py", "from prunefront.search.space.candidate import Candidate"),
        ("pruners/plan/cost.py", "import ray"),
        ("pruners/plan/cost.py", "from prunefront.pipelines import config"),
        ("pruners/plan/cost.py", "from prunefront.pruners.cut.surgery import apply"),
        ("pipelines/stores/s3.py", "from prunefront.pipelines.study import find"),
        ("prunefront/errors.py", "from prunefront.search.space.candidate import Candidate"),
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
            "search/space/budget.py",
            "import json\nimport numpy as np\nfrom prunefront.choice import GroupChoice",
        ),
        (
            "search/searchers/optuna.py",
            "import optuna\nfrom prunefront.search.space.candidate import Candidate",
        ),
        (
            "pruners/cut/surgery.py",
            "from torch import nn\nfrom prunefront.pruners.graph.pruning_plan import PruningPlan",
        ),
        ("pipelines/x.py", "import ray\ntorch.load(path, weights_only=True)\nmodel.eval()"),
        ("pipelines/cli/main.py", "from prunefront.search.searchers import searchers"),
        (
            "pipelines/x.py",
            "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)\nsubprocess.run([a], shell=False)",
        ),
        ("pipelines/x.py", "import pickle\ntry: f()\nexcept pickle.UnpicklingError: g()"),
    ],
)
def test_the_intended_arrows_pass(name: str, source: str) -> None:
    assert violations(name, source) == unsafe(name, source) == []


CLASSIFYING = re.compile(r"cross[_-]?entropy|\b[Aa]ccurac|\bargmax\(1\)")
"""What is said of networks that classify alone. The constant ACCURACY, a metric among others, is none."""

MAY_CLASSIFY = {
    "pipelines/cli/app.py": "an example in a help text",
    "pipelines/cli/artifact.py": "an example in a help text",
    "pipelines/cli/choose.py": "an example in a help text",
    "pipelines/cli/complete.py": "names that a shell completes",
    "pipelines/config/bounds.py": "an example of a bound",
    "pipelines/config/sections.py": "objectives of a study that names no task",
    "pipelines/formats/int8.py": "int8 files of classifiers may be asked to keep classes",
    "pipelines/fronts/choice.py": "an example of a bound",
    "pipelines/fronts/front.py": "an example",
    "pipelines/fronts/row.py": "fronts of studies before tasks, and `row.accuracy`",
    "pipelines/journal/metrics.py": "journals of studies before tasks",
    "pipelines/prepare/network.py": "metrics whose chance level is one in the number of classes",
    "pipelines/prepare/problem.py": "objectives of a study that names none",
    "prunefront/door.py": "an example",
    "pruners/allocators/sensitivity.py": "what a paper measured",
    "pruners/procedures/channels/iterative.py": "advice in a table",
    "pruners/procedures/channels/tick_tock.py": "advice in a table",
    "pruners/procedures/run.py": "default of a loss that every study replaces by its task's",
    "pruners/scoring.py": "default of a loss that every study replaces by its task's",
    "pruners/shrink.py": "default of a loss, where there is no study",
    "pruners/statistics/__init__.py": "default of a loss that every study replaces by its task's",
    "pruners/statistics/selection.py": "auxiliary classifiers of the paper; other losses use the network's own",
    "pruners/statistics/sensitivity.py": "what a paper measured",
    "search/outcomes/constraints.py": "bounds on accuracy as they were written before tasks",
    "search/outcomes/measurement.py": "the metric of studies that name no task",
}
"""Modules outside `pipelines/tasks` that mention classification, and why."""


def test_only_tasks_know_what_networks_are_judged_by() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if "pipelines/tasks/" not in path.as_posix() and CLASSIFYING.search(path.read_text(encoding="utf-8"))
    }
    assert not found - MAY_CLASSIFY.keys(), "say quality, or the metric's own name"
    assert not MAY_CLASSIFY.keys() - found, "these mention it no longer: take them off the list"


BY_NAME = {
    "load_file",
    "safe_open",
    "safetensors.safe_open",
    "tarfile.open",
    "Image.open",
    "zipfile.ZipFile",
    "torch.load",
}
"""Functions of libraries that open a file by its name; a source that calls them checks the file first."""

CHECKS = {"open_regular", "check_regular", "read_bytes", "is_file"}
"""Calls that check, one of which such a source must have."""

MAY_READ = {
    "prunefront/reading.py": "it is the reader",
    "prunefront/strict_json.py": "it is the parser of JSON",
    "pipelines/config/read.py": "it is the parser of TOML, of a text that the reader read",
    "pipelines/stores/store.py": "`read_text` is its own, of an object",
    "pipelines/journal/journal.py": "the lock is opened with flags of its own, and reads what it has locked",
    "pipelines/study/status.py": "it opens the lock, checked before, as a lock is held by what is open",
    "pipelines/measure/timing_lock.py": "locks, in a folder of this user's own",
    "prunefront/atomic.py": "it writes",
    "pipelines/workers/evaluate.py": "it reads the header of weights that it has just written",
    "pipelines/artifacts/publish.py": "`read_text` of a store",
}
"""Sources that may read by other means than `prunefront.reading`, and why."""

MAY_PRINT = {
    "pipelines/events/printing.py": "it is the printer",
    "pipelines/events/log.py": "it writes lines of JSON, whose characters are escaped",
    "pipelines/cli/app.py": "it hands streams to the printer, and writes the document of --json, in ASCII",
    "pipelines/cli/main.py": "it hands stderr to the printer, and Python's own warnings to stderr",
    "pipelines/job.py": "it runs on a cluster before the package can be imported",
    "pipelines/cli/jobs.py": "it copies a job's log, escaped",
}
"""Sources that may write to a standard stream, and why."""

TAG = re.compile(r"(?<!\?P)</?[a-zA-Z][a-zA-Z0-9]*(\s[^<>]*)?/?>")


def reads_by_itself(name: str, source: str) -> list[str]:
    """Returns where a source reads a file by other means than `prunefront.reading`."""
    if name in MAY_READ:
        return []
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = {ast.unparse(call.func).rpartition(".")[2] for call in calls}
    found = []
    for call in calls:
        what, method = ast.unparse(call.func), isinstance(call.func, ast.Attribute)
        if what in {"json.load", "json.loads", "tomllib.load", "tomllib.loads", "open", "io.open"}:
            found.append(what)
        elif what == "os.open":
            found += [what] * ("O_RDONLY" in ast.unparse(call))
        elif what in BY_NAME:
            found += [what] * (not names & CHECKS)
        elif method and call.func.attr in {"read_text", "read_bytes"} and not call.args:  # type: ignore[attr-defined]
            found.append(what)
        elif method and call.func.attr == "open" and what not in BY_NAME:  # type: ignore[attr-defined]
            mode = ast.unparse(call.args[0]) if call.args else "'r'"
            found += [what] * ("r" in mode)
    return [f"{name} reads with {what}" for what in found]


def prints_by_itself(name: str, source: str) -> list[str]:
    """Returns where a source writes to a standard stream, or makes a console, by other means than the printer."""
    if name in MAY_PRINT:
        return []
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            what = ast.unparse(node.func)
            if what in {
                "print",
                "typer.echo",
                "Console",
                "rich.print",
                "sys.stdout.write",
                "sys.stderr.write",
            }:
                found.append(f"{name} prints with {what}")
    return found


def html_by_itself(name: str, source: str) -> list[str]:
    """Returns where a source puts values into HTML."""
    return [
        f"{name}:{node.lineno} puts a value into HTML"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.JoinedStr)
        and any(isinstance(part, ast.Constant) and TAG.search(str(part.value)) for part in node.values)
    ]


def test_there_is_one_reader_and_one_printer() -> None:
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in SOURCES}
    faults = [
        fault
        for name, text in sources.items()
        for rule in (reads_by_itself, prints_by_itself, html_by_itself)
        for fault in rule(name, text)
    ]
    assert faults == []
    assert {*MAY_READ, *MAY_PRINT} <= sources.keys(), "exceptions that nobody needs any more"


@pytest.mark.parametrize(
    "source",
    [
        "path.read_text()",
        "path.read_bytes()",
        "path.open()",
        "path.open('rb')",
        "open(path)",
        "os.open(path, os.O_RDONLY)",
        "json.load(file)",
        "json.loads(text)",
        "tomllib.load(file)",
        "load_file(path)",
        "Image.open(path)",
        "print('x')",
        "typer.echo('x')",
        "Console().print('[b]x')",
        "sys.stdout.write(text)",
        "f'<b>{name}</b>'",
    ],
)
def test_another_reader_or_printer_is_seen(source: str) -> None:
    rules = (reads_by_itself, prints_by_itself, html_by_itself)
    assert sum(len(rule("pipelines/x.py", source)) for rule in rules) == 1


@pytest.mark.parametrize(
    "source",
    [
        "read_text(path)",
        "path.open('xb')",
        "check_regular(path)\nload_file(path)",
        "people.print(x)",
        "f'{a} < {b}'",
    ],
)
def test_what_goes_through_them_passes(source: str) -> None:
    rules = (reads_by_itself, prints_by_itself, html_by_itself)
    assert sum(len(rule("pipelines/x.py", source)) for rule in rules) == 0
