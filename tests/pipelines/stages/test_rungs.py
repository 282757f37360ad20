"""What people and MLflow are told of a study's rungs, and which networks are compared at all."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunefront.choice import GroupChoice
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import ModelSection
from prunefront.pipelines.data import SearchData, Split, Transform
from prunefront.pipelines.models import build
from prunefront.pipelines.stages.rungs import metrics, rung_line, rungs_of
from prunefront.pipelines.workers.evaluate import Evaluator, Progress
from prunefront.pipelines.workers.train import Recipe
from prunefront.pipelines.workers.workbench import Job, Workbench, arrays
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.scoring import score
from prunefront.pruners.trace.tracer import trace
from prunefront.search.outcomes.measurement import OBJECTIVES, Failure, Measurement, Objective
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import SearchSpace
from tests.pipelines.config.test_sections import BASE


def network(accuracy: float, macs: float = 10.0, noise: float = 0.01) -> Measurement:
    return Measurement({"accuracy": accuracy, "macs": macs, "size_bytes": 1.0}, {"accuracy": noise})


def event(
    kind: str, name: str, outcome: Any, epoch: int = 1, share: float = 0.5, of: int = 1
) -> dict[str, Any]:
    return {
        "event": kind,
        "name": name,
        "epoch": epoch,
        "outcome": outcome.to_json(),
        "share": share,
        "of": of,
    }


CONFIG = parse(BASE | {"training": {"early_stopping": True, "epochs": 4}}, source="s.toml", base=Path())
TASK = Problem(SearchSpace(()), (OBJECTIVES["accuracy"], OBJECTIVES["macs"]))
RISING = [0.5, 0.6, 0.7, 0.8, 0.9]


def journal(early: list[float], late: list[float]) -> list[dict[str, Any]]:
    """Five networks of one cost at the first rung, all of which reached the end, and one that was stopped."""
    rung = [event("rung", str(i), network(a)) for i, a in enumerate(early)]
    end = [event("trained", str(i), network(a)) for i, a in enumerate(late)]
    return [*rung, event("stopped", "x", network(0.1)), *end, event("trained", "dense", network(0.99))]


NAMES = {*"01234", "x"}


def test_a_rung_that_foretells_the_end_says_so() -> None:
    rungs = rungs_of(
        CONFIG.training,
        TASK,
        {n: network(0.3) for n in NAMES},
        journal(RISING, RISING),
        NAMES,
        seed=CONFIG.seed,
    )
    untrained, first = rungs.summary()
    assert rung_line(untrained, rungs.keep) == (
        "quality before training compared with the final quality: 6 candidates; "
        "no two of similar cost differ clearly"
    )
    assert rung_line(first, rungs.keep) == (
        "quality after 1 epoch compared with the final quality: 6 candidates, 1 stopped; "
        "rank correlation 1.00 over 5 networks, 1.00 ± 0.00 over 10 pairs of similar cost "
        "(1 = same order, 0 = unrelated)"
    )
    assert metrics(first) == {
        "candidates": 6.0,
        "stopped": 1.0,
        "share": 0.5,
        "correlation": pytest.approx(1.0),
        "correlation_like": 1.0,
        "pairs_like": 10.0,
    }
    assert metrics(untrained) == {"candidates": 6.0, "stopped": 0.0, "share": 1.0}


def test_one_that_does_not_is_widened_and_says_so() -> None:
    scored = dict(zip("01234", map(network, RISING), strict=True))
    rungs = rungs_of(CONFIG.training, TASK, scored, journal(RISING, RISING[::-1]), NAMES, seed=CONFIG.seed)
    untrained, first = rungs.summary()
    assert rung_line(first, rungs.keep).endswith("too low to stop by, so 100% continue instead of 50%")
    assert rung_line(untrained, rungs.keep).endswith("too low to choose by: raise training.candidates")
    assert rungs.report(1, "late", network(0.1)).go_on


def test_a_failed_network_is_no_rival_and_the_journal_keeps_its_verdicts() -> None:
    failed = event("trained", "0", Failure("diverged", "the loss is nan"))
    events = [event("rung", "0", network(0.9)), event("stopped", "x", network(0.1)), failed]
    rungs = rungs_of(CONFIG.training, TASK, {}, events, NAMES, seed=CONFIG.seed)
    assert rungs.verdict(1, "0") is None
    assert not rungs.report(1, "x", network(0.99)).go_on
    assert rungs.report(1, "1", network(0.2)).go_on


def test_a_cost_that_only_the_first_stage_knows_is_compared_at_every_rung() -> None:
    """A predicted latency is told with a candidate's score and not again while it trains."""
    task = Problem(SearchSpace(()), (OBJECTIVES["accuracy"], Objective("predicted_latency_ms", "min", "ms")))
    scored = {
        n: Measurement({"accuracy": 0.3, "predicted_latency_ms": ms}, {"predicted_latency_ms": 0.1})
        for n, ms in (("quick", 1.0), ("slow", 9.0))
    }
    rungs = rungs_of(
        CONFIG.training, task, scored, [event("rung", "quick", network(0.9))], {*scored}, seed=CONFIG.seed
    )
    assert rungs.report(2, "quick", network(0.9)).go_on
    assert not rungs.report(1, "slow", network(0.5)).go_on
    assert (
        rungs_of(CONFIG.training, task, scored, [], {*scored}, seed=CONFIG.seed)
        .report(1, "slow", network(0.5))
        .go_on
    )


