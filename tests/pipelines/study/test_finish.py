"""How a study begins again, ends early, and ends: nothing of a person's is lost, nothing half done looks whole."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cli.main import main
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.events.metrics import FAMILIES
from prunefront.pipelines.fronts.choice import best_row, find_row
from prunefront.pipelines.fronts.row import FrontRow
from prunefront.pipelines.journal.journal import Journal
from prunefront.pipelines.prepare.network import NetworkSections, dense_network
from prunefront.pipelines.study.folder import open_folder
from prunefront.pipelines.study.run import next_steps
from prunefront.pipelines.tracking.tracker import MlflowTracker
from prunefront.pipelines.workers.failures import failure
from tests.commands import command
from tests.prepared import prepare
from tests.services.test_mlflow_server import free_port

# MLflow 3.17 uses an option that SQLAlchemy 2.1 deprecates
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)

PROGRAM = str(Path(sys.executable).with_name("prunefront"))

SMALL: dict[str, Any] = {
    "name": "small",
    "model": {"factory": "digits_cnn", "options": {"width": 4}},
    "dense": {"epochs": 1},
    "space": {"criteria": ["l1"]},
}


def study(folder: Path, **changed: Any) -> StudyConfig:
    return parse({**SMALL, "folder": str(folder), **changed}, source="test", base=folder)


def silent(line: str) -> None:
    """What the program would say."""


def test_a_folder_that_holds_other_things_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    thesis = tmp_path / "small" / "thesis.txt"
    thesis.write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(PrunefrontError, match=r"holds thesis\.txt and no study"):
            open_folder(study(tmp_path), resume=False, fresh=fresh)
    assert thesis.read_text() == "years of work"


def test_a_folder_in_which_the_first_write_was_killed_holds_no_other_things(tmp_path: Path) -> None:
    config = study(tmp_path)
    config.path.mkdir()
    (config.path / f".study.json.{'0' * 32}").write_text("half")
    open_folder(config, resume=False, fresh=False)
    assert [p.name for p in config.path.iterdir()] == ["study.json"]


def test_fresh_deletes_what_is_ours_and_nothing_else(tmp_path: Path) -> None:
    config = study(tmp_path)
    config.path.mkdir()
    open_folder(config, resume=False, fresh=False)
    (config.path / "prepared").mkdir()
    (config.path / "notes.txt").write_text("mine")
    # a damaged journal is what its error sends people to --fresh for
    (config.path / "journal.jsonl").write_text("not JSON\n")
    (config.path / f".front.json.{'0' * 32}").write_text("half")
    open_folder(config, resume=False, fresh=True)
    assert sorted(p.name for p in config.path.iterdir()) == ["notes.txt", "study.json"]


def test_what_was_prepared_is_kept_for_a_study_that_had_not_asked_yet(tmp_path: Path) -> None:
    config = study(tmp_path)
    config.path.mkdir()
    open_folder(config, resume=False, fresh=False)
    dense_network(config.part(NetworkSections), silent)
    before = load_file(config.path / "prepared" / "dense.safetensors")
    lines: list[str] = []
    open_folder(config, resume=True, fresh=False)
    dense_network(config.part(NetworkSections), lines.append)
    after = load_file(config.path / "prepared" / "dense.safetensors")
    assert not any("training" in line for line in lines if not line.startswith("data:"))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    # another criterion needs other scores, and no other network
    (config.path / "prepared" / "scores.safetensors").write_bytes(b"")
    for resume in (True, False):
        open_folder(study(tmp_path, space={"criteria": ["l2"]}), resume=resume, fresh=False)
        kept = sorted(p.name for p in (config.path / "prepared").iterdir())
        assert kept == ["data.json", "dense.safetensors", "graph.json", "initial.safetensors"]
    # with other training it is worth nothing
    open_folder(study(tmp_path, dense={"epochs": 2}), resume=True, fresh=False)
    assert not (config.path / "prepared").exists()


def test_a_study_whose_preparation_is_gone_does_not_go_on_with_another_network(tmp_path: Path) -> None:
    config = study(tmp_path)
    config.path.mkdir()
    open_folder(config, resume=False, fresh=False)
    with Journal(config.path / "journal.jsonl") as journal:
        journal.append("asked", candidate={"choices": {}})
    with pytest.raises(PrunefrontError, match="prepared is missing"):
        open_folder(config, resume=True, fresh=False)


def test_data_that_changed_since_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{number}.png")
    data = {"source": "folder", "train": "train", "test": "test"}
    config = study(tmp_path, data=data, dense={"epochs": 1, "batch_size": 8})
    dense_network(config.part(NetworkSections), silent)
    dense_network(config.part(NetworkSections), silent)
    changed = tmp_path / "test" / "b" / "0.png"
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    with pytest.raises(PrunefrontError, match="the test images are no longer those"):
        dense_network(config.part(NetworkSections), silent)


def test_the_machines_failures_are_told_from_the_candidates(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="tmp") as full:
        (tmp_path / "nowhere" / "file").write_text("")
    assert failure(full.value).kind == "storage"
    assert failure(ValueError("x")).kind == "error"


ROW = {
    "accuracy": 0.9,
    "accuracy_low": 0.88,
    "accuracy_high": 0.92,
    "images": 400,
    "latency_ratio_low": 0.1,
    "latency_ratio_high": 1.1,
    "dense_latency_ms": 1.0,
    "size_bytes": 100,
    "macs": 100,
    "params": 10,
    "achieved": {},
}


def front(**ratios: float) -> list[FrontRow]:
    return [
        FrontRow.from_json({"key": k, "latency_ms": r, "latency_ratio": r, **ROW}) for k, r in ratios.items()
    ]


@pytest.mark.parametrize("fastest", [0.31, 0.6, 0.7349, 0.998])
def test_the_command_to_type_next_finds_a_network(tmp_path: Path, fastest: float) -> None:
    rows = front(dense=1.0, a=fastest)
    text = next_steps(study(tmp_path), tmp_path / "my study.toml", rows)
    assert f"fetch '{tmp_path}/my study.toml' --under" in text
    bound = float(text.partition("latency_ratio=")[2].split()[0])
    assert best_row(rows, {"latency_ratio": bound}, "accuracy").key == "a"


def test_a_whole_key_names_one_network() -> None:
    rows = front(**{"dense": 1.0, "dense-finetuned": 0.99, "abc": 0.4, "abd": 0.5})
    assert find_row(rows, "dense").key == "dense"
    assert find_row(rows, "abc").key == "abc"
    with pytest.raises(PrunefrontError, match="2 rows"):
        find_row(rows, "ab")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_reason_with_brackets_is_shown_as_it_is(terminal: bool) -> None:
    said = StringIO()
    display = Display(Console(file=said, force_terminal=terminal, width=80, color_system=None))
    display.say("size of [conv1] differs [/]")
    with display.stage("scoring", 2):
        display.update(1, "failed: [/b]")
    assert "size of [conv1] differs [/]" in said.getvalue()
    assert "failed: [/b]" in said.getvalue() or not terminal


def test_the_live_line_fits_a_narrow_terminal() -> None:
    said = StringIO()
    display = Display(Console(file=said, force_terminal=True, width=80, color_system=None))
    with display.stage("fine-tuning", 128):
        display.update(100, "accuracy 0.973, 0.55 × dense")
    last = [line for line in said.getvalue().replace("\r", "\n").splitlines() if "100/128" in line][-1]
    assert "accuracy 0.973, 0.55 × dense" in last
    assert "left" in last


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "s.toml", "--resume", "--fresh"], "one of the two"),
        (["search", "blocked.toml"], "cannot be written"),
        (["inspect", "criterion.toml"], "did you mean 'taylor'"),
        (["fetch", "artifact", "--key", "dense"], "is not a front"),
    ],
)
def test_more_that_is_refused(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    text = 'name = "s"\n{}[model]\nfactory = "digits_cnn"\n{}'
    (tmp_path / "s.toml").write_text(text.format("", ""))
    (tmp_path / "blocked.toml").write_text(text.format('folder = "s.toml"\n', ""))
    (tmp_path / "criterion.toml").write_text(text.format("", '[space]\ncriteria = ["tailor"]\n'))
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "manifest.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["prunefront", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_resumed_study_records_its_progress_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_id = None
    for upto in (2, 4):
        tracker = MlflowTracker(uri, "pruning", tmp_path)
        run_id = tracker.start({"name": "s"}, resume_run_id=run_id)
        for step in range(1, upto + 1):
            tracker.log_progress(step, 0.1 * step, step)
        assert tracker.finish() == ()
    assert [m.step for m in MlflowClient(uri).get_metric_history(run_id, "hypervolume")] == [1, 2, 3, 4]


STUDY = """
name = "small"
[model]
factory = "digits_cnn"
options = { width = 8 }
[dense]
epochs = 2
[search]
searcher = "random"
candidates = 6
[training]
candidates = 4
epochs = 2
precision = "float32"
[measure]
pairs = 20
[artifacts]
pt2 = false
[cluster]
workers = 1
"""


REPORTED = {"RAY_metrics_report_interval_ms": "1000"}
"""Ray's figures reach their port once a second instead of every ten."""


