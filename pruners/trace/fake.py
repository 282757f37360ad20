"""Runs of a network on tensors without values: sizes and calls show in milliseconds, whatever the input."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree

from prunefront.pruners.cut import surgery
from prunefront.pruners.trace.held import Held, Record, own_chance, tensors_of
from prunefront.pruners.units.eval_mode import train_but_norms
from prunefront.text import first_line

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FakeRun:
    """What a run shows. outputs: shapes of the tensors.

    calls: path of every called module, and whether its output has the shape of its first input.
    """

    outputs: tuple[Shape, ...]
    calls: tuple[tuple[str, bool], ...]
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
    ) -> FakeRun:
        """Runs the network, cut to `sizes` where `going` says which positions are gone.

        earlier: record of a run whose statistics are replayed. Raises whatever the network's forward raises.
        """
        sizes = sizes or {}
        network = surgery.rebuilt(
            self.model, going or {}, lambda name, tensor: self._fake(tensor, sizes.get(name, tensor.shape))
        )
        network.eval()
        if training:
            train_but_norms(network)
        calls: list[tuple[str, bool]] = []
        if earlier is None:
            _watch_calls(network, calls)
        inputs = _pytree.tree_map_only(Tensor, lambda t: self._fake(t, t.shape), example)
        held = Held(earlier)
        with _quiet(), self.mode, own_chance(), torch.no_grad(), held:
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


def _watch_calls(network: nn.Module, calls: list[tuple[str, bool]]) -> None:
    def note(path: str, args: tuple[Any, ...], output: Any) -> None:
        same = bool(args) and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        calls.append((path, same and args[0].shape == output.shape))

    for path, module in network.named_modules():
        module.register_forward_hook(lambda _, args, output, path=path: note(path, args, output))


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Runs of the dense network without values.

    evaluating, training: its runs in the two modes; None for training if forward fails there, `error` says how. small: a
    part of the example on which numbers can be tried instead; None where there is none.
    """

    network: FakeNetwork
    evaluating: FakeRun
    training: FakeRun | None
    error: str
    small: tuple[Any, ...] | None

    @property
    def trains_alike(self) -> bool:
        """Whether training mode calls the same modules and operators as eval mode, dropout left out."""
        one, other = self.evaluating, self.training
        if other is None:
            return False
        return (one.calls, one.outputs, one.record.called) == (other.calls, other.outputs, other.record.called)


def rehearse(model: nn.Module, example: tuple[Any, ...]) -> Rehearsal | None:
    """Returns the runs of a network without values; None for one whose forward needs values."""
    network = FakeNetwork(model)
    try:
        evaluating = network.run(example)
    except Exception:  # the user's forward may raise anything on tensors without values  # noqa: BLE001
        return None
    try:
        training, error = network.run(example, training=True), ""
    except Exception as failure:  # likewise in training mode  # noqa: BLE001
        training, error = None, first_line(failure)
    return Rehearsal(network, evaluating, training, error, _small_example(network, example, evaluating))


SMALL = 64
"""Side of the images on which a network is tried instead of larger ones."""


def _small_example(network: FakeNetwork, example: tuple[Any, ...], full: FakeRun) -> tuple[Any, ...] | None:
    """Returns a part of the example that the network treats in the same way; None where there is none.

    Images and volumes are cropped to `SMALL` along every axis whose size is a larger multiple of 32, and no more than
    two samples stay. The network must call the same modules, and each must keep or change the shape of its input as
    before. full: its run on the whole example.
    """
    leaves = [t for t in _pytree.tree_leaves(example) if isinstance(t, Tensor)]
    batch = leaves[0].shape[0] if leaves and leaves[0].dim() else 0

    def part(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.dim() and value.shape[0] == batch > 2:
            value = value[:2]
        if value.dim() >= 4:
            for axis in range(2, value.dim()):
                if value.shape[axis] > SMALL and value.shape[axis] % 32 == 0:
                    value = value.narrow(axis, 0, SMALL)
        return value.clone()

    small: tuple[Any, ...] = _pytree.tree_map(part, example)
    if all(a.shape == b.shape for a, b in zip(leaves, tensors_of(small), strict=True)):
        return None
    try:
        run = network.run(small)
    except Exception:  # a forward that wants its own size may raise anything  # noqa: BLE001
        return None
    alike = run.calls == full.calls and list(map(len, run.outputs)) == list(map(len, full.outputs))
    return small if alike else None
