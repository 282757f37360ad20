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
from prunefront.pipelines.loops.loop import Budget, Loop, LoopError, TrainingStopped
from prunefront.pipelines.tasks import Task

log = logging.getLogger(__name__)

STOP_SECONDS = 60.0
"""Most seconds that a stopped loop may take to end before it is left behind."""

Metrics = Mapping[str, float]


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
) -> Generator[int, Metrics, None]:
    """Yields the number of each epoch that the loop has done, and is sent the metrics that the loop is answered with.

    Closing it stops the loop. name: as in the study file, for errors. around: entered while the loop trains. Global
    generators are seeded for the loop and put back while it waits. Raises what the loop raises, and LoopError for one
    that never calls back, calls back out of order or more often than the budget says, changes the network's shapes, or
    leaves every weight as it was.
    """
    parameters = list(model.parameters())
    device, flags = parameters[0].device, [p.requires_grad for p in parameters]
    shapes, values = _shapes(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    frozen = copy.deepcopy(teacher).eval().requires_grad_(False)
    answers: SimpleQueue[Metrics | None] = SimpleQueue()
    told: SimpleQueue[int | _Ended] = SimpleQueue()
    threads, draws, stopped = torch.get_num_threads(), _Draws(budget.seed), False

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
            loop(model, task, data=data, teacher=frozen, budget=budget, on_epoch=on_epoch, device=device)
        except TrainingStopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the epochs are taken
            ended = _Ended(error)
        told.put(ended)

    thread = Thread(target=work, name=f"loop {name}", daemon=True)
    done = 0
    try:
        with around(), draws.in_place():
            thread.start()
            what = told.get()
        while not isinstance(what, _Ended):
            if what != done + 1:
                raise LoopError(
                    f"training.loop = {name!r} called on_epoch({what!r}) after {done} epochs; it must count from 1, "
                    "one call an epoch"
                )
            if what > budget.epochs:
                raise LoopError(
                    f"training.loop = {name!r} called on_epoch more often than the budget's {budget.epochs} epochs"
                )
            done += 1
            _check_shapes(name, shapes, model)
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


class _Draws:
    """State of the global generators as the loop has them, beside that of everything else in the process."""

    def __init__(self, seed: int) -> None:
        outside = _state()
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - for loops that draw from it
        torch.manual_seed(seed)
        self._inside = _state()
        _put(outside)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Gives the process the loop's generators until it is left."""
        outside = _state()
        _put(self._inside)
        try:
            yield
        finally:
            self._inside = _state()
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
