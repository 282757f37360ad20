"""What goes wrong with a candidate on a worker becomes a Failure that says why."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from prunefront.errors import PrunefrontError, RatioError
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.data import load
from prunefront.pipelines.models import build
from prunefront.pipelines.prepare.network import dense_recipe
from prunefront.pipelines.workers.failures import failure
from prunefront.pipelines.workers.scoring import ScoringWorker
from prunefront.pipelines.workers.workbench import Workbench, arrays
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.trace.tracer import trace
from prunefront.search.outcomes.measurement import Failure, Measurement, NotFinite


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
