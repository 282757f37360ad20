"""One training loop, for dense networks and for fine-tuning pruned ones."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.data.samples import DataSet, Inputs, laid_out_inputs, map_tensors, positional
from prunefront.pipelines.measure.quality import targets_of
from prunefront.pipelines.tasks import CLASSIFICATION, Task, TaskError
from prunefront.pruners.cut.recalibrate import recalibrate
from prunefront.pruners.cut.refit import Refit
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.procedures import Phase
from prunefront.pruners.procedures.averaging import keep_average
from prunefront.pruners.procedures.loop import EpochReport, fit
from prunefront.pruners.procedures.run import Run, SnapshotError
from prunefront.pruners.procedures.snapshot import Snapshot, Sums, take_snapshot
from prunefront.pruners.statistics import Batch

Precision = Literal["float32", "bfloat16"]
Schedule = Literal["cosine", "linear", "constant"]
Keep = Callable[[Callable[[], bytes]], None]
"""Given, at the end of an epoch, what makes the bytes of a `Snapshot` that the same run can go on from; that can be
called until the next step."""

YieldPoint = Callable[[], AbstractContextManager[object]]

MOMENTUM = 0.9
GAIN_NEEDED = 1.05
"""bfloat16 loses digits, so it must be at least this much faster to be chosen."""

HOPELESS = (4.0, 2.0)
"""How many times float32's fastest step another setting's may take and still be tried: after its first step, later."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Recipe of a training.

    optimizer: SGD with Nesterov momentum 0.9, or AdamW. learning_rate: its peak. schedule: how it falls to zero, if it
    does. weight_decay: on weights of convolutions and linear layers only, not on biases and
    batch norm.
    distill: share of the teacher's soft targets in the loss, 0 = labels only; temperature: how soft. A task that has no
    soft targets, or no labels, has one loss alone.
    warmup: share of all steps in which the learning rate rises linearly to its peak.
    label_smoothing, mixup (its alpha): of tasks with `soft_labels`. clip_norm: largest norm of the gradients.
    ema: decay of a moving average of the weights, which the network has between epochs and in the end; the norms'
    running statistics are then those of the calibration batches.
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
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: Schedule = "cosine"
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    ema: float | None = None
    mixup: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Work of a step, or one process's part of it.

    number: the step's, from which dropout and mixup follow. others, share: targets of the samples that these are mixed
    with, and the share of their own. weight: of its mean loss in that of the step. rank: the process's. copies: number
    of processes that compute each sample.
    """

    inputs: Inputs
    targets: Any
    number: int
    others: Any = None
    share: float = 1.0
    weight: float = 1.0
    rank: int = 0
    copies: int = 1


class Crew(Protocol):
    """Processes, this one included, that share the work of each step; this one holds the network and the optimiser."""

    def begin(self, recipe: Recipe, teacher: nn.Module | None) -> None:
        """Comes before the first step of a training. teacher: to distil from."""
        ...

    def backward(self, model: nn.Module, work: Work) -> float:
        """Adds the gradients of the step to those of the model, where its loss is finite, and returns the loss."""
        ...


NO_GRAPH = ChannelGraph((), (), (), {}, ())
"""Channel graph of a network that is trained and not cut."""


def train(
    model: nn.Module,
    data: DataSet,
    recipe: Recipe,
    *,
    task: Task = CLASSIFICATION,
    teacher: nn.Module | None = None,
    yield_point: YieldPoint | None = None,
) -> Iterator[EpochReport]:
    """Trains the model in place, one epoch for each item taken; between items it is in eval mode.

    Deterministic for a seed, a machine and one thread. teacher: the network whose outputs are distilled; it is
    left alone. yield_point: entered around each step, so that a measurement can have the machine to itself.
    Raises Diverged at the first loss that is not finite, and PrunefrontError for distillation without a teacher.
    """
    run = begin(model, NO_GRAPH, PruningPlan(()), data, recipe, task=task)
    return carry_out(
        run, [Phase(run.steps)], data, recipe, task=task, teacher=teacher, yield_point=yield_point
    )


def begin(
    model: nn.Module,
    graph: ChannelGraph,
    goal: PruningPlan,
    data: DataSet,
    recipe: Recipe,
    calibration: Sequence[Batch] = (),
    *,
    task: Task = CLASSIFICATION,
    steps: int | None = None,
    repaired: Refit | Literal["criterion", "none"] = "criterion",
) -> Run:
    """Returns what a training procedure starts from. model: dense, changed in place until the first cut.

    steps: mini-batches to spend; None = those of the recipe's epochs. repaired: as in `Run`.
    """
    per_epoch = _steps(sample_count(data), recipe.batch_size)

    def optimizer(network: nn.Module) -> torch.optim.Optimizer:
        laid_out(network, _memory_format(recipe))  # a cut may have undone it
        return _optimizer(network, recipe)

    return Run(
        model,
        graph,
        goal,
        steps=recipe.epochs * per_epoch if steps is None else steps,
        per_epoch=per_epoch,
        optimizer=optimizer,
        calibration=calibration,
        loss=task.loss,
        seed=recipe.seed,
        repaired=repaired,
    )


def carry_out(
    run: Run,
    phases: Iterable[Phase],
    data: DataSet,
    recipe: Recipe,
    *,
    task: Task = CLASSIFICATION,
    teacher: nn.Module | None = None,
    yield_point: YieldPoint | None = None,
    keep: Keep | None = None,
    snapshot: Snapshot | None = None,
    crew: Crew | None = None,
) -> Iterator[EpochReport]:
    """Goes through a procedure's phases on the data; `run.model` is the network in the end. As `train` else.

    snapshot: to go on from. crew: processes that share the work of each step; None = this one does it alone. Raises
    SnapshotError for a snapshot of another run.
    """
    if recipe.distill > 0 and teacher is None:
        raise PrunefrontError(f"distill = {recipe.distill} needs a teacher; give one, or set distill = 0")
    frozen = None
    if teacher is not None and needs_teacher(task, recipe):
        frozen = laid_out(_frozen_copy(teacher), _memory_format(recipe))
    device = next(run.model.parameters()).device
    if crew is not None:
        crew.begin(recipe, frozen)

    def backward(model: nn.Module, batch: Batch, step: int) -> float:
        work = work_of(batch, recipe, run.per_epoch + step)
        return _backward(model, frozen, work, recipe, task) if crew is None else crew.backward(model, work)

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
        reports = fit(
            run,
            iter(phases),
            _stream(run.model, data, recipe, device, generator),
            backward,
            learning_rate=recipe.learning_rate,
            schedule=lambda done: schedule(done, recipe.warmup, recipe.schedule),
            around=yield_point or nullcontext,
            keep=None if keep is None else taken,
            snapshot=snapshot,
        )
        if recipe.ema is None:
            yield from reports
        else:
            yield from _with_statistics(run, reports, recipe, yield_point or nullcontext)
    finally:
        run.model.eval()
        laid_out(run.model, torch.contiguous_format)


def _with_statistics(
    run: Run, reports: Iterator[EpochReport], recipe: Recipe, around: YieldPoint
) -> Iterator[EpochReport]:
    """Passes the reports on; meanwhile the norms have the running statistics of the averaged weights.

    They are put back where training goes on. Raises PrunefrontError without calibration batches, where there are norms.
    """
    device = next(run.model.parameters()).device.type
    for report in reports:
        before = {name: buffer.clone() for name, buffer in run.model.named_buffers()}
        with around(), torch.autocast(device, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            recalibrate(run.model, run.calibration)
        yield report
        if run.steps_left:
            for name, buffer in run.model.named_buffers():
                buffer.copy_(before[name])


def _stream(
    model: nn.Module, data: DataSet, recipe: Recipe, device: torch.device, generator: np.random.Generator
) -> Iterator[Batch]:
    """Training batches without end, every image once in each pass; between passes the generator is all that counts.

    model: says at which place each input goes. Raises TaskError where a pass gives no batch.
    """
    part = data.part("train")
    while True:
        empty = True
        for batch in part.batches(recipe.batch_size, rng=generator, device=device, smallest=2):
            empty = False
            yield positional(model, laid_out_inputs(batch.inputs, recipe.channels_last)), batch.targets
        if empty:
            raise TaskError("the training data gave no batch")


def sample_count(data: DataSet) -> int:
    """Returns the number of training samples. Raises TaskError where the data do not say."""
    count = data.part("train").count
    if not count:
        raise TaskError(
            "the training data do not say how many samples a pass has, and epochs are counted in them"
        )
    return count


def needs_teacher(task: Task, recipe: Recipe) -> bool:
    """Tells whether training asks for the dense network's outputs."""
    return recipe.distill > 0 or not task.labels


