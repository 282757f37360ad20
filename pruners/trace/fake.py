"""First runs of a network, on a small input or on tensors without values: they show sizes and calls."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree

from prunefront.pruners.cut import surgery
from prunefront.pruners.graph.channel_graph import SizeAttribute
from prunefront.pruners.trace.arguments import Inputs, tensors_of
from prunefront.pruners.trace.held import Held, Record, own_chance
from prunefront.pruners.units.attention import spell
from prunefront.pruners.units.eval_mode import train_but_norms

Shape = tuple[int, ...]
Calls = Sequence[tuple[str, bool]]
"""Path of every called module, and whether its output has the shape of its first input."""


@dataclass(frozen=True, slots=True)
class Run:
    """Observations of one run. outputs: shapes of the tensors."""

    outputs: tuple[Shape, ...]
    calls: Calls
    record: Record
    replayed: tuple[str, ...]


class FakeNetwork:
    """A model whose tensors have shapes and no values. The model itself is not touched."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.mode = model, FakeTensorMode(allow_non_fake_inputs=True)

    def run(
        self,
        example: Inputs,
        sizes: Mapping[str, Shape] | None = None,
        going: surgery.RemovedPositions | None = None,
        *,
        earlier: Record | None = None,
        training: bool = False,
        attributes: Sequence[SizeAttribute] = (),
    ) -> Run:
        """Runs the network, cut to `sizes` where `going` says which positions are gone.

        attributes: numbers in modules that are set. earlier: record of a run whose statistics are replayed. Raises
        whatever the network's forward raises.
        """
        sizes = sizes or {}
        network = surgery.rebuilt(
            self.model, going or {}, lambda name, tensor: self._fake(tensor, sizes.get(name, tensor.shape))
        )
        surgery.set_attributes(network, attributes)
        _set_mode(network, training=training)
        inputs = _pytree.tree_map_only(Tensor, lambda t: self._fake(t, t.shape), example)
        with quiet_about_sizes(), self.mode:
            return _observe(network, inputs, earlier)

    def _fake(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        with self.mode:
            return torch.empty(tuple(shape), dtype=tensor.dtype, device=tensor.device)


def _set_mode(network: nn.Module, *, training: bool) -> None:
    spell(network)
    network.eval()
    if training:
        train_but_norms(network)


def _observe(network: nn.Module, inputs: Inputs, earlier: Record | None = None) -> Run:
    """Runs a network, with the statistics of an earlier run if there is one, and returns what shows."""
    held = Held(earlier)
    with watch_calls(network) as calls, own_chance(), torch.no_grad(), held:
        outputs = tensors_of(inputs.call(network))
    shapes = tuple(tuple(map(int, t.shape)) for t in outputs)
    return Run(shapes, tuple(calls), held.record, tuple(held.replayed))


@contextmanager
def quiet_about_sizes() -> Iterator[None]:
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
    """Result of the first runs of the dense network.

    example: a part of the whole one where `small`, on which cuts can be tried. trains_alike: whether training mode
    calls the same modules and operators as eval mode, dropout left out. trains: whether forward runs in training mode.
    """

    example: Inputs
    small: bool
    trains_alike: bool
    trains: bool


def rehearse(model: nn.Module, example: Inputs, calls: Calls, outputs: int) -> Rehearsal:
    """Runs a copy of a network in both modes: on a small part of the example, else on the whole without values.

    calls, outputs: calls and number of output tensors on the whole example. A small part serves if both are the same
    there.
    """
    small = _small_part(example)
    if small is not None:
        copied = surgery.rebuilt(model, {}, lambda _, tensor: tensor.clone())

        def run(*, training: bool) -> Run:
            _set_mode(copied, training=training)
            return _observe(copied, _pytree.tree_map_only(Tensor, torch.clone, small))

        there = _weighty(model, calls), outputs
        evaluating = _or_none(lambda: run(training=False))
        if evaluating is not None and (_weighty(model, evaluating.calls), len(evaluating.outputs)) == there:
            return _rehearsal(small, True, evaluating, _or_none(lambda: run(training=True)))
        del copied
    network = FakeNetwork(model)
    evaluating = _or_none(lambda: network.run(example))
    return _rehearsal(example, False, evaluating, _or_none(lambda: network.run(example, training=True)))


def _rehearsal(example: Inputs, small: bool, evaluating: Run | None, training: Run | None) -> Rehearsal:
    alike = (
        evaluating is not None
        and training is not None
        and (evaluating.calls, evaluating.outputs, evaluating.record.called)
        == (training.calls, training.outputs, training.record.called)
    )
    return Rehearsal(example, small, alike, training is not None)


def _weighty(model: nn.Module, calls: Calls) -> list[tuple[str, bool]]:
    """Returns the calls of modules that hold a parameter."""
    return [call for call in calls if next(model.get_submodule(call[0]).parameters(), None) is not None]


def _or_none(run: Callable[[], Run]) -> Run | None:
    try:
        return run()
    except Exception:  # forward may raise anything without values, on a part of them, or in training  # noqa: BLE001
        return None


SMALL = 64
"""Side of the images on which a network is tried instead of larger ones."""


def _small_part(example: Inputs) -> Inputs | None:
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

    small: Inputs = _pytree.tree_map_only(Tensor, part, example)
    alike = all(a.shape == b.shape for a, b in zip(leaves, tensors_of(small), strict=True))
    return None if alike else small
