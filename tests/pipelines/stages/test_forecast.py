"""Predicted latency in a search: under its own name, refusing what is over budget, compared with what is measured."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront.choice import GroupChoice
from prunefront.errors import PrunefrontError
from prunefront.pipelines.journal.journal import Journal
from prunefront.pipelines.prepare.feasibility import OverBudget
from prunefront.pipelines.stages.forecast import Forecast, PredictedCosts, PredictingPool, limits, steered
from prunefront.pipelines.stages.latency_table import LatencyTable, design
from prunefront.pipelines.stages.scoring_loop import Screening
from prunefront.pipelines.workers.in_process import LocalPool
from prunefront.pipelines.workers.inheritance import Parent
from prunefront.pipelines.workers.scoring import Scored
from prunefront.pruners.graph.pruning_plan import GroupPlan, PruningPlan
from prunefront.search.outcomes.constraints import parse as parse_bound
from prunefront.search.outcomes.measurement import (
    OBJECTIVES,
    Constraint,
    Failure,
    Measurement,
    outcome_from_json,
)
from prunefront.search.prediction.latency import Axis, LatencyPredictor, Operator, Point
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.encoding import Encoding
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import GroupSpace, SearchSpace

ROOT = Path(__file__).parents[3]
UNITS = {"a": 16, "b": 16, "c": 16}
KEEPS = {g: tuple(range(2, 17, 2)) for g in UNITS}
SPACE = SearchSpace(tuple(GroupSpace(g, 16, KEEPS[g], ("l1",), unit_macs=1.0) for g in UNITS))
SIDES = [Axis(3, {}), *(Axis(0, {g: 1}) for g in UNITS), Axis(10, {})]
OPERATORS = tuple(
    Operator(f"op{i}", 64.0 * (3, 16, 16, 16)[i] * (16, 16, 16, 10)[i], 64, SIDES[i + 1], SIDES[i])
    for i in range(4)
)


def share(kept: Mapping[str, int]) -> float:
    """The made-up device: a fixed cost and the share of products."""
    a, b, c = (kept.get(g, 16) / 16 for g in UNITS)
    return 0.1 + 0.1 * a + 0.4 * a * b + 0.3 * b * c + 0.1 * c


def timed(kept: Mapping[str, int]) -> tuple[Point, float]:
    ratio = share(kept)
    return Point(
        dict(kept), ratio, 0.995 * ratio, 1.005 * ratio, "single" if len(kept) == 1 else "joint"
    ), 4.0


TODO = design(KEEPS, joint=40)
TABLE = LatencyTable(
    "n", {"runtime": "onnxruntime"}, KEEPS, OPERATORS, len(TODO), tuple(timed(k)[0] for k in TODO), 4.0
)
KNOWN = (TABLE.predictor(), TABLE)


@pytest.fixture
def table() -> LatencyTable:
    return TABLE


@pytest.fixture
def predictor() -> LatencyPredictor:
    return KNOWN[0]


def planned(candidate: Candidate) -> PruningPlan:
    return PruningPlan(
        tuple(
            GroupPlan(n, c, 16, tuple(range(round(16 * (1 - c.ratio)))), c.ratio)
            for n, c in candidate.choices.items()
        )
    )


def keeping(**kept: int) -> PruningPlan:
    choices = {g: GroupChoice("l1", 1 - kept.get(g, 16) / 16) for g in UNITS}
    return planned(Candidate(choices))


def problem(*constraints: Constraint) -> Problem:
    objectives = (OBJECTIVES["accuracy"], OBJECTIVES["latency_ratio"])
    return Problem(SPACE, objectives, constraints, (SPACE.dense(),))


def test_predictions_have_names_of_their_own(table: LatencyTable, predictor: LatencyPredictor) -> None:
    forecast = Forecast(predictor, table)
    scored = Measurement({"accuracy": 0.9, "macs": 5.0}, {"accuracy": 0.01})
    found = forecast.predicted(keeping(a=8, b=4), scored)
    assert set(found.values) == {"accuracy", "macs", "predicted_latency_ratio", "predicted_latency_ms"}
    assert found["predicted_latency_ratio"] == pytest.approx(share({"a": 8, "b": 4}), rel=0.06)
    assert found["predicted_latency_ms"] == pytest.approx(4 * found["predicted_latency_ratio"])
    assert found.noise["predicted_latency_ratio"] == pytest.approx(
        predictor.half_width * found["predicted_latency_ratio"]
    )
    dense = forecast.predicted(keeping(), scored)
    assert dense["predicted_latency_ratio"] == 1.0
    assert "predicted_latency_ratio" not in dense.noise

    asked = [parse_bound(text) for text in ("latency_ms <= 60%", "latency_ms <= 2ms", "macs <= 50%")]
    bounds = limits(asked)
    assert {c.name: c.high for c in bounds} == {"latency_ratio": 0.6, "latency_ms": 2.0}
    seen = steered(problem(Constraint("macs", high=9.0)), Forecast(predictor, table, bounds))
    assert [o.name for o in seen.objectives] == ["accuracy", "predicted_latency_ratio"]
    assert [c.name for c in seen.constraints] == ["macs", "predicted_latency_ratio", "predicted_latency_ms"]


@given(seed=st.integers(0, 2**32 - 1))
def test_searchers_that_know_costs_beforehand_know_the_predictions(seed: int) -> None:
    predictor, table = KNOWN
    forecast = Forecast(predictor, table)
    costs = PredictedCosts(forecast, None)
    encoding = Encoding(SPACE)
    candidate = SPACE.sample(np.random.default_rng(seed))
    row = encoding.encode(candidate)
    found = costs(encoding, np.array([row]))
    told = forecast.predicted(planned(candidate), Measurement({}))
    assert set(found) == costs.amounts == set(told.values)
    for name, values in found.items():
        assert values[0] == pytest.approx(told[name], rel=0.02 if row_is_dense(candidate) else 1e-9)


def row_is_dense(candidate: Candidate) -> bool:
    """The dense network's prediction is 1 by definition, and nearly so by the fit."""
    return planned(candidate).key() == "dense"