def laid_out(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Returns the model, its tensors in a memory format."""
    return model.to(memory_format=memory_format)  # type: ignore[call-overload, no-any-return]  # not in torch's stubs


def _memory_format(recipe: Recipe) -> torch.memory_format:
    return torch.channels_last if recipe.channels_last else torch.contiguous_format


def schedule(done: float, warmup: float, kind: Schedule = "cosine") -> float:
    """Factor of the learning rate when `done` (0–1) of all steps are taken: linear rise, then half a cosine, say."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    if kind == "constant":
        return 1.0
    if kind == "linear":
        return 1.0 - (done - warmup) / (1.0 - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / (1.0 - warmup)))


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
    data: DataSet,
    *,
    task: Task = CLASSIFICATION,
    batch_size: int = 128,
    teacher: nn.Module | None = None,
    rounds: int = 3,
    yield_point: YieldPoint | None = None,
) -> PrecisionChoice:
    """Whichever of float32 and bfloat16 with channels_last trains faster here, by alternating steps on copies.

    The first step of each warms up and does not count, but where nothing else was timed. bfloat16 must win by 5 %, and
    is given up early where it is `HOPELESS`, as on processors that emulate it. The model is left alone.
    """
    pause = yield_point or nullcontext
    settings: tuple[tuple[Precision, bool], ...] = (("float32", False), ("bfloat16", True))
    runs = [_stepper(model, teacher, data, task, batch_size, *setting) for setting in settings]
    seconds: list[list[float]] = [[] for _ in settings]
    for round_ in range(rounds + 1):
        for step, times in zip(runs, seconds, strict=True):
            if round_ and min(times) > HOPELESS[round_ > 1] * min(seconds[0]):
                continue
            with pause():
                started = time.perf_counter()
                step()
                times.append(time.perf_counter() - started)
    count = min(batch_size, sample_count(data))
    speeds = tuple(
        Speed(*s, count / median(times[1:] or times)) for s, times in zip(settings, seconds, strict=True)
    )
    plain, short = speeds
    best = short if short.images_per_second >= GAIN_NEEDED * plain.images_per_second else plain
    return PrecisionChoice(best.precision, best.channels_last, speeds)


