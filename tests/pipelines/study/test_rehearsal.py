"""Rehearsing a study: what is recorded comes back as it was, the rest is predicted, and how well is said."""

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cli.main import main
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.journal.evaluations import Evaluations, evaluations
from prunefront.pipelines.journal.journal import Journal, read_events, write_json
from prunefront.pipelines.models import build
from prunefront.pipelines.prepare.problem import problem
from prunefront.pipelines.stages.scoring_loop import Screening
from prunefront.pipelines.stages.warm_start import WarmStart, to_event
from prunefront.pipelines.study.rehearsal import Replay, load_evaluations, rehearse
from prunefront.pruners.graph.pruning_plan import DENSE, PruningPlan
from prunefront.pruners.plan.cost import cost
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.scoring import rank
from prunefront.pruners.statistics import Statistics
from prunefront.pruners.trace.tracer import trace
from prunefront.search.outcomes.measurement import Failure, Measurement, Outcome
from prunefront.search.prediction.emulator import FEWEST_ROWS, Emulator
from prunefront.search.searchers import searchers
from prunefront.search.simulator import VirtualPool, Workers

IMAGES = 500


def config_of(folder: Path, candidates: int = 60) -> StudyConfig:
    return parse(
        {
            "name": "known",
            "folder": str(folder),
            "model": {"factory": "digits_cnn", "options": {"width": 8}},
            "space": {"criteria": ["l1"]},
            "search": {
                "searcher": "evolution",
                "candidates": candidates,
                "options": {"population": 20, "probes": 0},
            },
        },
        source="here",
        base=folder,
    )


def true_accuracy(aim: PruningPlan) -> float:
    """Groups' losses multiply; every other group is far more sensitive."""
    losses = [(6.0, 0.6)[i % 2] * ratio**2 for i, ratio in enumerate(aim.achieved_ratios().values())]
    return 0.97 * float(np.exp(-sum(losses)))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    return searched(config_of(tmp_path_factory.mktemp("studies")))


def searched(config: StudyConfig) -> StudyConfig:
    """A study with a formula for its candidates' accuracy, left as a search leaves it."""
    torch.manual_seed(0)
    model = build(config.model, classes=10, input_shape=(1, 8, 8)).eval()
    graph = trace(model, torch.zeros(2, 1, 8, 8))
    scores = rank(model, graph, ["l1"], Statistics())
    prepared = config.path / "prepared"
    write_json(config.path / "study.json", config.to_json())
    write_json(prepared / "graph.json", asdict(graph))
    flat = {f"{n}/{g}": np.ascontiguousarray(v) for n, groups in scores.items() for g, v in groups.items()}
    save_file(flat, prepared / "scores.safetensors")
    save_file({}, prepared / "facts.safetensors")

    def evaluate(aim: PruningPlan) -> Outcome:
        price, accuracy = cost(graph, aim), true_accuracy(aim)
        if aim.key().startswith(("0", "1")):
            return Failure("error", "planted")
        half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / IMAGES)
        values = {
            "accuracy": accuracy,
            "macs": price.macs,
            "params": price.params,
            "size_bytes": price.size_bytes,
        }
        return Measurement({n: float(v) for n, v in values.items()}, {"accuracy": half})

    count = config.search.candidates
    task = problem(graph, scores, config.space, config.goal, config.start, candidates=count, seed=config.seed)
    searcher = searchers["evolution"](task, seed=0, population=20, probes=0)
    with Journal(config.path / "journal.jsonl") as journal:
        stage = Screening(searcher, lambda c: plan(graph, c.choices, scores), journal, lambda *_: None)
        stage.run(
            VirtualPool(evaluate, Workers(count=3, spread=0.5), seconds=lambda _: 2.0),
            config.search.candidates,
        )
        some = next(k for k in stage.measured if k != DENSE)
        journal.append("trained", name=some, outcome=Measurement({"accuracy": 0.9}).to_json())
    return config


