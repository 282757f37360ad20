"""The training loop: it learns, it repeats, it distils, it stops when the loss is no number."""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.accuracy import accuracy
from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data import SearchData, Split, Transform, load
from prunefront.pipelines.models import models
from prunefront.pipelines.tasks import CLASSIFICATION
from prunefront.pipelines.workers.train import (
    Recipe,
    faster_precision,
    schedule,
    train,
)
from prunefront.pruners.procedures.loop import Diverged, EpochReport


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(count: int = 33) -> SearchData:
    digits = load(DataSection()).for_search()
    return SearchData(digits.train[:count], digits.validation[:20], digits.transform, 10)


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(288, 10),
        )


def weights(model: nn.Module) -> Tensor:
    return torch.cat([t.detach().flatten().float() for t in model.state_dict().values()])


SHORT = Recipe(epochs=2, learning_rate=0.05, batch_size=16)


def run(
    model: nn.Module, recipe: Recipe = SHORT, on: SearchData | None = None, **more: object
) -> list[EpochReport]:
    return list(train(model, on or data(), recipe, **more))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_seed_repeats_bit_for_bit(precision: str, channels_last: bool) -> None:
    def trained(seed: int) -> Tensor:
        recipe = Recipe(
            epochs=2,
            learning_rate=0.05,
            batch_size=16,
            distill=0.5,
            precision=precision,
            channels_last=channels_last,
            seed=seed,
        )
        model = net()
        reports = run(model, recipe, teacher=net(9))
        assert [r.epoch for r in reports] == [1, 2]
        assert all(r.images == 33 and r.seconds > 0 and math.isfinite(r.loss) for r in reports)
        assert not model.training
        assert all(p.is_contiguous() for p in model.parameters())
        assert all(p.dtype == torch.float32 for p in model.parameters())
        return weights(model)

    state = torch.random.get_rng_state()
    first = trained(1)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator is left alone"
    torch.rand(3)  # what others draw in between does not matter
    assert torch.equal(first, trained(1))
    assert not torch.equal(first, trained(2))


def test_one_step_is_nesterov_sgd_with_decay_on_matrices_only() -> None:
    on = data(8)
    on = SearchData(on.train, on.validation, Transform(on.transform.mean, on.transform.std), 10)
    model, mirror = (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    )
    mirror.load_state_dict(model.state_dict())
    run(model, Recipe(epochs=1, learning_rate=0.3, batch_size=8, weight_decay=0.1), on)
    pixels = torch.tensor(on.train.images / 255.0, dtype=torch.float32)
    x = (pixels - on.transform.mean[0]) / on.transform.std[0]
    F.cross_entropy(mirror(x), torch.tensor(on.train.labels)).backward()
    layer = mirror[1]
    gradient = layer.weight.grad + 0.1 * layer.weight
    # first Nesterov step: buffer = gradient, direction = gradient + 0.9 * buffer
    torch.testing.assert_close(model[1].weight, layer.weight - 0.3 * 1.9 * gradient, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model[1].bias, layer.bias - 0.3 * 1.9 * layer.bias.grad, atol=1e-5, rtol=1e-4)


def test_schedule_rises_linearly_then_falls_as_half_a_cosine() -> None:
    assert schedule(0.0, 0.0) == 1.0
    assert schedule(0.5, 0.0) == pytest.approx(0.5)
    assert schedule(1.0, 0.0) == pytest.approx(0.0)
    assert 0 < schedule(0.0, 0.2) < 0.01
    assert schedule(0.1, 0.2) == pytest.approx(0.5, abs=0.01)
    assert schedule(0.2, 0.2) == 1.0
    assert schedule(0.6, 0.2) == pytest.approx(0.5)


def test_distillation_loss_is_the_formula() -> None:
    rng = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(5, 4, generator=rng), torch.randn(5, 4, generator=rng)
    labels, t = torch.tensor([0, 1, 2, 3, 0]), 3.0
    p, q = (teacher / t).softmax(1), (student / t).softmax(1)
    kl = (p * (p / q).log()).sum(1).mean()
    hard = -student.softmax(1)[torch.arange(5), labels].log().mean()
    expected = 0.3 * hard + 0.7 * t * t * kl
    task = CLASSIFICATION
    found = 0.3 * task.loss(student, labels) + 0.7 * task.distil(student, teacher, t)
    torch.testing.assert_close(found, expected)
    same = task.distil(teacher, teacher, t)
    torch.testing.assert_close(same, torch.tensor(0.0), atol=1e-6, rtol=0)


