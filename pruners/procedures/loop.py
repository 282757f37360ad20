"""The one training loop. Procedures differ only in their phases and hooks."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.procedures import Phase
from prunefront.pruners.procedures.averaging import averaged, put_average
from prunefront.pruners.procedures.hook import Hook
from prunefront.pruners.procedures.run import Run, SnapshotError
from prunefront.pruners.procedures.snapshot import Snapshot, Sums, restore_values
from prunefront.pruners.statistics import Batch, images

Backward = Callable[[nn.Module, Batch, int], float]
"""Function that fills the parameters' gradients from a batch and returns its loss; the number is the step's."""


class Diverged(PrunefrontError):
    """The training loss is no longer a finite number."""


@dataclass(frozen=True, slots=True)
class EpochReport:
    """Summary of an epoch. epoch: from 1. loss: mean over its images. images: number seen. seconds: spent in steps."""

    epoch: int
    loss: float
    images: int
    seconds: float


def fit(
    run: Run,
    phases: Iterator[Phase],
    stream: Iterator[Batch],
    backward: Backward,
    *,
    learning_rate: float,
    schedule: Callable[[float], float],
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
    keep: Callable[[Sums], None] | None = None,
    snapshot: Snapshot | None = None,
) -> Iterator[EpochReport]:
    """Goes through the phases, a step for each batch of the stream; yields at the end of each epoch of steps.

    schedule: factor of the learning rate at a share in [0, 1] of the run, where a phase has none of its own. around:
    entered for each step. Between items the network is in eval mode and holds the weights that it computes with. keep:
    called at the end of each epoch, before it is yielded, when a snapshot can be taken.

    snapshot: of a run like this one, to go on from. The phases are gone through again without a step and without
    scores, the stream gives the batches after it, and the first item is its epoch. Raises SnapshotError for a snapshot
    of another run, Diverged at the first loss that is not finite, ValueError for phases that do not spend exactly the
    steps.
    """
    total, seen, seconds = 0.0, 0, 0.0
    if snapshot is not None:
        if snapshot.identity != run.identity or not 0 < snapshot.step <= run.steps:
            raise SnapshotError(
                f"the snapshot is of {snapshot.identity}, after {snapshot.step}; this is {run.identity}"
            )
        run.start_replay(snapshot.cuts)
    with around():
        run.compact_if_cut()
    while True:
        with around():  # a procedure also works between its phases
            phase = next(phases, None)
        if phase is None:
            break
        if phase.steps > run.steps_left:
            raise ValueError(f"a phase of {phase.steps} steps is planned where {run.steps_left} are left")
        taken = min(phase.steps, snapshot.step - run.step) if snapshot is not None else 0
        run.step += taken
        again = snapshot is not None and run.step == snapshot.step
        if snapshot is not None and again:
            with around():
                run.end_replay()
                restore_values(run, snapshot)
            total, seen, seconds = snapshot.sums.loss, snapshot.sums.images, snapshot.sums.seconds
            snapshot = None
        with _training(run, phase):
            if again and run.step < run.steps:
                with effective_weights(run, (*phase.hooks, *run.hooks)):
                    yield EpochReport(run.step // run.per_epoch, total / seen, seen, seconds)
                total, seen, seconds = 0.0, 0, 0.0
            for number in range(taken, phase.steps):
                batch = next(stream)
                with around():
                    started = time.perf_counter()
                    share = number / phase.steps
                    factor = (
                        phase.rate(share)
                        if phase.rate
                        else schedule(share if phase.restart else run.share_done)
                    )
                    for group in run.optimizer.param_groups:
                        group["lr"] = learning_rate * factor
                    loss = step(run, (*phase.hooks, *run.hooks), batch, backward)
                    if not math.isfinite(loss):
                        epoch, place = divmod(run.step, run.per_epoch)
                        raise Diverged(
                            f"the loss is {loss} in epoch {epoch + 1}, step {place + 1} of {run.per_epoch}; "
                            f"a learning rate below {learning_rate:g} may help"
                        )
                    run.step += 1
                    total, seen = total + loss * images(batch), seen + images(batch)
                    seconds += time.perf_counter() - started
                ends = run.step % run.per_epoch == 0 or run.step == run.steps
                if keep is not None and ends and run.replayable:
                    with around():
                        keep(Sums(total, seen, seconds))
                if run.step % run.per_epoch == 0 and run.step < run.steps:
                    with effective_weights(run, (*phase.hooks, *run.hooks)):
                        yield EpochReport(run.step // run.per_epoch, total / seen, seen, seconds)
                    total, seen, seconds = 0.0, 0, 0.0
    if run.steps_left:
        raise ValueError(f"the phases are over with {run.steps_left} of {run.steps} steps left")
    with around():
        put_average(run.optimizer)
        run.finish()
    if run.steps:
        run.model.eval()
        yield EpochReport(-(-run.step // run.per_epoch), total / seen, seen, seconds)


def step(run: Run, hooks: tuple[Hook, ...], batch: Batch, backward: Backward) -> float:
    """Takes one step with its hooks and returns the loss. Nothing is updated when the loss is not finite."""
    for hook in hooks:
        hook.install(run)
    run.optimizer.zero_grad()
    loss = backward(run.model, batch, run.step)
    for hook in reversed(hooks):
        hook.restore(run)
    if math.isfinite(loss):
        answers = [hook.use_gradients(run) for hook in hooks]  # every hook is asked
        if all(answers):
            run.optimizer.step()
        for hook in hooks:
            hook.after_step(run)
    return loss


@contextmanager
def effective_weights(run: Run, hooks: tuple[Hook, ...]) -> Iterator[None]:
    """Puts the network in eval mode, with the (averaged) weights that the forward pass computes with."""
    with averaged(run.optimizer):
        for hook in hooks:
            hook.install(run)
        run.model.eval()
        try:
            yield
        finally:
            run.model.train()
            for hook in reversed(hooks):
                hook.restore(run)


@contextmanager
def _training(run: Run, phase: Phase) -> Iterator[None]:
    """Puts the network in train mode; parameters that the phase leaves alone take no gradient."""
    model = run.model
    flags = {p: p.requires_grad for p in model.parameters()}
    if phase.trains is not None:
        for name, p in model.named_parameters():
            p.requires_grad_(p.requires_grad and phase.trains(name, p))
    model.train()
    try:
        yield
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
        model.eval()