@contextmanager
def scraped(port: int) -> Iterator[set[str]]:
    """Names of our metrics that appear at the port in the meantime."""
    names: set[str] = set()
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(0.3):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    text = answer.read().decode()
            except OSError:  # Ray starts, or has ended
                continue
            names.update(re.findall(r'^(ray_prunefront_\w+){.*study="small"', text, re.MULTILINE))

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield names
    finally:
        over.set()
        thread.join()


def journal(folder: Path) -> list[dict[str, Any]]:
    file = folder / "studies" / "small" / "journal.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def prunefront(folder: Path, *arguments: str) -> str:
    if arguments[0] == "search" and "--without-ray" not in arguments:
        done: Any = subprocess.run(
            [PROGRAM, *arguments],
            cwd=folder,
            env=os.environ | REPORTED,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    else:
        done = command(*arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_ctrl_c_while_fine_tuning_leaves_a_partial_front_and_a_lost_network_costs_only_itself(
    tmp_path: Path,
) -> None:
    (tmp_path / "s.toml").write_text(STUDY)
    prepare(tmp_path / "s.toml")
    port = free_port()
    watched = ("--log-json", "log.jsonl", "--metrics-port", str(port))
    with scraped(port) as metrics:
        stop_while_fine_tuning(tmp_path, *watched)
        before = journal(tmp_path)
        prunefront(tmp_path, "search", "s.toml", "--resume", *watched)
    assert metrics >= {
        f"{family.exported_name}{'_count' if family.kind == 'histogram' else ''}"
        for family in FAMILIES
        if family.name not in ("candidates_stopped_early", "candidates_failed", "workers_lost", "outages")
    }
    after = journal(tmp_path)
    assert after[: len(before)] == before
    names = [e["name"] for e in after if e["event"] == "trained"]
    assert len(names) == len(set(names)) == 6  # four, and the dense network as it was and trained further
    assert not [e for e in after if "failure" in e.get("outcome", {})]
    assert not (tmp_path / "studies" / "small" / "partial-front.json").exists()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["status"] for e in log if e["event"] == "study_ends"] == ["stopped", "finished"]
    told = [e for e in log if e["event"] in ("scored", "trained")]
    assert [e["candidate"] for e in told] == [
        e.get("key", e.get("name")) for e in after if e["event"] in ("told", "trained")
    ]

    # a finished study reports again; what is no longer in the store is said, and costs nobody else his row
    rows = json.loads(prunefront(tmp_path, "front", "small", "--json"))
    lost = next(r["key"] for r in rows if r["key"] != "dense")
    first = next(e["artifact"] for e in after if e["event"] == "trained" and e["name"] == lost)
    artifact = next(e["artifact"] for e in after if e["event"] == "published" and e["name"] == lost)
    assert artifact != first  # the network with test figures, which a resumed study goes on from
    shutil.rmtree(tmp_path / "studies" / "small" / "artifacts" / artifact)
    out = prunefront(tmp_path, "search", "s.toml", "--resume", "--without-ray")  # whoever does it
    assert f"{lost} is left out of the front: storage: there is no artifact" in out
    again = json.loads(prunefront(tmp_path, "front", "small", "--json"))
    assert {r["key"] for r in again} == {r["key"] for r in rows} - {lost}
    events = [(e["event"], e["name"]) for e in journal(tmp_path)[len(after) :]]
    # a network that the lost one was ahead of on the test images is marked anew, hence published anew
    marks = {r["key"]: r["on_test_front"] for r in rows}
    marked = {("published", r["key"]) for r in again if r["on_test_front"] != marks[r["key"]]}
    assert events[0] == ("unreported", lost)
    assert {*events[1:]} == marked


def stop_while_fine_tuning(folder: Path, *arguments: str) -> None:
    """Ctrl-C in a search as soon as the dense network and a candidate are trained; looks at what it leaves."""
    first = subprocess.Popen(
        # a test run that was started in the background ignores Ctrl-C, and so would what it starts
        ["env", "--default-signal=INT", PROGRAM, "search", "s.toml", *arguments],
        cwd=folder,
        env=os.environ | REPORTED,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    trained: set[str] = set()
    while time.monotonic() < deadline and not ("dense" in trained and trained - {"dense", "dense-finetuned"}):
        assert first.poll() is None, first.stderr
        time.sleep(0.05)
        trained = {e["name"] for e in journal(folder) if e["event"] == "trained"}
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does: to every process in the foreground
    _, error = first.communicate(timeout=100)
    assert first.returncode == 130
    assert error == "stopped; continue with: prunefront search s.toml --resume\n"
    assert not (folder / "studies" / "small" / "front.json").exists()
    kept = json.loads((folder / "studies" / "small" / "partial-front.json").read_text())
    assert kept == json.loads(prunefront(folder, "front", "s.toml", "--json"))
    assert kept["trained"]
    assert (
        {"dense"}
        <= {row["key"] for row in kept["rows"]}
        <= trained | {e["name"] for e in journal(folder) if "name" in e}
    )
    assert "validation images" in (folder / "studies" / "small" / "partial-front.html").read_text()