def test_the_table_is_what_was_scored(study: StudyConfig) -> None:
    table, *_ = load_evaluations(study.path, study)
    told = [e for e in read_events(study.path / "journal.jsonl") if e["event"] == "told"]
    assert [r.key for r in table.rows] == [e["key"] for e in told]
    assert [r.outcome.to_json() for r in table.rows] == [e["outcome"] for e in told]
    assert [r.seconds for r in table.rows] == [e["seconds"] for e in told]
    assert sum(r.trained == Measurement({"accuracy": 0.9}) for r in table.rows) == 1
    assert any(isinstance(r.outcome, Failure) for r in table.rows)
    assert Evaluations.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_what_was_taken_over_is_in_the_table_and_not_counted(study: StudyConfig, tmp_path: Path) -> None:
    """The study as if an earlier one had scored what it measured among its first 20, dense among them."""
    whole, *_ = load_evaluations(study.path, study)
    known = tuple(r for r in whole.rows[:20] if isinstance(r.outcome, Measurement))
    keys = {row.key for row in known}
    assert DENSE in keys
    config = study.model_copy(update={"folder": tmp_path})
    shutil.copytree(study.path, config.path)
    (config.path / "journal.jsonl").unlink()
    with Journal(config.path / "journal.jsonl") as journal:
        journal.append("warm_start", **to_event(WarmStart(known)))
        for event in read_events(study.path / "journal.jsonl"):
            if event.get("key") not in keys:
                journal.append(event.pop("event"), **event)
    found, table = rehearse(
        config.path, config, workers=Workers(2), candidates=30, names=["random"], repeats=1
    )
    assert table.recalled == len(known)
    assert [row.key for row in table.rows[: len(known)]] == [row.key for row in known]
    assert {r.key: r.outcome for r in table.rows} == {r.key: r.outcome for r in whole.rows}
    assert sum(r.trained is not None for r in table.rows) == 1
    assert Evaluations.from_json(json.loads(json.dumps(table.to_json()))) == table
    # after 30 of its own, it knows as much as the whole study did after those and the known ones
    before, _ = rehearse(
        study.path, study, workers=Workers(2), candidates=30 + len(known), names=["random"], repeats=1
    )
    assert found.itself[30] == before.itself[30 + len(known)]


def test_what_is_recorded_comes_back_and_the_rest_is_near(study: StudyConfig) -> None:
    table, graph, scores, task = load_evaluations(study.path, study)
    replay = Replay(study, graph, scores, table, None)
    for row in table.rows:
        assert replay.realise(row.candidate) == row.key
        assert replay.evaluate(row.candidate) == row.outcome
        assert replay.seconds(row.candidate) == row.seconds
    rng = np.random.default_rng(9)
    errors = []
    for _ in range(200):
        candidate = task.space.sample(rng)
        aim = replay.plan(candidate)
        if aim.key() in replay.rows:
            continue
        outcome = replay.evaluate(candidate)
        assert isinstance(outcome, Measurement)
        price = cost(graph, aim)
        assert (outcome["macs"], outcome["params"]) == (price.macs, price.params)
        assert outcome["size_bytes"] == price.size_bytes
        assert outcome.noise["accuracy"] == pytest.approx(
            1.96 * np.sqrt(outcome["accuracy"] * (1 - outcome["accuracy"]) / IMAGES), rel=0.02
        )
        errors.append(outcome["accuracy"] - true_accuracy(aim))
        assert replay.seconds(candidate) in {r.seconds for r in table.rows}
    assert len(errors) > 100
    said = replay.emulator.fit
    assert np.sqrt(np.mean(np.square(errors))) < 2.5 * said.error + 0.01, (
        "the error that is said is the error that is"
    )
    assert said.error < 0.06
    assert said.rank_correlation > 0.95