def _stepper(
    model: nn.Module,
    teacher: nn.Module | None,
    data: DataSet,
    task: Task,
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
    optimizer = _optimizer(student, recipe)
    device = next(student.parameters()).device
    first = next(iter(data.part("train").batches(batch_size, device=device)))
    batch = positional(student, laid_out_inputs(first.inputs, channels_last)), first.targets
    return lambda: _step(student, frozen, optimizer, batch, recipe, task)


def _step(
    model: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    recipe: Recipe,
    task: Task,
) -> None:
    optimizer.zero_grad()
    _backward(model, teacher, work_of(batch, recipe, 0), recipe, task)
    optimizer.step()


def _backward(model: nn.Module, teacher: nn.Module | None, work: Work, recipe: Recipe, task: Task) -> float:
    """Forward and, where the loss is finite, backward; the loss. Raises TaskError for a loss that is no scalar."""
    loss = loss_of(model, teacher, work, recipe, task)
    value = loss.item()
    if math.isfinite(value):
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return value


def loss_of(model: nn.Module, teacher: nn.Module | None, work: Work, recipe: Recipe, task: Task) -> Tensor:
    """Returns the loss of a step's work, a scalar to go backward from. Raises TaskError for a loss that is none."""
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")
    # dropout draws from torch's global generator: seeded for the step, and put back
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((recipe.seed << 32) + (work.rank << 26) + work.number)
        with autocast:
            outputs = _floats(work.inputs.call(model))
            with torch.no_grad():
                soft = None if teacher is None else _floats(work.inputs.call(teacher))
    return _loss(task, recipe, outputs, soft, work)


def work_of(batch: Batch, recipe: Recipe, number: int) -> Work:
    """Returns the work of a step, its samples mixed where the recipe says so. number: the step's."""
    inputs = Inputs(batch[0] if isinstance(batch[0], tuple) else (batch[0],))
    return _mixed(inputs, batch[1], recipe, number) if recipe.mixup else Work(inputs, batch[1], number)


def _mixed(inputs: Inputs, targets: Any, recipe: Recipe, number: int) -> Work:
    """Returns the batch of a step mixed as Zhang et al. 2018 (1710.09412) do. Raises TaskError for integer inputs."""
    tensors = inputs.tensors()
    if not all(t.is_floating_point() for t in tensors):
        raise TaskError(
            "training.mixup mixes inputs, and some of this network's are whole numbers; set mixup = 0"
        )
    rng = np.random.default_rng([recipe.seed, 4, number])
    share = float(rng.beta(recipe.mixup, recipe.mixup))
    order = torch.from_numpy(rng.permutation(len(tensors[0]))).to(tensors[0].device)
    others = map_tensors(lambda t: t[order], targets)
    mixed = inputs.map(lambda t: share * t + (1.0 - share) * t[order])
    return Work(mixed, targets, number, others, share)


def _loss(task: Task, recipe: Recipe, outputs: object, soft: object, work: Work) -> Tensor:
    """(1 - share)·loss + share·loss against the dense network's soft outputs, where the task has both."""
    if not task.labels:
        return scalar(task, task.loss(outputs, soft))
    own = targets_of(task, work.targets, None, lambda model: None)
    if recipe.label_smoothing == 0 and not recipe.mixup:
        hard = scalar(task, task.loss(outputs, own))
    else:
        hard = scalar(task, task.smoothed_loss(outputs, own, recipe.label_smoothing))
        if recipe.mixup:
            other = scalar(task, task.smoothed_loss(outputs, work.others, recipe.label_smoothing))
            hard = work.share * hard + (1.0 - work.share) * other
    share = recipe.distill
    if soft is None or share == 0:
        return hard
    distilled = task.distil(outputs, soft, recipe.temperature)
    return hard if distilled is None else (1.0 - share) * hard + share * scalar(task, distilled)


def scalar(task: Task, loss: object) -> Tensor:
    """Returns a task's loss. Raises TaskError for one that is no scalar tensor."""
    if not isinstance(loss, Tensor) or loss.ndim:
        shape = f"in shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"as a {type(loss).__name__}"
        raise TaskError(
            f"the loss of {type(task).__name__} came {shape}; it must be a scalar tensor, the mean"
        )
    return loss


def _floats(outputs: object) -> object:
    return map_tensors(lambda t: t.float() if t.is_floating_point() else t, outputs)


def _frozen_copy(teacher: nn.Module) -> nn.Module:
    return copy.deepcopy(teacher).eval().requires_grad_(False)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    made: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        made = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    else:
        made = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=MOMENTUM, nesterov=True)
    if (limit := recipe.clip_norm) is not None:

        def clip(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            nn.utils.clip_grad_norm_(trained, limit)

        made.register_step_pre_hook(clip)
    if recipe.ema is not None:
        keep_average(made, recipe.ema)
    return made


def _steps(images: int, batch_size: int) -> int:
    full, rest = divmod(images, batch_size)
    return max(1, full + (rest >= 2))  # a single last image joins the batch before it