@pytest.mark.parametrize(("name", "scale"), [("latency_ratio", 1.0), ("latency_ms", 4.0)])
def test_only_what_is_over_budget_beyond_the_error_is_refused(
    table: LatencyTable, predictor: LatencyPredictor, name: str, scale: float
) -> None:
    aim = keeping(a=8)
    low, high = (scale * value for value in predictor.interval(predictor.ratio({"a": 8})))
    Forecast(predictor, table, (Constraint(name, high=1.001 * low),)).check(aim)
    Forecast(predictor, table, (Constraint(name, low=0.999 * high),)).check(aim)
    for bound in (Constraint(name, high=0.999 * low), Constraint(name, low=1.001 * high)):
        tight = Forecast(predictor, table, (bound,))
        with pytest.raises(OverBudget, match=f"{name} is predicted at") as caught:
            tight.check(aim)
        assert "\n" not in str(caught.value)
        tight.check(keeping())  # everything is compared with the dense network


def test_a_budget_that_nothing_meets_is_said_before_anything_is_spent(
    table: LatencyTable, predictor: LatencyPredictor
) -> None:
    least = share(dict.fromkeys(UNITS, 2))
    Forecast(predictor, table, (Constraint("latency_ms", high=4 * least * 1.05),)).check_reach(SPACE)
    with pytest.raises(PrunefrontError, match="the fastest has about") as caught:
        Forecast(predictor, table, (Constraint("latency_ms", high=4 * least / 2),)).check_reach(SPACE)
    named = float(str(caught.value).split("about ")[1].split(";")[0])
    assert named == pytest.approx(4 * least, rel=0.15)


class Worker:
    """Scores by what a plan keeps; every seventh has no luck. scored: plans, in order."""

    def __init__(self) -> None:
        self.scored: list[PruningPlan] = []

    def score(self, plan: PruningPlan, parent: Parent | None = None) -> Scored:
        self.scored.append(plan)
        macs = float(sum(len(g.kept) for g in plan.groups))
        if len(self.scored) % 7 == 0:
            return Scored(Failure("error", "no luck"), 0.1)
        return Scored(Measurement({"accuracy": macs / 48, "macs": macs}, {"accuracy": 0.01}), 0.1)


def screened(folder: Path, forecast: Forecast, name: str, budget: int) -> tuple[Screening, Worker]:
    task = steered(problem(), forecast)

    def aim(candidate: Candidate) -> PruningPlan:
        plan = planned(candidate)
        forecast.check(plan)
        return plan

    with Journal(folder / "journal.jsonl") as journal:
        screening = Screening(searchers[name](task, seed=1), aim, journal, lambda *_: None)
        screening.replay()
        worker = Worker()
        screening.run(PredictingPool(LocalPool(worker), forecast), budget)
    return screening, worker


@pytest.mark.parametrize("name", ["random", "evolution", "particle_filter", "optuna_tpe", "surrogate"])
def test_what_is_over_budget_is_never_scored_and_a_replay_agrees(
    tmp_path: Path, table: LatencyTable, predictor: LatencyPredictor, name: str
) -> None:
    forecast = Forecast(predictor, table, (Constraint("latency_ratio", high=0.4),))
    screening, pool = screened(tmp_path, forecast, name, 25)
    assert len(screening.outcomes) == 25 == len(pool.scored)
    assert screening.over_budget
    for plan in pool.scored:
        assert plan.key() == "dense" or predictor.interval(forecast.ratio(plan))[0] <= 0.4
    told = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    for event in told:
        if event["event"] == "told":
            outcome = outcome_from_json(event["outcome"])
            assert isinstance(outcome, Failure) or "predicted_latency_ratio" in outcome.values
    # from the journal alone, with a predictor that comes back from its file
    again = Forecast(
        LatencyPredictor.from_json(json.loads(json.dumps(predictor.to_json()))), table, forecast.bounds
    )
    resumed, idle = screened(tmp_path, again, name, 25)
    assert resumed.outcomes == screening.outcomes
    assert resumed.over_budget == screening.over_budget
    assert not idle.scored