def test_a_rehearsal(study: StudyConfig) -> None:
    found, table = rehearse(
        study.path,
        study,
        workers=Workers(4, failures=0.1, slow={0: 10.0}),
        names=["evolution", "random"],
        repeats=2,
    )
    again, _ = rehearse(
        study.path,
        study,
        workers=Workers(4, failures=0.1, slow={0: 10.0}),
        names=["evolution", "random"],
        repeats=2,
    )
    assert found == again
    assert len(table.rows) == found.evaluations == 60
    assert [r.searcher for r in found.rows] == ["evolution", "random"]
    for row in found.rows:
        assert list(row.hypervolume) == [25, 50, 60]
        means = [mean for mean, _ in row.hypervolume.values()]
        assert means == sorted(means)
        assert 0.7 < row.busy <= 1.0
        assert 0.0 < row.recorded < 1.0
        assert row.exhausted == 0
    assert list(found.itself) == [25, 50, 60]
    assert found.durations.startswith("recorded, ")
    json.dumps(found.to_json(), allow_nan=False)
    more, _ = rehearse(study.path, study, workers=Workers(4), candidates=120, names=["random"], repeats=1)
    assert more.rows[0].hypervolume[120][0] >= more.rows[0].hypervolume[50][0]
    assert 120 not in more.itself


def test_a_replay_under_the_same_conditions_is_the_study(study: StudyConfig) -> None:
    """Three workers again, recorded durations: the same candidates come in the same order, nothing is predicted."""
    found, _ = rehearse(study.path, study, workers=Workers(3), names=["evolution"], repeats=1)
    assert found.rows[0].recorded == 1.0
    assert {n: mean for n, (mean, _) in found.rows[0].hypervolume.items()} == found.itself


