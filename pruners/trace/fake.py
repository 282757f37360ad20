"""Runs of a network on tensors without values: sizes and calls show in milliseconds, whatever the input."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree

from prunefront.pruners.cut import surgery
from prunefront.pruners.graph.channel_graph import SizeAttribute
from prunefront.pruners.trace.held import Held, Record, own_chance, tensors_of
from prunefront.pruners.units.eval_mode import train_but_norms

Shape = tuple[int, ...]
Calls = Sequence[tuple[str, bool]]
"""Path of every called module, and whether its output has the shape of its first input."""


@dataclass(frozen=True, slots=True)
class FakeRun:
    """Observations of one run. outputs: shapes of the tensors."""

    outputs: tuple[Shape, ...]
    calls: Calls
    record: Record
    replayed: tuple[str, ...]
    training: bool


class FakeNetwork:
    """A model whose tensors have shapes and no values. The model itself is not touched."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.mode = model, FakeTensorMode(allow_non_fake_inputs=True)

    def run(
        self,
        example: Any,
        sizes: Mapping[str, Shape] | None = None,
        going: surgery.RemovedPositions | None = None,
        *,
        earlier: Record | None = None,
        training: bool = False,
        attributes: Sequence[SizeAttribute] = (),
    ) -> FakeRun:
        """Runs the network, cut to `sizes` where `going` says which positions are gone.

        attributes: numbers in modules that are set. earlier: record of a run whose statistics are replayed. Raises whatever the network's forward raises.
        """
        sizes = sizes or {}
        network = surgery.rebuilt(
            self.model, going or {}, lambda name, tensor: self._fake(tensor, sizes.get(name, tensor.shape))
        )
        surgery.set_attributes(network, attributes)
        network.eval()
        if training:
            train_but_norms(network)
        inputs = _pytree.tree_map_only(Tensor, lambda t: self._fake(t, t.shape), example)
        held = Held(earlier)
        watched = watch_calls(network) if earlier is None else nullcontext([])
        with watched as calls, _quiet(), self.mode, own_chance(), torch.no_grad(), held:
            outputs = tensors_of(network(*inputs))
        shapes = tuple(tuple(map(int, t.shape)) for t in outputs)
        return FakeRun(shapes, tuple(calls), held.record, tuple(held.replayed), training)

    def _fake(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        with self.mode:
            return torch.empty(tuple(shape), dtype=tensor.dtype, device=tensor.device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses what torch logs about sizes that do not fit: they are an answer here."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def watch_calls(network: nn.Module) -> Iterator[list[tuple[str, bool]]]:
    """Notes the modules that are called meanwhile, and whether each gives the shape of its first input."""
    calls: list[tuple[str, bool]] = []

    def note(path: str, args: tuple[Any, ...], output: Any) -> None:
        same = bool(args) and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        calls.append((path, same and args[0].shape == output.shape))

    hooks = [
        module.register_forward_hook(lambda _, args, output, path=path: note(path, args, output))
        for path, module in network.named_modules()
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Runs of the dense network without values.

    example: what they ran on, and what numbers can be tried on too: a small part of the whole where `small`. evaluating,
    training: the runs in the two modes; None for training if forward fails there.
    """

    network: FakeNetwork
    example: tuple[Any, ...]
    small: bool
    evaluating: FakeRun
    training: FakeRun | None

    @property
    def trains_alike(self) -> bool:
        """Says whether training mode calls the same modules and operators as eval mode, dropout left out."""
        one, other = self.evaluating, self.training
        if other is None:
            return False
        return (one.calls, one.outputs, one.record.called) == (
            other.calls,
            other.outputs,
            other.record.called,
        )


def rehearse(model: nn.Module, example: tuple[Any, ...], calls: Calls, outputs: int) -> Rehearsal | None:
    """Returns runs of a network without values; None for one whose forward needs values.

    calls, outputs: calls and number of output tensors on the whole example. A small part of it serves if both are the
    same there.
    """
    network, small = FakeNetwork(model), _small_part(example)
    evaluating = None if small is None else _run_or_none(network, small, training=False)
    if evaluating is not None and (evaluating.calls, len(evaluating.outputs)) != (tuple(calls), outputs):
        evaluating = None
    part = example if small is None or evaluating is None else small
    evaluating = evaluating or _run_or_none(network, example, training=False)
    if evaluating is None:
        return None
    training = _run_or_none(network, part, training=True)
    return Rehearsal(network, part, part is small, evaluating, training)


def _run_or_none(network: FakeNetwork, example: tuple[Any, ...], *, training: bool) -> FakeRun | None:
    try:
        return network.run(example, training=training)
    except Exception:  # the user's forward may raise anything on tensors without values  # noqa: BLE001
        return None


SMALL = 64
"""Side of the images on which a network is tried instead of larger ones."""


def _small_part(example: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Returns a smaller part of the example; None if it is small itself.

    Images and volumes are cropped to `SMALL` along every axis whose size is a larger multiple of 32, and no more than
    two samples stay.
    """
    leaves = tensors_of(example)
    batch = leaves[0].shape[0] if leaves and leaves[0].dim() else 0

    def part(value: Tensor) -> Tensor:
        if value.dim() and value.shape[0] == batch > 2:
            value = value[:2]
        for axis in range(2, value.dim() if value.dim() >= 4 else 0):
            if value.shape[axis] > SMALL and value.shape[axis] % 32 == 0:
                value = value.narrow(axis, 0, SMALL)
        return value.clone()

    small: tuple[Any, ...] = _pytree.tree_map_only(Tensor, part, example)
    alike = all(a.shape == b.shape for a, b in zip(leaves, tensors_of(small), strict=True))
    return None if alike else small
