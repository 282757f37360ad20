"""A study's folder that came from a store or another machine: journal, study.json, prepared/, tables, fronts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from prunefront.pipelines.config.sections import StartSection, StudyConfig
from prunefront.pipelines.fronts.mistakes import read_mistakes
from prunefront.pipelines.fronts.report import write_report
from prunefront.pipelines.fronts.unfinished import FrontSections
from prunefront.pipelines.journal.evaluations import Evaluations
from prunefront.pipelines.journal.journal import Journal, read_events, write_json
from prunefront.pipelines.journal.layout import EVALUATIONS
from prunefront.pipelines.prepare.knowledge import Knowledge, read_knowledge
from prunefront.pipelines.prepare.problem import problem
from prunefront.pipelines.prepare.read_prepared import read_precision
from prunefront.pipelines.stages.forecast import kept_forecast
from prunefront.pipelines.stages.latency_table import measure, read
from prunefront.pipelines.stages.rungs import rungs_of
from prunefront.pipelines.stages.scoring_loop import Screening
from prunefront.pipelines.stages.second_stage import latest_artifacts
from prunefront.pipelines.stages.warm_start import WarmStart, from_event, to_event
from prunefront.pipelines.stages.warm_start import publish as publish_evaluations
from prunefront.pipelines.stages.warm_start import read as read_evaluations
from prunefront.pipelines.stores.folder import DirectoryStore
from prunefront.pipelines.study.find import read_bounds, read_front
from prunefront.pipelines.study.folder import open_folder
from prunefront.pipelines.study.rehearsal import first_stage_seconds, load_evaluations
from prunefront.pipelines.study.status import status
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.single_cuts import RATIOS
from prunefront.pruners.plan.decide import plan
from prunefront.search.outcomes.measurement import Failure, Measurement
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import GroupSpace, SearchSpace
from tests.hostile.strategies import answered, damaged, documents, fuzzed
from tests.hostile.test_weights import safetensors
from tests.pipelines.fronts.test_front import DATA, read_back
from tests.pipelines.stages import test_latency_table as tables
from tests.pipelines.stages.test_warm_start import HERE, scored
from tests.pipelines.study.test_rehearsal import config_of, searched

CANDIDATES = 12


def task_of(config: StudyConfig, graph: ChannelGraph, knowledge: Knowledge) -> Problem:
    """Returns what the study's searcher knows."""
    return problem(
        graph,
        knowledge.scores,
        config.space,
        config.goal,
        config.start,
        knowledge.facts,
        candidates=config.search.candidates,
        seed=config.seed,
    )


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    """A study as a search leaves it, with every kind of event and of file."""
    config = searched(config_of(tmp_path_factory.mktemp("studies"), CANDIDATES))
    graph, knowledge = read_knowledge(config.path)
    task = task_of(config, graph, knowledge)
    scored_ = next(e for e in read_events(config.path / "journal.jsonl") if e["event"] == "told")
    asked = next(e for e in read_events(config.path / "journal.jsonl") if e["event"] == "asked")
    half = Measurement({"accuracy": 0.5}).to_json()
    with Journal(config.path / "journal.jsonl") as journal:
        journal.append("tracking", run="0123456789abcdef")
        journal.append("warm_start", **to_event(WarmStart(scored(2).rows, (Candidate({}),))))
        journal.append("promoted", candidates=[asked["candidate"]])
        journal.append("rung", name=scored_["key"], epoch=1, outcome=half, share=0.5, of=3)
        journal.append("stopped", name=scored_["key"], epoch=2, outcome=half, share=0.5, of=3)
        journal.append(
            "trained", name="dense", outcome=Failure("error", "no").to_json(), artifact="", epochs=1
        )
        values = {
            "accuracy": 0.5,
            "latency_ms": 1.0,
            "latency_ratio": 0.5,
            "macs": 9.0,
            "params": 9.0,
            "size_bytes": 9.0,
        }
        part = {
            "name": "conv",
            "units": 4,
            "kept": 2,
            "dropped": 0.5,
            "criterion": "l1",
            "granularity": "channel",
        }
        for name in ("other", "dense-finetuned"):
            trained = Measurement(values, {"accuracy": 0.1}).to_json()
            journal.append("trained", name=name, outcome=trained, parts=[part])
        journal.append("versions", versions={"torch": "2"}, machine="here")
        journal.append("controlled", names=["dense"])
        journal.append("published", name="dense", artifact="dense-0123456789ab")
    folder, prepared = config.path, config.path / "prepared"
    table = measure_table(folder)
    write_json(
        prepared / "latency.json",
        {"predictor": read(table).predictor().to_json(), "table": json.loads(table.read_text())},
    )
    write_json(prepared / "precision.json", {"precision": "float32", "channels_last": False})
    write_json(folder / "front.json", DATA)
    write_json(folder / "bounds.json", {"said": "all meet", "met": 2})
    changed = {"wrong": 1, "right": 0, "shown": [3]}
    picture = "data:image/png;base64,AAAA"
    write_json(
        folder / "mistakes.json", {"samples": 9, "networks": {"a": changed}, "pictures": {"3": picture}}
    )
    write_json(folder / "timing.json", {"busy": {"screen": 2.0}})
    assert len(task.space.groups) > 1
    return config


def measure_table(folder: Path) -> Path:
    measure(tables.EMPTY, folder / "table.json", tables.TODO, tables.timed, say=tables.silent)
    return folder / "table.json"


@pytest.fixture
def config(genuine: StudyConfig, tmp_path: Path) -> StudyConfig:
    """The study in a folder that is made anew for each test, whose examples change one file of it."""
    shutil.copytree(genuine.path, tmp_path / genuine.name)
    return genuine.model_copy(update={"folder": tmp_path})


