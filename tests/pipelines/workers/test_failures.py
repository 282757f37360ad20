"""What goes wrong with a candidate on a worker becomes a Failure that says why."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import pytest
import torch

from prunefront.errors import PrunefrontError, RatioError
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import ClusterSection, ScoringSection, SpaceSection
from prunefront.pipelines.data import load
from prunefront.pipelines.models import build
from prunefront.pipelines.prepare.network import dense_recipe
from prunefront.pipelines.prepare.workbench import limits_of
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.failures import PASSING, TIMED_OUT, failure
from prunefront.pipelines.workers.scoring import ScoringWorker
from prunefront.pipelines.workers.trial import Trial, outcome_of
from prunefront.pipelines.workers.workbench import Job, Workbench, arrays
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.trace.tracer import trace
from prunefront.search.outcomes.measurement import Failure, Measurement, NotFinite
from prunefront.search.space.candidate import Candidate


def bench(broken: float | None) -> Workbench:
    """Of a small network; `broken` is the value of one weight of its last layer."""
    config = parse(
        {"name": "nan", "model": {"factory": "digits_cnn", "options": {"width": 4}}},
        source="here",
        base=Path(),
    )
    splits = load(config.data)
    model = build(config.model, classes=splits.classes, input_shape=splits.train.images.shape[1:]).eval()
    weights = arrays(model)
    if broken is not None:
        name = next(n for n in reversed(weights) if n.endswith("weight"))
        weights[name] = weights[name].copy()
        weights[name].flat[0] = broken
    _, *shape = splits.train.images.shape
    return Workbench(
        study="nan",
        seed=0,
        model=config.model,
        classes=splits.classes,
        input_shape=(shape[0], shape[1], shape[2]),
        weights=weights,
        graph=trace(model, torch.zeros(2, *shape)),
        data=splits.for_search(),
        calibration_images=128,
        validation_limit=64,
        recipe=dense_recipe(config.dense, weight_decay=config.training.weight_decay, seed=config.seed),
        scratch=dense_recipe(config.dense, weight_decay=config.training.weight_decay, seed=config.seed),
        initial=None,
        procedure="one_shot",
        options={},
        measure=config.measure,
        dense_onnx=b"",
        artifact_uri="",
        artifacts=config.artifacts,
        description={},
    )


@pytest.mark.parametrize("broken", [None, float("nan")])
def test_a_network_that_computes_nan_has_no_accuracy(broken: float | None) -> None:
    """Its largest output would be a class like any other, and the network as accurate as chance."""
    threads = torch.get_num_threads()
    scored = ScoringWorker(bench(broken), threads).score(PruningPlan(()))
    outcome = scored.outcome
    assert scored.seconds > 0
    if broken is None:
        assert isinstance(outcome, Measurement)
        assert np.isfinite(list(outcome.values.values())).all()
    else:
        assert outcome == Failure(
            "not_finite", "the network's outputs are not finite: NaN on some of the samples"
        )


def test_a_candidate_that_hangs_has_timed_out_and_the_next_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the score as in the training, whatever handles exceptions in the network; its worker goes on."""
    made = replace(bench(None), score_seconds=0.5, step_seconds=0.5)
    worker, trial = ScoringWorker(made, 1), Trial(made, None, 1)
    score, train = Evaluator.score, Evaluator.train

    def hangs(*_: object, **__: object) -> NoReturn:
        while True:
            with suppress(Exception):
                time.sleep(60)

    monkeypatch.setattr(Evaluator, "score", hangs)
    monkeypatch.setattr(Evaluator, "train", hangs)
    assert worker.score(PruningPlan(())).outcome == Failure(TIMED_OUT, "scoring took longer than 0.5 s")
    candidate = Candidate({}, "random")
    trial.start(Job("a", candidate, PruningPlan(()), 1))
    outcome = outcome_of(trial.step())
    assert isinstance(outcome, Failure)
    assert (outcome.kind, "took longer than 0.5 s" in outcome.reason) == (TIMED_OUT, True)
    assert TIMED_OUT not in PASSING, "what hangs once would hang at each --resume"
    monkeypatch.setattr(Evaluator, "score", score)
    monkeypatch.setattr(Evaluator, "train", train)
    worker._evaluator.bench = replace(made, score_seconds=600.0)
    assert isinstance(worker.score(PruningPlan(())).outcome, Measurement)


def test_limits_follow_from_the_dense_networks_time() -> None:
    cluster = ClusterSection(cpus_per_worker=2)
    section = SimpleNamespace(
        cluster=cluster, scoring=ScoringSection(), space=SpaceSection(calibration_images=100)
    )
    parts = SimpleNamespace(part=lambda name: SimpleNamespace(count={"train": 1000, "validation": 300}[name]))

    class Slow(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.08)
            return x

    network = SimpleNamespace(model=Slow(), example=lambda count: (torch.zeros(count, 1),))
    found = limits_of(section, network, parts)  # type: ignore[arg-type]
    each = 0.01 * torch.get_num_threads() / 2  # seconds a sample
    assert found.score_seconds == pytest.approx(max(120, 50 * each * 3 * 400), rel=0.5)
    assert found.step_seconds == pytest.approx(max(600, 50 * each * 3 * 1300), rel=0.5)
    section.cluster = ClusterSection(score_seconds=1, step_seconds=2)
    given = limits_of(section, network, parts)  # type: ignore[arg-type]
    assert (given.score_seconds, given.step_seconds) == (1, 2)
    section.cluster = ClusterSection(step_seconds=2)
    assert limits_of(section, network, parts).step_seconds == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_a_failure_of_its_own_kind(value: float) -> None:
    with pytest.raises(NotFinite) as caught:
        Measurement({"accuracy": value})
    assert failure(caught.value) == Failure(
        "not_finite", f"accuracy must be finite, got {value}: tell a Failure instead"
    )
    with pytest.raises(NotFinite):
        Measurement({"accuracy": 0.5}, {"accuracy": value})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out_of_memory"),
        (OSError("disk"), "storage"),
        (RatioError("too much"), "refused"),
        (PrunefrontError("no"), "refused"),
        (KeyError("a mistake"), "error"),
    ],
)
def test_kinds(error: BaseException, kind: str) -> None:
    assert failure(error).kind == kind
    assert failure(error).reason


@pytest.mark.parametrize(
    "allocate",
    [lambda size: torch.empty(size, dtype=torch.uint8), lambda size: np.empty(size, np.uint8), bytearray],
)
def test_memory_that_cannot_be_had_is_called_so(allocate: Callable[[int], object]) -> None:
    """Whoever asks for it: more than any machine has."""
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate(2**60)
    assert failure(caught.value).kind == "out_of_memory"
