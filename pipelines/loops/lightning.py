"""The loop of a network that trains itself as a LightningModule does. Lightning itself is not needed."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunefront.pipelines.data.samples import Batch, DataSet
from prunefront.pipelines.loops.checkpoint import Checkpoint
from prunefront.pipelines.loops.loop import Budget, LoopError, OnEpoch, loop
from prunefront.pipelines.tasks import Task

LIGHTNING = ("lightning", "pytorch_lightning")
"""Names under which Lightning is imported."""

LOGGING = ("log", "log_dict")
"""Methods of a LightningModule that need a Trainer's loggers. What is logged is let go."""


@loop("lightning")
def lightning(
    model: nn.Module,
    task: Task,
    *,
    data: DataSet,
    teacher: nn.Module,
    budget: Budget,
    on_epoch: OnEpoch,
    device: torch.device,
    checkpoint: Checkpoint,
) -> None:
    """A network with `training_step(batch, batch_idx)` and `configure_optimizers()`, such as a LightningModule.

    A batch is (input, targets), with a tuple or a dict as input where the network takes several. The network's own loss
    and optimiser count, with their learning rate. Its hooks of training are called, those of validation are not, and
    what it logs is let go.
    """
    module: Any = model
    for name in ("training_step", "configure_optimizers"):
        if not callable(getattr(module, name, None)):
            raise LoopError(
                f"training.loop = 'lightning' needs a network with {name}(), which {type(model).__name__} does not have"
            )
    if not getattr(module, "automatic_optimization", True):
        raise LoopError(
            f"{type(model).__name__} optimises by hand (automatic_optimization = False), which loop 'lightning' cannot "
            "follow; write it as a loop of your own (docs/tasks.md)"
        )
    trainer = _Trainer(budget)
    with _attached(module, trainer):
        call = _hooks(module)
        optimizer, schedulers = _configured(module.configure_optimizers())
        rng, first = np.random.default_rng(budget.seed), 1
        if (state := checkpoint.load()) is not None:
            first, trainer.global_step, rng.bit_generator.state = (
                state["epoch"] + 1,
                state["step"],
                state["rng"],
            )
            optimizer.load_state_dict(state["optimizer"])
            for one, held in zip(schedulers, state["schedulers"], strict=True):
                one["scheduler"].load_state_dict(held)
        call("on_fit_start")
        call("on_train_start")
        for epoch in range(first, budget.epochs + 1):
            trainer.current_epoch = epoch - 1
            model.train()
            call("on_train_epoch_start")
            for index, batch in enumerate(
                data.part("train").batches(budget.batch_size, rng=rng, device=device, smallest=2)
            ):
                given = _pair(batch)
                if (
                    call("on_train_batch_start", given, index) == -1
                ):  # Lightning's word for the end of the epoch
                    break
                found = _step(module, call, optimizer, given, index, trainer)
                _advance(module, schedulers, "step", trainer.global_step)
                call("on_train_batch_end", found, given, index)
            call("on_train_epoch_end")
            _advance(module, schedulers, "epoch", epoch)
            checkpoint.save(
                {
                    "epoch": epoch,
                    "step": trainer.global_step,
                    "rng": rng.bit_generator.state,
                    "optimizer": optimizer.state_dict(),
                    "schedulers": [one["scheduler"].state_dict() for one in schedulers],
                }
            )
            on_epoch(epoch)
        call("on_train_end")
        call("on_fit_end")


def _step(
    module: Any,
    call: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    batch: Any,
    index: int,
    trainer: "_Trainer",
) -> Any:
    """Takes a step as Lightning does: the optimiser, or the network's own `optimizer_step`, calls the passes."""
    outputs: list[Any] = []
    alone = len(inspect.signature(module.training_step).parameters) == 1

    def passes() -> Tensor | None:
        found = module.training_step(batch) if alone else module.training_step(batch, index)
        outputs.append(found)
        loss = found["loss"] if isinstance(found, Mapping) else found
        if loss is not None and (not isinstance(loss, Tensor) or loss.ndim):
            shape = (
                f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"as a {type(loss).__name__}"
            )
            raise LoopError(
                f"training_step of {type(module).__name__} returned its loss {shape}; return a scalar"
            )
        call("on_before_zero_grad", optimizer)
        if hasattr(module, "optimizer_zero_grad"):
            module.optimizer_zero_grad(trainer.current_epoch, index, optimizer)
        else:
            optimizer.zero_grad()
        if loss is not None:  # else it skips this batch: nothing has a gradient, so nothing is updated
            call("on_before_backward", loss)
            if hasattr(module, "backward"):
                module.backward(loss)
            else:
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            call("on_after_backward")
        call("on_before_optimizer_step", optimizer)
        clip = getattr(type(module), "configure_gradient_clipping", None)
        if (
            clip is not None and clip.__module__.partition(".")[0] not in LIGHTNING
        ):  # its own asks the Trainer
            module.configure_gradient_clipping(optimizer)
        return loss

    if hasattr(module, "optimizer_step"):
        module.optimizer_step(trainer.current_epoch, index, optimizer, passes)
    else:
        optimizer.step(passes)  # type: ignore[arg-type]  # a batch that is skipped has no loss
    trainer.global_step += 1
    return outputs[-1] if outputs else None


