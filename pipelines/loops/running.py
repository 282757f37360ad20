"""A loop that calls back, turned into an iterator of epochs: it runs in a thread, and waits while it is looked at."""

import copy
import logging
import random
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread

import numpy as np
import torch
from torch import Tensor, nn

from prunefront.pipelines.data.samples import DataSet
from prunefront.pipelines.loops.checkpoint import Checkpoint, LoopSnapshot
from prunefront.pipelines.loops.loop import (
    CHECKPOINT,
    Budget,
    Loop,
    LoopError,
    TrainingStopped,
    takes_checkpoint,
)
from prunefront.pipelines.tasks import Task
from prunefront.pruners.procedures.run import SnapshotError
from prunefront.text import first_line

log = logging.getLogger(__name__)

STOP_SECONDS = 60.0
"""Most seconds that a stopped loop may take to end before it is left behind."""

Metrics = Mapping[str, float]

Keep = Callable[[Callable[[], bytes]], None]
"""Given what makes the bytes of a `LoopSnapshot`; that can be called until the loop goes on."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """End of a loop: by an error, or by returning."""

    error: BaseException | None = None


def epochs_of(
    loop: Loop,
    name: str,
    model: nn.Module,
    task: Task,
    *,
    data: DataSet,
    teacher: nn.Module,
    budget: Budget,
    around: Callable[[], AbstractContextManager[object]],
    identity: str = "",
    keep: Keep | None = None,
    snapshot: LoopSnapshot | None = None,
) -> Generator[int, Metrics, None]:
    """Yields the number of each epoch that the loop has done, and is sent the metrics that the loop is answered with.

    Closing it stops the loop. name: as in the study file, for errors. around: entered while the loop trains. Global
    generators are seeded for the loop and put back while it waits. Raises what the loop raises, and LoopError for one
    that never calls back, calls back out of order or more often than the budget says, changes the network's shapes, or
    leaves every weight as it was.

    keep: called after each epoch for which the loop saved its state. identity: of this training, for its snapshots.
    snapshot: to go on from; its epoch is the first that is yielded. Raises SnapshotError for one of another training.
    """
    parameters = list(model.parameters())
    device, flags = parameters[0].device, [p.requires_grad for p in parameters]
    shapes, values = _shapes(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    frozen = copy.deepcopy(teacher).eval().requires_grad_(False)
    answers: SimpleQueue[Metrics | None] = SimpleQueue()
    told: SimpleQueue[int | _Ended] = SimpleQueue()
    threads, draws, stopped = torch.get_num_threads(), _Draws(budget.seed), False
    checkpoint = Checkpoint(None if snapshot is None else snapshot.state)
    given = {CHECKPOINT: checkpoint} if takes_checkpoint(loop) else {}
    if snapshot is not None:
        if snapshot.identity != identity or not given:
            raise SnapshotError(f"the snapshot is of {snapshot.identity}; this is {identity}")
        _restore(model, draws, snapshot)

    def on_epoch(epoch: int) -> Metrics:
        nonlocal stopped
        if not stopped:
            told.put(epoch)
            if (answer := answers.get()) is not None:
                return answer
            stopped = True
        raise TrainingStopped

    def work() -> None:
        torch.set_num_threads(threads)  # it is a thread's own
        ended = _Ended()
        try:
            loop(
                model,
                task,
                data=data,
                teacher=frozen,
                budget=budget,
                on_epoch=on_epoch,
                device=device,
                **given,
            )
        except TrainingStopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the epochs are taken
            ended = _Ended(error)
        told.put(ended)

    thread = Thread(target=work, name=f"loop {name}", daemon=True)
    done = 0 if snapshot is None else snapshot.epoch
    if snapshot is not None:
        model.eval()
        yield done
    try:
        with around(), draws.in_place():
            thread.start()
            what = told.get()
        while not isinstance(what, _Ended):
            if what != done + 1:
                raise LoopError(
                    f"training.loop = {name!r} called on_epoch({what!r}) after {done} epochs; it must count from 1, "
                    "one call an epoch, and go on after the epochs of a checkpoint that it takes"
                )
            if what > budget.epochs:
                raise LoopError(
                    f"training.loop = {name!r} called on_epoch more often than the budget's {budget.epochs} epochs"
                )
            done += 1
            _check_shapes(name, shapes, model)
            if keep is not None and checkpoint.saved is not None:
                state, checkpoint.saved = checkpoint.saved, None
                steps, network = done * -(-budget.samples // budget.batch_size), model.state_dict()
                kept = LoopSnapshot(identity, done, steps, network, draws.inside, state)
                with around():
                    keep(kept.to_bytes)
            answer = yield done
            with around(), draws.in_place():
                answers.put(answer)
                what = told.get()
        if what.error is not None:
            raise what.error
    finally:
        if thread.is_alive():
            answers.put(None)
            thread.join(STOP_SECONDS)
            if thread.is_alive():
                log.warning("training.loop = %r goes on after it was stopped; its work is lost", name)
    if not done:
        raise LoopError(
            f"training.loop = {name!r} never called on_epoch; it must be called after each epoch: on_epoch(1), …"
        )
    _check_shapes(name, shapes, model)
    if all(torch.equal(p, values[n]) for n, p in model.named_parameters()):
        raise LoopError(f"training.loop = {name!r} trained nothing: all weights are as they were")
    model.zero_grad()
    for parameter, flag in zip(model.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    model.eval()


def _shapes(model: nn.Module) -> dict[str, str]:
    def said(tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"

    return {name: said(tensor) for name, tensor in model.state_dict().items()}


def _check_shapes(name: str, before: Mapping[str, str], model: nn.Module) -> None:
    after = _shapes(model)
    for tensor in sorted(before.keys() | after.keys()):
        was, now = before.get(tensor, "not there"), after.get(tensor, "not there")
        if was != now:
            raise LoopError(
                f"training.loop = {name!r} changed the network's shapes: {tensor!r} was {was}, and is {now}"
            )


def _restore(model: nn.Module, draws: "_Draws", snapshot: LoopSnapshot) -> None:
    try:
        model.load_state_dict(snapshot.network)
        draws.inside = snapshot.draws
        with draws.in_place():
            pass
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"the snapshot is of another network: {first_line(error)}") from None


class _Draws:
    """State of the global generators as the loop has them, beside that of everything else in the process."""

    def __init__(self, seed: int) -> None:
        outside = _state()
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - for loops that draw from it
        torch.manual_seed(seed)
        self.inside = _state()
        _put(outside)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Gives the process the loop's generators until it is left."""
        outside = _state()
        _put(self.inside)
        try:
            yield
        finally:
            self.inside = _state()
            _put(outside)


_State = tuple[object, dict[str, object], Tensor, list[Tensor]]


def _state() -> _State:
    begun: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    cuda = torch.cuda.get_rng_state_all() if begun else []
    numbers: dict[str, object] = np.random.get_state(legacy=False)  # noqa: NPY002
    return random.getstate(), numbers, torch.get_rng_state(), cuda


def _put(state: _State) -> None:
    drawn, numbers, cpu, cuda = state
    random.setstate(drawn)  # type: ignore[arg-type]
    np.random.set_state(numbers)  # noqa: NPY002
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
