"""Several processes that train one network, each on its part of every batch (docs/decisions/0016-several-devices.md).

The process that wants the training holds the network, the optimiser and the procedure. The others compute gradients.
"""

import copy
import math
import os
import signal
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import pairwise
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, multiprocessing, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import TaskSection
from prunefront.pipelines.data.samples import Inputs, map_tensors
from prunefront.pipelines.tasks import Task, TaskError, make_task
from prunefront.pipelines.workers.failures import ProcessFailed, ProcessLost, failure
from prunefront.pipelines.workers.train import Recipe, Work, loss_of
from prunefront.search.outcomes.measurement import Failure
from prunefront.text import first_line

LIMIT_SECONDS = 300.0
"""Most seconds that a process waits for the others within a step."""

LAST_WORDS_SECONDS = 2.0
"""Seconds that a process which fails may take to say why."""


class Processes:
    """This process and others of this machine, as the crew of its trainings (`train.Crew`).

    The others start with the first training, and end with `close`, with this process, and after an error.
    """

    def __init__(
        self, task: TaskSection, processes: int, device: str, *, limit: float = LIMIT_SECONDS
    ) -> None:
        """task: which loss is trained. processes: this one included. device: "cuda" gives each a GPU of its own."""
        self._section, self.count, self._device, self._limit = task, processes, device, limit
        self._task = make_task(task)
        self._others: list[tuple[Any, Connection]] = []
        self._sent: tuple[weakref.ref[nn.Module], object] | None = None
        self._recipe: Recipe | None = None
        self._teacher: nn.Module | None = None

    @property
    def pids(self) -> list[int]:
        """Process ids of the others."""
        return [process.pid for process, _ in self._others]

    def begin(self, recipe: Recipe, teacher: nn.Module | None) -> None:
        """Starts the others, where they are not there, and tells them what is trained. See `train.Crew`."""
        if not self._others:
            self._start()
        self._recipe, self._teacher, self._sent = recipe, teacher, None
        self._guarded(lambda: self._tell("begin", recipe, None if teacher is None else _packed(teacher)))

    def backward(self, model: nn.Module, work: Work) -> float:
        """Adds the gradients of the whole batch. See `train.Crew`.

        Raises ProcessLost where another process died or does not answer, and ProcessFailed with its error.
        """
        assert self._recipe is not None, "`begin` comes first"
        recipe, parts = self._recipe, parts_of(work, self.count)
        trained = [p.requires_grad for p in model.parameters()]

        def step() -> float:
            known = _structure(model)
            if self._sent is None or self._sent[0]() is not model or self._sent[1] != known:
                self._tell("network", _packed(model))
                self._sent = weakref.ref(model), known
            for (_, connection), part in zip(self._others, parts[1:], strict=True):
                # memory of its own: a view would take the whole batch along
                connection.send(("work", _mapped(lambda t: t.cpu().clone(), part), trained))
            return _together(model, self._teacher, parts[0], recipe, self._task)

        loss: float = self._guarded(step)
        return loss

    def close(self) -> None:
        """Ends the other processes."""
        for process, connection in self._others:
            connection.close()
            process.kill()
            process.join()
        if self._others and dist.is_initialized():
            dist.destroy_process_group()
        self._others, self._sent = [], None

    def _start(self) -> None:
        if self._device == "cuda" and torch.cuda.device_count() < self.count:
            raise PrunefrontError(
                f"{self.count} processes of a training need a GPU each, and torch sees {torch.cuda.device_count()} "
                "here; lower [cluster] gpus_per_worker"
            )
        if dist.is_initialized():
            raise PrunefrontError(
                "torch.distributed is in use in this process already; search without it, or set [cluster] "
                "processes_per_worker = 1"
            )
        context = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory(prefix="prunefront-crew-") as meeting:
            place = str(Path(meeting) / "store")  # of this user alone, unlike a port
            for rank in range(1, self.count):
                ours, theirs = context.Pipe()
                settings = (rank, self.count, self._device, place, self._limit, torch.get_num_threads())
                process = context.Process(target=_serve, args=(theirs, self._section, settings), daemon=True)
                process.start()
                theirs.close()
                self._others.append((process, ours))
            self._guarded(self._ready)
            self._guarded(lambda: _join(0, self.count, self._device, place, self._limit))

    def _ready(self) -> None:
        """Waits until the others have imported what they need, which takes as long as the machine is busy."""
        for _, connection in self._others:
            if isinstance(said := connection.recv(), Failure):
                raise ProcessFailed(said)

    def _tell(self, *message: Any) -> None:
        for _, connection in self._others:
            connection.send(message)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """Calls; whatever goes wrong ends the other processes, which may be anywhere in the step."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - raised again, once the others are gone
            try:
                self._explain(error)
            finally:
                self.close()
        except BaseException:
            self.close()
            raise

    def _explain(self, error: Exception) -> NoReturn:
        """Raises what was behind an error: that of another process, or its death."""
        if not isinstance(error, ProcessLost | OSError | EOFError):
            raise error
        gone = None
        for process, connection in self._others:
            try:
                if connection.poll(LAST_WORDS_SECONDS):
                    raise ProcessFailed(connection.recv()) from error
            except (EOFError, OSError):
                process.join(LAST_WORDS_SECONDS)
                gone = gone or process
        if gone is not None:
            how = _how(gone.exitcode)
            raise ProcessLost(f"a process of this training ended {how}: {first_line(error)}") from error
        raise ProcessLost(f"the processes of this training lost each other: {first_line(error)}") from error


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"by {signal.Signals(-code).name}"
    return f"with code {code}"


def parts_of(work: Work, processes: int) -> list[Work]:
    """Returns each process's part of a step: neighbouring samples, as many as the others have, or one more.

    Each gets the whole of a batch with less than two samples a process. Raises TaskError for a batch that cannot be
    divided by its first axis.
    """
    count = next((len(t) for t in work.inputs.tensors() if t.ndim), 0)
    copies = processes if count < 2 * processes else 1
    places = [count * rank // processes for rank in range(processes + 1)]
    bounds = [(0, count)] * processes if copies > 1 else list(pairwise(places))
    return [
        Work(
            Inputs(
                _rows(work.inputs.args, start, stop, count),
                _rows(dict(work.inputs.kwargs), start, stop, count),
            ),
            _target_rows(work.targets, start, stop, count),
            work.number,
            _target_rows(work.others, start, stop, count),
            work.share,
            (stop - start) / (count * copies) if count else 1 / copies,
            rank,
            copies,
        )
        for rank, (start, stop) in enumerate(bounds)
    ]


def _rows(value: Any, start: int, stop: int, count: int) -> Any:
    def taken(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return leaf
        if len(leaf) != count:
            raise TaskError(
                f"a batch of {count} samples holds a tensor of shape {tuple(leaf.shape)}, which cannot be shared "
                "by several processes; its first axis must count samples, or set [cluster] processes_per_worker = 1"
            )
        return leaf[start:stop]

    return _pytree.tree_map(taken, value)


def _target_rows(value: Any, start: int, stop: int, count: int) -> Any:
    """Targets may be a list with an entry a sample."""
    if isinstance(value, list) and len(value) == count:
        return value[start:stop]
    return _rows(value, start, stop, count)


def _packed(model: nn.Module) -> nn.Module:
    """Returns a copy on the CPU, which travels by the pipe as tensors of batches do."""
    return copy.deepcopy(model).cpu()


def _structure(model: nn.Module) -> object:
    """Returns a description that changes when the others need the network anew, beside its values."""
    held = (*model.named_parameters(), *model.named_buffers())
    return (
        [(name, tensor.shape, tensor.dtype) for name, tensor in held],
        [(type(module), module.training) for module in model.modules()],
    )


# what every process does


def _serve(
    connection: Connection, section: TaskSection, settings: tuple[int, int, str, str, float, int]
) -> None:
    """Computes parts of steps until the process that asked for them is gone."""
    rank, processes, kind, place, limit, threads = settings
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal's Ctrl-C is for the process that the study runs in
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
        task = make_task(section)
        connection.send("ready")
        _join(rank, processes, kind, place, limit)
        recipe: Recipe | None = None
        model: nn.Module | None = None
        teacher: nn.Module | None = None
        while True:
            what, *given = connection.recv()
            if what == "begin":
                recipe = given[0]
                teacher = None if given[1] is None else given[1].to(device)
            elif what == "network":
                model = given[0].to(device)
            else:
                assert model is not None
                assert recipe is not None
                work, trained = given
                for parameter, flag in zip(model.parameters(), trained, strict=True):
                    parameter.requires_grad_(flag)
                    parameter.grad = None
                _together(model, teacher, _mapped(partial(_on, device), work), recipe, task)
    except EOFError:
        return
    except ProcessLost:
        sys.exit(1)  # another one knows why
    except BaseException as error:
        connection.send(failure(error))
        raise


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # the main thread may wait for a process that is gone


def _join(rank: int, processes: int, kind: str, place: str, limit: float) -> None:
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # or it would look the host's name up
    if kind == "cuda":
        torch.cuda.set_device(rank)
    with _lost():
        dist.init_process_group(
            "nccl" if kind == "cuda" else "gloo",
            store=dist.FileStore(place, processes),  # type: ignore[attr-defined]  # not in its __all__
            rank=rank,
            world_size=processes,
            timeout=timedelta(seconds=limit),
        )
        dist.barrier()


def _together(model: nn.Module, teacher: nn.Module | None, work: Work, recipe: Recipe, task: Task) -> float:
    """Takes part in a step; the first process has the gradients of all in the end. Returns the loss of all."""
    _hand_out_values(model)
    with GlobalStatistics(work.copies):
        loss = work.weight * loss_of(model, teacher, work, recipe, task)
        value = float(_summed(loss.detach().double() if loss.device.type == "cpu" else loss.detach().float()))
        if math.isfinite(value):
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    if math.isfinite(value):
        _gather_gradients(model)
    return value


@torch.no_grad()
def _hand_out_values(model: nn.Module) -> None:
    """Gives every process the first one's parameters and buffers: one message of bytes, widest numbers first."""
    held = sorted((*model.parameters(), *model.buffers()), key=lambda t: -t.element_size())
    if not held:
        return
    flat = torch.cat([t.detach().contiguous().reshape(-1).view(torch.uint8) for t in held])
    with _lost():
        dist.broadcast(flat, 0)
    if dist.get_rank():
        sizes = [t.numel() * t.element_size() for t in held]
        for tensor, part in zip(held, torch.split(flat, sizes), strict=True):
            tensor.copy_(part.view(tensor.dtype).view(tensor.shape))