class _Trainer:
    """Stand-in for `self.trainer`: the part that networks read while they train."""

    def __init__(self, budget: Budget) -> None:
        self.current_epoch, self.global_step = 0, 0
        self.max_epochs, self.max_steps = budget.epochs, -1
        full, rest = divmod(budget.samples, budget.batch_size)
        self.num_training_batches = max(1, full + (rest >= 2))
        self.estimated_stepping_batches = budget.epochs * self.num_training_batches
        self.accumulate_grad_batches = 1
        self.training, self.sanity_checking, self.is_global_zero = True, False, True
        self.world_size, self.num_devices, self.global_rank, self.local_rank = 1, 1, 0, 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _NotThere(
            f"the network asks for self.trainer.{name}, which loop 'lightning' does not have; it has: "
            f"{', '.join(sorted(vars(self)))}"
        )


class _NotThere(LoopError, AttributeError):
    """A part of Lightning's Trainer that there is not."""


@contextmanager
def _attached(module: Any, trainer: _Trainer) -> Iterator[None]:
    """Gives a LightningModule its trainer, and lets go of what it logs, until it is left."""
    if not hasattr(type(module), "trainer"):  # no LightningModule
        yield
        return
    before = module._trainer
    module._trainer = trainer
    for name in LOGGING:
        setattr(module, name, _let_go)
    try:
        yield
    finally:
        module._trainer = before
        for name in LOGGING:
            delattr(module, name)


def _let_go(*args: Any, **kwargs: Any) -> None:
    """Stands in for `log`."""


def _hooks(module: Any) -> Callable[..., Any]:
    """Returns what calls a hook of the network, where it has it."""

    def call(name: str, *arguments: Any) -> Any:
        hook = getattr(module, name, None)
        return None if hook is None else hook(*arguments)

    return call


def _pair(batch: Batch) -> tuple[Any, Any]:
    args, kwargs = batch.inputs.args, dict(batch.inputs.kwargs)
    if kwargs and args:
        raise LoopError("loop 'lightning' takes inputs by place or by keyword, and these data have both")
    return kwargs or (args[0] if len(args) == 1 else args), batch.targets


def _configured(found: Any) -> tuple[torch.optim.Optimizer, list[Mapping[str, Any]]]:
    """Returns the optimiser and its schedulers, out of the forms that Lightning documents. Raises LoopError."""
    optimizers, schedulers = found, []
    if isinstance(found, Mapping):
        optimizers, schedulers = (
            found.get("optimizer"),
            [found["lr_scheduler"]] if "lr_scheduler" in found else [],
        )
    elif isinstance(found, Sequence) and len(found) == 2 and isinstance(found[0], Sequence):
        optimizers, schedulers = found[0], list(found[1])
    if isinstance(optimizers, Sequence) and len(optimizers) == 1:
        optimizers = optimizers[0]
    if not isinstance(optimizers, torch.optim.Optimizer):
        several = isinstance(optimizers, Sequence) and optimizers
        what = f"{len(optimizers)} optimisers" if several else type(found).__name__
        raise LoopError(
            f"configure_optimizers returned {what}, out of which loop 'lightning' cannot take one "
            "optimiser; return an optimiser, ([optimiser], [scheduler]) or {'optimizer': …, 'lr_scheduler': …}"
        )
    named = [s if isinstance(s, Mapping) else {"scheduler": s} for s in schedulers]
    for one in named:
        if isinstance(one["scheduler"], torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise LoopError("loop 'lightning' has no metric for ReduceLROnPlateau; choose another scheduler")
    return optimizers, named


def _advance(module: Any, schedulers: Sequence[Mapping[str, Any]], interval: str, number: int) -> None:
    for one in schedulers:
        if one.get("interval", "epoch") == interval and number % one.get("frequency", 1) == 0:
            if hasattr(module, "lr_scheduler_step"):
                module.lr_scheduler_step(one["scheduler"], None)
            else:
                one["scheduler"].step()
