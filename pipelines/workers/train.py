"""One training loop, for dense networks and for fine-tuning pruned ones."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.data import SearchData, batches
from prunefront.pruners.cut.refit import Refit
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.procedures import Phase
from prunefront.pruners.procedures.loop import EpochReport, fit
from prunefront.pruners.procedures.run import Run, SnapshotError
from prunefront.pruners.procedures.snapshot import Snapshot, Sums, take_snapshot
from prunefront.pruners.statistics import Batch

Precision = Literal["float32", "bfloat16"]
Keep = Callable[[Callable[[], bytes]], None]
"""Given, at the end of an epoch, what makes the bytes of a `Snapshot` that the same run can go on from; that can be
called until the next step."""

YieldPoint = Callable[[], AbstractContextManager[object]]

MOMENTUM = 0.9
GAIN_NEEDED = 1.05
"""bfloat16 loses digits, so it must be at least this much faster to be chosen."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Recipe of a training: SGD with Nesterov momentum 0.9, learning rate falling to zero as a half cosine.

    learning_rate: its peak. weight_decay: on weights of convolutions and linear layers only, not on biases and
    batch norm.
    distill: share of the teacher's soft targets in the loss, 0 = labels only; temperature: how soft.
    warmup: share of all steps in which the learning rate rises linearly to its peak.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    weight_decay: float = 5e-4
    distill: float = 0.0
    temperature: float = 2.0
    precision: Precision = "float32"
    channels_last: bool = False
    seed: int = 0
    warmup: float = 0.0


NO_GRAPH = ChannelGraph((), (), (), {}, ())
"""Channel graph of a network that is trained and not cut."""


def train(
    model: nn.Module,
    data: SearchData,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    yield_point: YieldPoint | None = None,
) -> Iterator[EpochReport]:
    """Trains the model in place, one epoch for each item taken; between items it is in eval mode.

    Deterministic for a seed, a machine and one thread. teacher: the network whose outputs are distilled; it is
    left alone. yield_point: entered around each step, so that a measurement can have the machine to itself.
    Raises Diverged at the first loss that is not finite, and PrunefrontError for distillation without a teacher.
    """
    run = begin(model, NO_GRAPH, PruningPlan(()), data, recipe)
    return carry_out(run, [Phase(run.steps)], data, recipe, teacher=teacher, yield_point=yield_point)


def begin(
    model: nn.Module,
    graph: ChannelGraph,
    goal: PruningPlan,
    data: SearchData,
    recipe: Recipe,
    calibration: Sequence[Batch] = (),
    *,
    steps: int | None = None,
    repaired: Refit | Literal["criterion", "none"] = "criterion",
) -> Run:
    """Returns what a training procedure starts from. model: dense, changed in place until the first cut.

    steps: mini-batches to spend; None = those of the recipe's epochs. repaired: as in `Run`.
    """
    per_epoch = _steps(len(data.train), recipe.batch_size)

    def optimizer(network: nn.Module) -> torch.optim.SGD:
        laid_out(network, _memory_format(recipe))  # a cut may have undone it
        return _sgd(network, recipe)

    return Run(
        model,
        graph,
        goal,
        steps=recipe.epochs * per_epoch if steps is None else steps,
        per_epoch=per_epoch,
        optimizer=optimizer,
        calibration=calibration,
        seed=recipe.seed,
        repaired=repaired,
    )


def carry_out(
    run: Run,
    phases: Iterable[Phase],
    data: SearchData,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    yield_point: YieldPoint | None = None,
    keep: Keep | None = None,
    snapshot: Snapshot | None = None,
) -> Iterator[EpochReport]:
    """Goes through a procedure's phases on the data; `run.model` is the network in the end. As `train` else.

    snapshot: to go on from. Raises SnapshotError for one of another run.
    """
    if recipe.distill > 0 and teacher is None:
        raise PrunefrontError(f"distill = {recipe.distill} needs a teacher; give one, or set distill = 0")
    frozen = None
    if teacher is not None and recipe.distill > 0:
        frozen = laid_out(_frozen_copy(teacher), _memory_format(recipe))
    device = next(run.model.parameters()).device

    def backward(model: nn.Module, batch: Batch, step: int) -> float:
        images, labels = batch
        assert isinstance(images, Tensor)
        return _backward(model, frozen, images, labels, recipe, run.per_epoch + step)

    generator = np.random.default_rng(recipe.seed)
    if snapshot is not None:
        try:
            generator.bit_generator.state = snapshot.stream
        except (ValueError, KeyError, TypeError) as error:
            raise SnapshotError(f"the snapshot has no state of a stream of batches: {error}") from None

    def taken(sums: Sums) -> None:
        assert keep is not None
        keep(lambda: take_snapshot(run, sums, generator.bit_generator.state).to_bytes())

    try:
        yield from fit(
            run,
            iter(phases),
            _stream(data, recipe, device, generator),
            backward,
            learning_rate=recipe.learning_rate,
            schedule=lambda done: schedule(done, recipe.warmup),
            around=yield_point or nullcontext,
            keep=None if keep is None else taken,
            snapshot=snapshot,
        )
    finally:
        run.model.eval()
        laid_out(run.model, torch.contiguous_format)