@torch.no_grad()
def _gather_gradients(model: nn.Module) -> None:
    """Adds the gradients up in the first process. A parameter that no process used keeps none."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        return
    used = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat = torch.cat([*(g.reshape(-1).float() for g in grads), used])
    with _lost():
        dist.reduce(flat, 0)
    if dist.get_rank() == 0:
        *sums, used = torch.split(flat, [*(p.numel() for p in trained), len(trained)])
        for parameter, total, count in zip(trained, sums, used.tolist(), strict=True):
            if count:
                grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = grad.copy_(total.view(parameter.shape))


def _summed(tensor: Tensor) -> Tensor:
    with _lost():
        dist.all_reduce(tensor)
    return tensor


@contextmanager
def _lost() -> Iterator[None]:
    """Says that the others are lost where a collective fails."""
    try:
        yield
    except RuntimeError as error:  # torch has no narrower one for gloo
        raise ProcessLost(first_line(error)) from error


def _on(device: torch.device, tensor: Tensor) -> Tensor:
    return tensor.to(device)


def _mapped(function: Callable[[Tensor], Tensor], work: Work) -> Work:
    """Returns the work with a function applied to each of its tensors."""
    return replace(
        work,
        inputs=work.inputs.map(function),
        targets=map_tensors(function, work.targets),
        others=map_tensors(function, work.others),
    )


class GlobalStatistics(TorchFunctionMode):
    """Lets batch norms train on the statistics of the whole batch, whatever module calls `F.batch_norm`.

    torch's own SyncBatchNorm does that on GPUs alone, and would be another module in the place of the network's.
    """

    def __init__(self, copies: int) -> None:
        """copies: number of processes that see each sample."""
        super().__init__()
        self._copies = copies

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm and (kwargs or {}).get("training"):
            return _batch_norm(self._copies, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Sum(torch.autograd.Function):
    """Sum over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0].clone())


def _batch_norm(
    copies: int,
    given: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm in training mode (Ioffe and Szegedy 2015) over all processes' samples. given: (b, channels, …)."""
    x, channels = given.float(), given.shape[1]
    others = [0, *range(2, x.ndim)]
    shape = [1, channels] + [1] * (x.ndim - 2)
    here = x.new_tensor([x.numel() / channels])
    sums = _Sum.apply(torch.cat([x.sum(others), here]))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = x - mean.view(shape)
    variance = _Sum.apply((centred * centred).sum(others)) / count  # type: ignore[no-untyped-call]
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = variance * count / (count - copies)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    y: Tensor = centred * torch.rsqrt(variance + eps).view(shape)
    if weight is not None:
        y = y * weight.view(shape)
    if bias is not None:
        y = y + bias.view(shape)
    return y.to(given.dtype)
