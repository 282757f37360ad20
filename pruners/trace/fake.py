"""Runs of a network that show its sizes and calls: on a small input, or on tensors without values."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

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


class ValuesDecide(Exception):
    """A network looks at values that a cut changes: what it does is no matter of sizes alone."""


class SizesNetwork:
    """A model that is run to see its sizes, on tensors without values or on a copy. The model itself is not touched.

    values: whether to run on numbers, which takes a tenth of the time where the network is small. Where the network
    looks at numbers that a cut changes, that is given up.
    """

    def __init__(self, model: nn.Module, example: Inputs, *, values: bool, training: bool = False) -> None:
        self.model, self.example, self.values, self.training = model, example, values, training
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._looks: list[object] = []

    @cached_property
    def dense(self) -> Run | None:
        """The run of the dense network; None if it needs values, or does not run."""
        try:
            return self._run({}, {}, (), None)
        except ValuesDecide:
            self.values = False
        except Exception:  # forward may look at values, or raise anything  # noqa: BLE001
            return None
        return _or_none(lambda: self._run({}, {}, (), None))

    def cut(
        self,
        sizes: Mapping[str, Shape],
        going: surgery.RemovedPositions,
        attributes: Sequence[SizeAttribute] = (),
    ) -> Run:
        """Runs the network with the statistics of the dense run, cut to `sizes`; `going` says which positions are gone.

        attributes: numbers in modules that are set. Raises ValuesDecide for a network that needs values, and whatever
        its forward raises.
        """
        if self.dense is None:
            raise ValuesDecide
        try:
            return self._run(sizes, going, attributes, self.dense.record)
        except ValuesDecide:
            self.values = False
            del self.dense
        return self.cut(sizes, going, attributes)

    def _run(
        self,
        sizes: Mapping[str, Shape],
        going: surgery.RemovedPositions,
        attributes: Sequence[SizeAttribute],
        earlier: Record | None,
    ) -> Run:
        def made(name: str, tensor: Tensor) -> Tensor:
            if self.values:
                return surgery.cut_tensor(going, name, tensor)
            return self._fake(tensor, sizes.get(name, tensor.shape))

        network = surgery.rebuilt(self.model, going, made)
        surgery.set_attributes(network, attributes)
        _set_mode(network, training=self.training)
        if not self.values:
            inputs = _pytree.tree_map_only(Tensor, lambda t: self._fake(t, t.shape), self.example)
            with quiet_about_sizes(), self._mode:
                return _observe(network, inputs, earlier)
        looks = _Looks(None if earlier is None else self._looks)
        with looks:
            run = _observe(network, _pytree.tree_map_only(Tensor, torch.clone, self.example), earlier)
        if _PEEKS & set(run.record.called):
            raise ValuesDecide
        self._looks = looks.seen if earlier is None else self._looks
        return run

    def _fake(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        with self._mode:
            return torch.empty(tuple(shape), dtype=tensor.dtype, device=tensor.device)


_PEEKS = frozenset({"tolist", "numpy", "__array__", "data_ptr"})
"""Methods that give the values of a tensor without an operator."""

_DEPENDS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})


class _Looks(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what a network sees of values: results that are no tensors, and sizes that depend on values.

    earlier: record of another run. Raises ValuesDecide at the first look that shows something else.
    """

    def __init__(self, earlier: Sequence[object] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[object] = []
        self._earlier = earlier

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.index.Tensor:
            depends = any(isinstance(t, Tensor) and not _is_index(t) for t in args[1])
        else:  # of operators that are not torch's own, nothing is known
            depends = bool(_DEPENDS.intersection(func.tags)) or func.namespace not in ("aten", "prim")
        if depends:
            seen = [v.shape if isinstance(v, Tensor) else v for v in _pytree.tree_leaves(result)]
            if self._earlier is not None and self._earlier[len(self.seen) : len(self.seen) + 1] != [seen]:
                raise ValuesDecide
            self.seen.append(seen)
        return result


def _is_index(tensor: Tensor) -> bool:
    """Says whether a tensor picks by position rather than as a mask."""
    return tensor.dtype not in (torch.bool, torch.uint8)


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
    cheap: whether a run on numbers costs less than one on tensors without values.
    """

    example: Inputs
    small: bool
    trains_alike: bool
    trains: bool
    cheap: bool


def rehearse(model: nn.Module, example: Inputs, calls: Calls, outputs: int, macs: int) -> Rehearsal:
    """Runs a copy of a network in both modes: on a small part of the example, else on the whole.

    calls, outputs: calls and number of output tensors on the whole example; a small part serves if both are the same
    there. macs: multiply-accumulates on the whole example. A network that takes many runs on tensors without values.
    """
    small = _small_part(example)
    part = example if small is None else small
    cheap = _cheap(model, macs * _elements(part) // max(1, _elements(example)))
    if small is not None or cheap:
        copied = surgery.rebuilt(model, {}, lambda _, tensor: tensor.clone())

        def run(*, training: bool) -> Run:
            _set_mode(copied, training=training)
            return _observe(copied, _pytree.tree_map_only(Tensor, torch.clone, part))

        there = _weighty(model, calls), outputs
        evaluating = _or_none(lambda: run(training=False))
        if evaluating is not None and (_weighty(model, evaluating.calls), len(evaluating.outputs)) == there:
            training = _or_none(lambda: run(training=True))
            return Rehearsal(
                part, small is not None, _alike(evaluating, training), training is not None, cheap
            )
        del copied
    evaluating, training = (
        SizesNetwork(model, example, values=False, training=mode).dense for mode in (False, True)
    )
    return Rehearsal(example, False, _alike(evaluating, training), training is not None, _cheap(model, macs))


_CHEAP_MACS, _CHEAP_ELEMENTS = 1 << 29, 1 << 24
"""Multiply-accumulates of a run, and stored numbers to be copied for it, up to which it takes some 50 ms at most."""


def _cheap(model: nn.Module, macs: int) -> bool:
    return macs <= _CHEAP_MACS and sum(p.numel() for p in model.parameters()) <= _CHEAP_ELEMENTS


def _elements(example: Inputs) -> int:
    return sum(tensor.numel() for tensor in tensors_of(example))


def _alike(evaluating: Run | None, training: Run | None) -> bool:
    """Says whether two runs did the same."""
    return (
        evaluating is not None
        and training is not None
        and (evaluating.calls, evaluating.outputs, evaluating.record.called)
        == (training.calls, training.outputs, training.record.called)
    )


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
