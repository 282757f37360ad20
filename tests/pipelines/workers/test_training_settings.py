"""Settings of our training loop against a plain loop of torch's own parts, bit for bit, and what refuses them."""

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.differences import differences
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import (
    LATER_TRAINING,
    ClusterSection,
    QuantisationSection,
    ScoringSection,
    TrainingSection,
)
from prunefront.pipelines.prepare.training import check_settings, check_task
from prunefront.pipelines.tasks import CLASSIFICATION, tasks
from prunefront.pipelines.workers.train import NO_GRAPH, Recipe, begin, carry_out, train
from prunefront.pruners.cut.recalibrate import recalibrate
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.procedures import Phase
from prunefront.pruners.procedures.snapshot import Snapshot
from tests.pipelines.workers.test_train import data, net, weights

RATE, DECAY, BATCH, EPOCHS, IMAGES = 0.02, 0.01, 16, 3, 48


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))


def reference(
    model: nn.Module,
    *,
    optimizer: str = "sgd",
    schedule: str = "cosine",
    label_smoothing: float = 0.0,
    clip_norm: float | None = None,
    ema: float | None = None,
    mixup: float = 0.0,
) -> nn.Module:
    """A training loop as one would write it without us. Mixed labels are class probabilities."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    made: torch.optim.Optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9, nesterov=True)
    if optimizer == "adamw":
        made = torch.optim.AdamW(groups, lr=RATE)
    average = None if ema is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema))
    rng, part, step, steps = np.random.default_rng(0), data(IMAGES).part("train"), 0, EPOCHS * 3
    for _ in range(EPOCHS):
        for batch in part.batches(BATCH, rng=rng, smallest=2):
            done = step / steps
            factor = {"cosine": 0.5 * (1.0 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
            for group in made.param_groups:
                group["lr"] = RATE * factor[schedule]
            (x,), y = batch.inputs.args, batch.targets
            target: Tensor = y
            if mixup:
                draw = np.random.default_rng([0, 4, 3 + step])
                share, order = draw.beta(mixup, mixup), draw.permutation(len(x))
                x, hot = share * x + (1 - share) * x[order], F.one_hot(y, 10).float()
                target = share * hot + (1 - share) * hot[order]
            made.zero_grad()
            F.cross_entropy(model(x), target, label_smoothing=label_smoothing).backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(list(model.parameters()), clip_norm)
            made.step()
            if average is not None:
                average.update_parameters(model)
            step += 1
    return model if average is None else average.module


SETTINGS: Sequence[dict[str, Any]] = [
    {},
    {"optimizer": "adamw"},
    {"schedule": "linear"},
    {"schedule": "constant"},
    {"label_smoothing": 0.1},
    {"clip_norm": 0.3},
    {"ema": 0.8},
    {"optimizer": "adamw", "schedule": "linear", "label_smoothing": 0.1, "clip_norm": 0.3, "ema": 0.8},
]


def recipe(**asked: Any) -> Recipe:
    return Recipe(EPOCHS, RATE, BATCH, weight_decay=DECAY, **asked)


@pytest.mark.parametrize("asked", SETTINGS, ids=str)
def test_each_setting_is_torchs_own_bit_for_bit(asked: dict[str, Any]) -> None:
    """The first case is a study file that says nothing: training is what it was before there were settings."""
    wanted, model = reference(plain(), **asked), plain()
    list(train(model, data(IMAGES), recipe(**asked)))
    assert torch.equal(weights(model), weights(wanted))
    if asked:
        assert not torch.equal(weights(model), weights(reference(plain())))


def test_mixup_is_the_loss_of_mixed_labels() -> None:
    wanted, model = reference(plain(), mixup=0.4, label_smoothing=0.1), plain()
    list(train(model, data(IMAGES), recipe(mixup=0.4, label_smoothing=0.1)))
    torch.testing.assert_close(weights(model), weights(wanted), rtol=1e-4, atol=1e-6)
    assert not torch.equal(weights(model), weights(reference(plain(), label_smoothing=0.1)))


def test_the_average_is_judged_between_epochs_and_does_not_change_what_is_trained() -> None:
    """Running statistics are those of the averaged weights on the calibration batches, and are put back."""
    calibration = [(b.inputs.args[0], b.targets) for b in data(IMAGES).part("train").batches(BATCH)]
    seen: list[nn.Module] = []
    model, raw = net(), net()
    run = begin(model, NO_GRAPH, PruningPlan(()), data(IMAGES), recipe(ema=0.8), calibration)
    for _ in carry_out(run, [Phase(run.steps)], data(IMAGES), recipe(ema=0.8)):
        seen.append(copy.deepcopy(model))
    plain_run = begin(raw, NO_GRAPH, PruningPlan(()), data(IMAGES), recipe(), calibration)
    list(carry_out(plain_run, [Phase(plain_run.steps)], data(IMAGES), recipe()))
    averages = [run.optimizer.state[p]["average"] for p in model.parameters()]
    assert all(torch.equal(p, a) for p, a in zip(model.parameters(), averages, strict=True))
    trained = [plain_run.optimizer.state[p]["momentum_buffer"] for p in raw.parameters()]
    momenta = [run.optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(trained, momenta, strict=True)), (
        "same steps with and without"
    )
    for network in seen:
        before = weights(network)
        recalibrate(network, calibration)
        assert torch.equal(before, weights(network))


@pytest.mark.parametrize(
    "asked", [{"optimizer": "adamw", "ema": 0.8}, {"mixup": 0.4, "clip_norm": 0.5}], ids=str
)
def test_an_interrupted_training_goes_on_with_every_setting(asked: dict[str, Any]) -> None:
    def begun() -> Any:
        return begin(plain(), NO_GRAPH, PruningPlan(()), data(IMAGES), recipe(**asked))

    kept: list[bytes] = []
    run = begun()
    phases = [Phase(run.steps)]
    list(carry_out(run, phases, data(IMAGES), recipe(**asked), keep=lambda make: kept.append(make())))
    assert len(kept) == EPOCHS
    for content in kept:
        again = begun()
        rest = carry_out(
            again, [Phase(again.steps)], data(IMAGES), recipe(**asked), snapshot=Snapshot.from_bytes(content)
        )
        list(rest)
        assert torch.equal(weights(again.model), weights(run.model))


def test_what_does_not_go_together_is_refused_by_name() -> None:
    floats, plain = QuantisationSection(), ScoringSection()
    with pytest.raises(PrunefrontError, match=r"training\.ema .* procedure 'iterative'"):
        check_settings(TrainingSection(ema=0.9, procedure="iterative"), floats, plain, ClusterSection())
    with pytest.raises(PrunefrontError, match=r"training\.ema .* quantisation\.bits has 8"):
        check_settings(TrainingSection(ema=0.9), QuantisationSection(bits=(32, 8)), plain, ClusterSection())
    check_settings(TrainingSection(ema=0.9), floats, plain, ClusterSection())
    regression = tasks["regression"]()
    for key in ("label_smoothing", "mixup"):
        asked = TrainingSection.model_validate({key: 0.2})
        with pytest.raises(PrunefrontError, match=rf"training\.{key} = 0\.2 .* 'regression'"):
            check_task(asked, "regression", regression)
        check_task(asked, "classification", CLASSIFICATION)
    check_task(TrainingSection(), "regression", regression)


def test_a_study_begun_before_these_keys_goes_on() -> None:
    config = parse({"name": "a", "model": {"factory": "digits_cnn"}}, source="here", base=Path())
    kept = config.to_json()
    del kept["task"]
    for key in LATER_TRAINING:
        kept["training"].pop(key, None)
    assert differences(config, kept) == []
    changed = parse(
        {"name": "a", "model": {"factory": "digits_cnn"}, "training": {"ema": 0.9, "optimizer": "adamw"}},
        source="here",
        base=Path(),
    )
    assert differences(changed, kept) == ["training.ema", "training.optimizer"]