def resumed(config: StudyConfig) -> None:
    """All that a search that goes on, or looks at the study, makes of its journal."""
    events = read_events(config.path / "journal.jsonl")
    answered(lambda: status(config.path))
    answered(lambda: load_evaluations(config.path, config))
    for event in events:
        if event["event"] == "warm_start":
            from_event(event)
    graph, knowledge = read_knowledge(config.path)
    task = task_of(config, graph, knowledge)
    searcher = searchers["evolution"](task, seed=0, population=20, probes=0)
    with Journal(config.path / "journal.jsonl") as journal:
        stage = Screening(
            searcher, lambda c: plan(graph, c.choices, knowledge.scores), journal, lambda *_: None
        )
        stage.replay()
    names = {e["name"] for e in events if e["event"] == "trained"} | set(stage.measured)
    latest_artifacts(events)
    answered(lambda: rungs_of(config.training, task, stage.measured, events, names, seed=0).summary())


@st.composite
def journals(draw: st.DrawFn, text: bytes) -> bytes:
    """The journal with lines of it changed, lost, doubled or in another order."""
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.integers(0, 6)):
            case 0:
                lines.pop(at)
            case 1:
                lines.insert(draw(st.integers(0, len(lines))), lines[at])
            case 2:
                lines[at] = draw(damaged(lines[at]))
            case 3:
                other = draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], lines[at]
            case _:
                try:
                    lines[at] = draw(documents(json.loads(lines[at])))
                except ValueError:  # damaged before
                    lines[at] = b"{}"
        if not lines:
            return b""
    return b"\n".join(lines) + draw(st.sampled_from([b"\n", b"", b"\n{", b"\n\n", b"\r\n"]))


@given(data=st.data())
@fuzzed
def test_journals(config: StudyConfig, genuine: StudyConfig, data: st.DataObject) -> None:
    text = (genuine.path / "journal.jsonl").read_bytes()
    (config.path / "journal.jsonl").write_bytes(data.draw(journals(text)))
    answered(lambda: resumed(config))
    answered(lambda: paged(config))


FILES: dict[str, Callable[[StudyConfig], object]] = {
    "study.json": lambda config: (status(config.path), open_folder(config, resume=True, fresh=False)),
    "front.json": lambda config: read_front(config.path),
    "bounds.json": lambda config: read_bounds(config.path),
    "mistakes.json": lambda config: read_mistakes(config.path),
    "timing.json": lambda config: first_stage_seconds(config.path),
    "table.json": lambda config: read(config.path / "table.json").predictor(),
    "prepared/graph.json": lambda config: spaces(config),
    "prepared/precision.json": lambda config: read_precision(config.path / "prepared"),
    "prepared/latency.json": lambda config: predicted(config),
}


def paged(config: StudyConfig) -> None:
    """What a page holds as data is JSON, and no markup."""
    made = write_report(config.part(FrontSections), config.path).read_text()
    assert made.count("<script") == made.count("</script>") == 2
    assert read_back(made)["study"] == config.name


def spaces(config: StudyConfig) -> None:
    graph, knowledge = read_knowledge(config.path)
    task = task_of(config, graph, knowledge)
    assert task.space.contains(task.space.dense())


def predicted(config: StudyConfig) -> None:
    """Of the table's own groups: what it predicts is a number."""
    space = SearchSpace(tuple(GroupSpace(g, k[-1], k, ("l1",)) for g, k in tables.KEEPS.items()))
    found = kept_forecast(config.path / "prepared" / "latency.json", space)
    assert np.isfinite(found.least(space))


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@fuzzed
def test_files(config: StudyConfig, genuine: StudyConfig, name: str, data: st.DataObject) -> None:
    (config.path / name).write_bytes(data.draw(documents(json.loads((genuine.path / name).read_text()))))
    answered(lambda: FILES[name](config))
    answered(lambda: paged(config))
    # whatever was in it did not end what was finished
    assert (config.path / "journal.jsonl").stat().st_size == (genuine.path / "journal.jsonl").stat().st_size


@pytest.mark.parametrize("name", ["scores", "facts"])
@given(data=st.data())
@fuzzed
def test_scores(config: StudyConfig, genuine: StudyConfig, name: str, data: st.DataObject) -> None:
    graph, _ = read_knowledge(genuine.path)
    facts = {f"sensitivity/{g.name}": np.linspace(0, 1, len(RATIOS)) for g in graph.groups}
    whole = (
        save(facts) if name == "facts" else (genuine.path / "prepared" / "scores.safetensors").read_bytes()
    )
    (config.path / "prepared" / f"{name}.safetensors").write_bytes(data.draw(safetensors(whole)))
    start = StartSection(allocators=("global_threshold", "sensitivity"))

    def use() -> None:
        graph, knowledge = read_knowledge(config.path)
        problem(graph, knowledge.scores, config.space, config.goal, start, knowledge.facts, candidates=20)

    answered(use)


@given(data=st.data())
@fuzzed
def test_evaluations(tmp_path: Path, data: st.DataObject) -> None:
    """More than `test_warm_start` changes: several places at once, and bytes."""
    publish_evaluations(DirectoryStore(tmp_path / "genuine"), HERE, scored(4))
    content = data.draw(documents(json.loads((tmp_path / "genuine" / EVALUATIONS).read_text())))
    (tmp_path / EVALUATIONS).write_bytes(content)
    found = answered(lambda: read_evaluations(str(tmp_path)))
    if found is not None:
        table = Evaluations("", found.rows).to_json() if found.rows else None
        json.dumps(table, allow_nan=False)