def test_a_searcher_that_finds_nothing_within_the_budget_comes_to_an_end(
    tmp_path: Path, table: LatencyTable, predictor: LatencyPredictor
) -> None:
    forecast = Forecast(predictor, table, (Constraint("latency_ratio", high=0.01),))
    screening, pool = screened(tmp_path, forecast, "random", 10)
    assert [plan.key() for plan in pool.scored] == ["dense"]
    assert len(screening.over_budget) >= 2


def test_measured_networks_correct_the_forecast(table: LatencyTable, predictor: LatencyPredictor) -> None:
    """A machine on which everything but the fixed cost has become dearer."""
    rng = np.random.default_rng(0)

    def networks(count: int) -> list[tuple[PruningPlan, Measurement]]:
        found = []
        for _ in range(count):
            kept = {g: int(rng.integers(1, 8)) * 2 for g in UNITS}
            ratio = share(kept) ** 1.2
            found.append(
                (keeping(**kept), Measurement({"latency_ratio": ratio}, {"latency_ratio": 0.01 * ratio}))
            )
        return found

    forecast = Forecast(predictor, table)
    points = forecast.points([(keeping(), Measurement({"latency_ratio": 1.0})), *networks(40)], "s")
    assert len(points) == 40  # the dense network is no news
    corrected, error = forecast.corrected(points)
    assert error.median > 0.1
    fresh = forecast.points(networks(40), "s")
    assert corrected.predictor.errors(fresh).median < 0.6 * predictor.errors(fresh).median
    assert corrected.table.points == (*table.points, *points)
    assert LatencyTable.from_json(json.loads(json.dumps(corrected.table.to_json()))) == corrected.table


STUDY = """
name = "lat"
[model]
factory = "digits_cnn"
options = { width = 8 }
[dense]
epochs = 1
[space]
round_to = 4
criteria = ["l1"]
[search]
searcher = "random"
candidates = 8
[goal]
objectives = ["accuracy", "latency_ratio"]
constraints = ["latency_ms <= 85%"]
[training]
candidates = 2
epochs = 0
precision = "float32"
[measure]
pairs = 20
[cluster]
workers = 1
"""


def search(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prunefront.pipelines.cli.main", "search", "s.toml", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=500, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def events(path: Path, kind: str) -> list[dict[str, Any]]:
    return [e for e in map(json.loads, path.read_text().splitlines()) if e["event"] == kind]


@pytest.mark.long
def test_a_whole_study_that_searches_by_latency(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(STUDY)
    done = search(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "studies" / "lat"
    assert "networks to time" in done.stdout
    assert "predicted against measured after training" in done.stdout
    told = [outcome_from_json(e["outcome"]) for e in events(folder / "journal.jsonl", "told")]
    assert len(told) == 8
    for outcome in told:
        assert isinstance(outcome, Measurement)
        assert "predicted_latency_ratio" in outcome.values
        assert "latency_ratio" not in outcome.values
    for event in events(folder / "journal.jsonl", "trained"):
        values = event["outcome"]["values"]
        assert values["latency_ratio"] > 0
        assert "predicted_latency_ratio" not in values
    corrected = json.loads((folder / "latency-corrected.json").read_text())
    assert len(corrected["points"]) > len(json.loads((folder / "latency.json").read_text())["points"])

    # the table is there, so the same study afresh measures none, and proposes and predicts the same
    before = [e["candidate"] for e in events(folder / "journal.jsonl", "asked")], told
    again = search(tmp_path, "--fresh")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "networks to time" not in again.stdout
    asked = [e["candidate"] for e in events(folder / "journal.jsonl", "asked")]
    retold = [outcome_from_json(e["outcome"]) for e in events(folder / "journal.jsonl", "told")]
    assert (asked, retold) == before

    # a table that is given must be of this network
    table = json.loads((folder / "latency.json").read_text())
    (tmp_path / "foreign.json").write_text(json.dumps({**table, "network": "another"}))
    (tmp_path / "s.toml").write_text(
        STUDY.replace("pairs = 20", 'pairs = 20\nlatency_table = "foreign.json"')
    )
    refused = search(tmp_path, "--fresh")
    assert refused.returncode == 2
    assert "is of another network" in refused.stderr
    assert "Traceback" not in refused.stderr