def test_without_early_stopping_rungs_only_look_on() -> None:
    config = parse(BASE, source="s.toml", base=Path())
    rungs = rungs_of(config.training, TASK, {}, journal(RISING, RISING[::-1]), NAMES, seed=CONFIG.seed)
    assert rungs.keep == 1.0
    assert rungs.report(1, "late", network(0.01, macs=1000.0)).go_on
    assert "instead" not in rung_line(rungs.summary()[0], rungs.keep)


@pytest.mark.parametrize(
    ("procedure", "whole"), [("one_shot", [True] * 3), ("cubic_ramp", [False, True, True])]
)
def test_a_network_is_compared_when_all_is_cut(procedure: str, whole: list[bool]) -> None:
    section = ModelSection(factory="digits_cnn", options={"width": 4})
    model = build(section, classes=10, input_shape=(1, 8, 8)).eval()
    graph = trace(model, torch.zeros(2, 1, 8, 8))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (128, 1, 8, 8), dtype=np.uint8)
    split = Split(images, rng.integers(0, 10, 128, dtype=np.int64))
    study = parse(BASE, source="s.toml", base=Path())
    bench = Workbench(
        study="s",
        seed=0,
        model=section,
        classes=10,
        input_shape=(1, 8, 8),
        weights=arrays(model),
        graph=graph,
        data=SearchData(split, split[:64], Transform((0.5,), (0.25,), "none", 0), 10),
        calibration_images=64,
        validation_limit=None,
        recipe=Recipe(epochs=4, learning_rate=0.01, batch_size=16),
        scratch=Recipe(epochs=4, learning_rate=0.01, batch_size=16),
        initial=None,
        procedure=procedure,
        options={},
        measure=study.measure,
        dense_onnx=b"",
        artifact_uri="",
        artifacts=study.artifacts,
        description={},
    )
    aim = plan(graph, {g.name: GroupChoice("l1", 0.5) for g in graph.groups}, score(model, graph, ("l1",)))
    seen: list[Progress] = list(Evaluator(bench).train(Job("a", Candidate({}), aim, epochs=4)))
    assert [p.epochs for p in seen] == [1, 2, 3]
    assert [p.whole for p in seen] == whole
    macs = [p.measurement["macs"] for p in seen]
    assert len({m for m, p in zip(macs, seen, strict=True) if p.whole}) == 1
    assert all(a >= b for a, b in itertools.pairwise(macs))