def command(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["prunefront", "rehearse", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = str(study.path)
    assert command(where, "--repeats", "1", "--table", str(tmp_path / "t.json"), monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert "cross-validated error" in out
    assert "rank correlation" in out
    assert all(name in out for name in ("evolution", "random", "the study", "at 25", "busy"))
    assert len(Evaluations.from_json(json.loads((tmp_path / "t.json").read_text())).rows) == 60

    assert command(where, "--repeats", "1", "--json", "--workers", "2", monkeypatch=monkeypatch) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["workers"] == 2
    assert set(data["rows"][0]["hypervolume"]) == {"25", "50", "60"}

    assert command(where, "--searcher", "evolutoin", monkeypatch=monkeypatch) == 2
    assert "did you mean 'evolution'" in capsys.readouterr().err
    assert command(where, "--slow", "0", monkeypatch=monkeypatch) == 2
    assert "the factor is above 0" in capsys.readouterr().err


def copied(study: StudyConfig, folder: Path, lines: list[dict[str, Any]]) -> StudyConfig:
    config = study.model_copy(update={"folder": folder})
    for name in (
        "study.json",
        "prepared/graph.json",
        "prepared/scores.safetensors",
        "prepared/facts.safetensors",
    ):
        (config.path / name).parent.mkdir(parents=True, exist_ok=True)
        (config.path / name).write_bytes((study.path / name).read_bytes())
    (config.path / "journal.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
    return config


def test_studies_that_cannot_be_replayed_say_why(study: StudyConfig, tmp_path: Path) -> None:
    events = read_events(study.path / "journal.jsonl")
    asked = [e for e in events if e["event"] == "asked"]
    told = [e for e in events if e["event"] == "told"]

    def refused(lines: list[dict[str, Any]], said: str, name: str) -> None:
        config = copied(study, tmp_path / name, lines)
        with pytest.raises(PrunefrontError, match=said):
            rehearse(config.path, config, workers=Workers())

    refused([], "has no evaluations yet", "empty")
    refused(asked, "has no evaluations yet", "asked")
    few = [e for e in told if "values" in e["outcome"]][: FEWEST_ROWS - 1]
    refused([*asked, *few], f"{FEWEST_ROWS - 1} candidates were measured, and 20 are needed", "few")
    refused([*asked, *(e for e in told if e["key"] != DENSE)], "not measured its dense network", "undense")
    refused(
        [*asked, {**told[0], "key": "ffff"}], "'ffff', which belongs to none of its candidates", "stranger"
    )
    config = copied(study, tmp_path / "unprepared", events)
    (config.path / "prepared" / "scores.safetensors").unlink()
    with pytest.raises(PrunefrontError, match="not scored the units"):
        rehearse(config.path, config, workers=Workers())


def test_a_journal_of_an_earlier_version_has_no_seconds(study: StudyConfig, tmp_path: Path) -> None:
    events = [
        {k: v for k, v in e.items() if k != "seconds"} for e in read_events(study.path / "journal.jsonl")
    ]
    config = copied(study, tmp_path, events)
    found, _ = rehearse(config.path, config, workers=Workers(2), names=["random"], repeats=1)
    assert found.durations == "1 s each, for none were recorded"
    write_json(config.path / "timing.json", {"busy": {"screen": 30.0}})
    slower, _ = rehearse(config.path, config, workers=Workers(2), names=["random"], repeats=1)
    assert slower.durations == "0.50 s each, the recorded mean"
    assert slower.rows[0].seconds == pytest.approx(found.rows[0].seconds / 2)


def test_reading_leaves_a_running_study_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "begun"}\n{"event": "as')
    assert read_events(path) == [{"event": "begun"}]
    assert path.read_text().endswith('"as')


def test_equal_networks_and_impossible_candidates_are_one_row_and_none(study: StudyConfig) -> None:
    table, graph, scores, _ = load_evaluations(study.path, study)
    one = next(r for r in table.rows if r.key != DENSE)
    twin = replace(one.candidate, origin="another")

    def realise(candidate: Any) -> str:
        if candidate.origin == "impossible":
            raise PrunefrontError("cannot be had")
        return plan(graph, candidate.choices, scores).key()

    events = [
        {"event": "asked", "candidate": replace(one.candidate, origin="impossible").to_json()},
        {"event": "asked", "candidate": one.candidate.to_json()},
        {"event": "asked", "candidate": twin.to_json()},
        {"event": "told", "key": one.key, "outcome": one.outcome.to_json()},
        {"event": "told", "key": one.key, "outcome": Failure("x", "again").to_json()},
    ]
    (row,) = evaluations("s", events, realise).rows
    assert (row.candidate, row.outcome, row.seconds) == (one.candidate, one.outcome, None)


class TestEmulator:
    def test_cutting_more_never_predicts_more_far_from_the_rows(self) -> None:
        """Rows that cut little, of noisy accuracy; along any line to the smallest network, prediction falls."""
        rng = np.random.default_rng(0)
        rows = [dict(zip("abc", r, strict=True)) for r in rng.uniform(0, 0.4, (40, 3))]
        accuracy = [0.9 * np.exp(-2 * r["a"] ** 2 - r["b"]) * rng.uniform(0.9, 1.1) for r in rows]
        model = Emulator(rows, np.clip(accuracy, 0, 1).tolist())
        line = model.predict([dict.fromkeys("abc", t) for t in np.linspace(0.75, 0.99, 20)])
        assert (np.diff(line) <= 1e-6).all()
        assert (line >= 0).all()
        assert (line <= 1).all()

    def test_nothing_to_learn_is_said(self) -> None:
        """Accuracy that has nothing to do with the ratios: no rank correlation, an error as large as the spread."""
        rng = np.random.default_rng(1)
        rows = [dict(zip("abcd", r, strict=True)) for r in rng.uniform(0, 0.9, (200, 4))]
        accuracy = rng.uniform(0.3, 0.9, 200)
        fit = Emulator(rows, accuracy.tolist()).fit
        assert abs(fit.rank_correlation) < 0.2
        assert fit.error > 0.9 * accuracy.std()

    def test_too_many_rows_are_thinned(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("prunefront.search.prediction.emulator.MOST_ROWS", 150)
        rng = np.random.default_rng(1)
        rows = [dict(zip("ab", r, strict=True)) for r in rng.uniform(0, 0.9, (3000, 2))]
        fit = Emulator(rows, [0.9 * np.exp(-r["a"]) for r in rows]).fit
        assert fit.rows == 150
        assert fit.error < 0.01