def test_a_student_follows_its_teacher_which_stays_as_it_was() -> None:
    on, teacher = data(200), net(5).train()
    before = weights(teacher)

    def distance(model: nn.Module) -> float:
        x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            mirror = net(5)
            mirror.load_state_dict(teacher.state_dict())
            return float(F.mse_loss(model.eval()(x).softmax(1), mirror.eval()(x).softmax(1)))

    student = net(6)
    far = distance(student)
    recipe = Recipe(epochs=4, learning_rate=0.05, batch_size=16, distill=1.0, weight_decay=0.0)
    run(student, recipe, on, teacher=teacher)
    assert distance(student) < 0.5 * far
    assert torch.equal(before, weights(teacher))
    assert teacher.training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


def test_divergence_is_named_and_stops_before_the_update() -> None:
    with pytest.raises(
        Diverged, match=r"in epoch \d, step \d of \d+; a learning rate below 1e\+30"
    ) as caught:
        run(net(), Recipe(epochs=3, learning_rate=1e30, batch_size=8))
    assert isinstance(caught.value, PrunefrontError)
    on = data(16)
    images = on.train.images.astype(np.float32)
    images[3] = np.inf
    broken = SearchData(Split(images, on.train.labels), on.validation, on.transform, 10)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = weights(model)
    with pytest.raises(Diverged, match="the loss is nan in epoch 1, step 1 of 1"):
        run(model, Recipe(epochs=1, learning_rate=0.1, batch_size=16), broken)
    assert torch.equal(before, weights(model))


def test_distilling_needs_a_teacher() -> None:
    with pytest.raises(PrunefrontError, match=r"distill = 0\.5 needs a teacher"):
        run(net(), Recipe(epochs=1, learning_rate=0.1, batch_size=16, distill=0.5))


def test_every_step_takes_its_turn_and_waiting_does_not_count() -> None:
    log: list[str] = []
    waited: list[float] = []

    @contextmanager
    def turn() -> Iterator[None]:
        log.append("in")
        started = time.perf_counter()
        time.sleep(0.05)
        waited.append(time.perf_counter() - started)
        yield
        log.append("out")

    started = time.perf_counter()
    reports = run(net(), Recipe(epochs=2, learning_rate=0.05, batch_size=16), yield_point=turn)
    wall = time.perf_counter() - started
    # 33 images by 16: the last single one joins the second step, so two steps in each epoch; before and after them what
    # a procedure does to the network has its turn, and so has what the plan asks besides channels
    assert log == ["in", "out"] * (2 + 4 + 2)
    assert 0 < sum(r.seconds for r in reports) < wall - sum(waited)


def test_read_only_data_trains_without_a_warning_or_a_write() -> None:
    on = data()
    images, labels = on.train.images.copy(), on.train.labels.copy()
    images.flags.writeable = labels.flags.writeable = False
    kept = images.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(net(), SHORT, SearchData(Split(images, labels), on.validation, on.transform, 10))
    np.testing.assert_array_equal(images, kept)


def test_the_caller_may_stop_after_any_epoch() -> None:
    model = net()
    reports = train(model, data(), Recipe(epochs=50, learning_rate=0.05, batch_size=16, channels_last=True))
    assert next(reports).epoch == 1
    assert not model.training
    reports.close()
    assert all(p.is_contiguous() for p in model.parameters())


def test_faster_precision_is_measured_and_leaves_the_model_alone() -> None:
    model = net()
    before = weights(model)
    choice = faster_precision(model, data(), batch_size=16, rounds=3, teacher=net(1))
    by_setting = {(s.precision, s.channels_last): s.images_per_second for s in choice.speeds}
    assert set(by_setting) == {("float32", False), ("bfloat16", True)}
    gain = by_setting["bfloat16", True] / by_setting["float32", False]
    assert (choice.precision, choice.channels_last) == (
        ("bfloat16", True) if gain >= 1.05 else ("float32", False)
    )
    assert torch.equal(before, weights(model))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.slow
def test_the_dense_digits_network_is_good() -> None:
    splits = load(DataSection())
    model = models["digits_cnn"]()
    recipe = Recipe(epochs=10, learning_rate=0.1, batch_size=128, warmup=0.2)
    losses = [r.loss for r in train(model, splits.for_search(), recipe)]
    assert losses[-1] < 0.1 * losses[0]
    assert accuracy(model, splits.test, splits.transform).value >= 0.975