def _stream(
    data: SearchData, recipe: Recipe, device: torch.device, generator: np.random.Generator
) -> Iterator[Batch]:
    """Training batches without end, every image once in each pass; between passes the generator is all that counts."""
    while True:
        yield from batches(
            data.train,
            data.transform,
            recipe.batch_size,
            augment=generator,
            shuffle=generator,
            device=device,
            channels_last=recipe.channels_last,
            smallest=2,
        )


def laid_out(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Returns the model, its tensors in a memory format."""
    return model.to(memory_format=memory_format)  # type: ignore[call-overload, no-any-return]  # not in torch's stubs


def _memory_format(recipe: Recipe) -> torch.memory_format:
    return torch.channels_last if recipe.channels_last else torch.contiguous_format


def schedule(done: float, warmup: float) -> float:
    """Factor of the learning rate when `done` (0–1) of all steps are taken: linear rise, then half a cosine."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / (1.0 - warmup)))


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor, share: float, t: float) -> Tensor:
    """(1 - share)·CE(student, labels) + share·T²·KL(teacher/T ‖ student/T) (Hinton et al. 2015, 1503.02531).

    student, teacher: logits (b, classes). T² keeps the soft part's gradients as large as the hard part's.
    """
    hard = F.cross_entropy(student, labels)
    soft = F.kl_div(
        F.log_softmax(student / t, 1), F.log_softmax(teacher / t, 1), reduction="batchmean", log_target=True
    )
    return (1.0 - share) * hard + share * t * t * soft


@dataclass(frozen=True, slots=True)
class Speed:
    """Training speed in one setting: the median over its steps."""

    precision: Precision
    channels_last: bool
    images_per_second: float


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """The setting to train in, and every speed it was chosen from."""

    precision: Precision
    channels_last: bool
    speeds: tuple[Speed, ...]


def faster_precision(
    model: nn.Module,
    data: SearchData,
    *,
    batch_size: int = 128,
    teacher: nn.Module | None = None,
    rounds: int = 3,
    yield_point: YieldPoint | None = None,
) -> PrecisionChoice:
    """Whichever of float32 and bfloat16 with channels_last trains faster here, by alternating steps on copies.

    The first step of each warms up and does not count. bfloat16 must win by 5 %. The model is left alone.
    """
    pause = yield_point or nullcontext
    settings: tuple[tuple[Precision, bool], ...] = (("float32", False), ("bfloat16", True))
    runs = [_stepper(model, teacher, data, batch_size, *setting) for setting in settings]
    seconds: list[list[float]] = [[] for _ in settings]
    for round_ in range(rounds + 1):
        for step, times in zip(runs, seconds, strict=True):
            with pause():
                started = time.perf_counter()
                step()
                if round_:
                    times.append(time.perf_counter() - started)
    count = min(batch_size, len(data.train))
    speeds = tuple(Speed(*s, count / median(times)) for s, times in zip(settings, seconds, strict=True))
    plain, short = speeds
    best = short if short.images_per_second >= GAIN_NEEDED * plain.images_per_second else plain
    return PrecisionChoice(best.precision, best.channels_last, speeds)


def _stepper(
    model: nn.Module,
    teacher: nn.Module | None,
    data: SearchData,
    batch_size: int,
    precision: Precision,
    channels_last: bool,
) -> Callable[[], None]:
    """One real training step of a copy of the model, always on the same batch."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    student = laid_out(copy.deepcopy(model), memory_format).train()
    frozen = None if teacher is None else laid_out(_frozen_copy(teacher), memory_format)
    recipe = Recipe(
        epochs=1,
        learning_rate=1e-4,
        batch_size=batch_size,
        distill=0.0 if teacher is None else 0.5,
        precision=precision,
        channels_last=channels_last,
    )
    optimizer = _sgd(student, recipe)
    device = next(student.parameters()).device
    images, labels = next(
        batches(data.train, data.transform, batch_size, device=device, channels_last=channels_last)
    )
    return lambda: _step(student, frozen, optimizer, images, labels, recipe)


def _step(
    model: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
) -> None:
    optimizer.zero_grad()
    _backward(model, teacher, images, labels, recipe, 0)
    optimizer.step()


def _backward(
    model: nn.Module, teacher: nn.Module | None, images: Tensor, labels: Tensor, recipe: Recipe, number: int
) -> float:
    """Forward and, where the loss is finite, backward; the loss."""
    autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")
    # dropout draws from torch's global generator: seeded for the step, and put back
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed((recipe.seed << 32) + number)
        with autocast:
            outputs = model(images)
            targets = None if teacher is None else _outputs(teacher, images)
    if targets is None:
        loss = F.cross_entropy(outputs.float(), labels)
    else:
        loss = distillation_loss(outputs.float(), targets, labels, recipe.distill, recipe.temperature)
    value = loss.item()
    if math.isfinite(value):
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return value


@torch.no_grad()
def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    outputs: Tensor = model(images)
    return outputs.float()


def _frozen_copy(teacher: nn.Module) -> nn.Module:
    return copy.deepcopy(teacher).eval().requires_grad_(False)


def _sgd(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        momentum=MOMENTUM,
        nesterov=True,
    )


def _steps(images: int, batch_size: int) -> int:
    full, rest = divmod(images, batch_size)
    return max(1, full + (rest >= 2))  # a single last image joins the batch before it
