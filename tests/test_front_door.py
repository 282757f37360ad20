"""`import prunefront as pf`: what it offers, what it loads, its examples, and a whole study without Ray."""

import doctest
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import prunefront as pf
from prunefront.pipelines.journal.layout import FRONT
from prunefront.pipelines.journal.layout import STUDY as STUDY_FILE
from tests.prepared import prepare

ROOT = Path(__file__).parents[1]
EXAMPLES = (
    "Front",
    "load_front",
    "load_study",
    "trace",
    "score",
    "plan",
    "prune",
    "shrink",
    "cost",
    "save_network",
)
"""Names whose docstring shows how they are used."""

STUDY: dict[str, Any] = {
    "name": "door",
    "model": {"factory": "digits_cnn", "options": {"width": 4}},
    "data": {"train_limit": 400, "test_limit": 200, "validation": 100},
    "dense": {"epochs": 2},
    "search": {"candidates": 12, "searcher": "evolution"},
    "training": {"candidates": 2, "epochs": 2, "early_stopping": True, "precision": "float32"},
    "measure": {"pairs": 10},
    "controls": {"methods": ["scratch_e"], "networks": 1},
    "cluster": {"workers": 1},
    "artifacts": {"pt2": False},
}


def write_searched_study(folder: Path) -> None:
    """Makes studies/digits below `folder` as a search leaves it: the dense network and a smaller one."""

    def row(key: str, accuracy: float, share: float) -> dict[str, Any]:
        interval = {"accuracy_low": accuracy - 0.01, "accuracy_high": accuracy + 0.01, "images": 400}
        ratios = {"latency_ratio": share, "latency_ratio_low": share, "latency_ratio_high": share}
        latency = {"latency_ms": 2.0 * share, "dense_latency_ms": 2.0}
        sizes = {"size_bytes": int(400_000 * share), "macs": int(1e6 * share), "params": int(1e5 * share)}
        return {"key": key, "accuracy": accuracy, "achieved": {}} | interval | ratios | latency | sizes

    study = folder / "studies" / "digits"
    study.mkdir(parents=True)
    settings = {"name": "digits", "model": {"factory": "digits_cnn"}}
    (study / STUDY_FILE).write_text(json.dumps(settings))
    (study / FRONT).write_text(json.dumps([row("dense", 0.99, 1.0), row("c41", 0.98, 0.4)]))


def run(code: str, folder: Path, **study: Any) -> str:
    """Runs Python in a process of its own, which finds a study in `study.json`, and returns what it prints."""
    (folder / "study.json").write_text(json.dumps({**STUDY, **study}))
    if not (folder / "studies").exists():
        prepare(folder / "study.json", **{**STUDY, **study})
    code = f"import json, sys\nimport prunefront as pf\nstudy = json.load(open('study.json'))\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_name_is_there_and_none_is_loaded_before_it_is_used() -> None:
    code = (
        "import sys, prunefront as pf; heavy = {'torch', 'ray', 'numpy', 'pydantic'} & set(sys.modules); "
        "assert not heavy, heavy; assert {*pf.__all__} <= {*dir(pf)}; print(*pf.__all__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in done.stdout.split():
        assert inspect.getdoc(getattr(pf, name)), f"{name} says nothing"
    assert callable(pf.search)
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = pf.prun


@pytest.mark.parametrize("name", ["prunefront", *EXAMPLES])
def test_its_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_searched_study(tmp_path)
    found = pf if name == "prunefront" else getattr(pf, name)
    source = inspect.getmodule(found)
    assert source is not None
    finder = doctest.DocTestFinder(recurse=False)
    tests = [t for t in finder.find(found, name, module=False, globs={"pf": pf}) if t.examples]
    assert tests, f"{name} shows no example"
    for test in tests:
        said: list[str] = []
        failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append).failed
        assert not failed, "".join(said)


def test_a_study_is_named_by_its_file_its_settings_or_itself(tmp_path: Path) -> None:
    file = tmp_path / "door.toml"
    file.write_text('name = "door"\n[model]\nfactory = "digits_cnn"\n')
    study = pf.load_study(file)
    assert study == pf.load_study({"name": "door", "model": {"factory": "digits_cnn"}})
    assert pf.load_study(study) is study
    with pytest.raises(pf.PrunefrontError, match=r"unknown key 'model\.factori'; did you mean 'factory'"):
        pf.load_study({"name": "door", "model": {"factori": "digits_cnn"}})
    with pytest.raises(pf.PrunefrontError, match="there is no study 'nowhere'"):
        pf.load_front("nowhere")


SEARCH = "front = pf.search(study, quiet=True, without_ray={}); print('ray' in sys.modules, len(front))"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which a study was searched without Ray, and what that printed."""
    folder = tmp_path_factory.mktemp("searched")
    return folder, run(SEARCH.format(True), folder)


@pytest.mark.slow
def test_a_search_without_ray_finds_what_one_worker_of_ray_finds(
    searched: tuple[Path, str], tmp_path: Path
) -> None:
    """Same seed, same order: the first stage asks for and scores the same candidates, to the last digit."""
    outputs = {"local": searched, "ray": (tmp_path, run(SEARCH.format(False), tmp_path))}
    asked, told = {}, {}
    for name, (folder, printed) in outputs.items():
        loaded, rows = printed.split()
        assert loaded == str(name == "ray"), "Ray is loaded where it is used, and nowhere else"
        assert int(rows) >= 3  # dense, dense fine-tuned, and a candidate or its control
        lines = (folder / "studies" / "door" / "journal.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        asked[name] = [e["candidate"] for e in events if e["event"] == "asked"]
        told[name] = [(e["key"], e["outcome"]) for e in events if e["event"] == "told"]
        assert {e["event"] for e in events} >= {"asked", "told", "promoted", "trained", "published"}
        # every network is one whose file the dense one's could be filled for
        assert not [e for e in events if e.get("exported")]
    assert asked["local"] == asked["ray"]
    assert told["local"] == told["ray"]
    assert len(told["local"]) == 12


@pytest.mark.slow
def test_a_search_without_ray_is_resumed_and_its_front_read(searched: tuple[Path, str]) -> None:
    folder, printed = searched
    more = run(
        "front = pf.search(study, quiet=True, without_ray=True, resume=True)\n"
        "again = pf.load_front('door')\n"
        "assert again == front\n"
        "best = front.best(under={'latency_ms': 1e6})\n"
        "assert best.accuracy == max(row.accuracy for row in front)\n"
        "print(len(front))",
        folder,
    )
    assert printed.split()[1] == more.strip()


def test_several_processes_are_not_had_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pf.PrunefrontError, match=r"cluster\.workers = 3 asks for several processes"):
        importlib.import_module("prunefront.door").search(
            {**STUDY, "cluster": {"workers": 3}}, without_ray=True, quiet=True
        )
    with pytest.raises(pf.PrunefrontError, match="--address auto names a Ray cluster"):
        importlib.import_module("prunefront.door").search(STUDY, without_ray=True, address="auto", quiet=True)
