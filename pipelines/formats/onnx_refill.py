"""Writes a trained network's ONNX file from the dense network's in milliseconds; an export would take seconds.

Each tensor of the dense file is found again in the dense network: as it is, transposed, with axes of length 1 between
its own, or with a batch norm folded in. A candidate's file is the dense one with that candidate's tensors in their
places. Nothing is guessed: a tensor counts as found only where the dense network's own values come out. Whoever writes
such a file compares it with torch all the same (`onnx_export.check`), as the forward may hold sizes of its own.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.formats.example import Example, forward
from prunefront.pipelines.formats.onnx_cut import flatten_to
from prunefront.pruners.cut.surgery import first_names
from prunefront.pruners.units.eval_mode import eval_mode

State = Mapping[str, NDArray[Any]]


class NotRefillable(PrunefrontError):
    """The dense network's ONNX file cannot be filled with another network's weights."""


@dataclass(frozen=True, slots=True)
class _Norm:
    """A batch norm by its name. affine: whether it has a weight and a bias."""

    name: str
    eps: float
    affine: bool

    def scale(self, state: State) -> NDArray[Any]:
        """Returns by what each channel is multiplied (c,)."""
        spread = np.sqrt(state[f"{self.name}.running_var"] + np.float32(self.eps))
        factor = state[f"{self.name}.weight"] if self.affine else np.ones_like(spread)
        return np.asarray(factor / spread)

    def shift(self, state: State, bias: str | None) -> NDArray[Any]:
        """Returns what is added to each channel (c,). bias: of the layer before it."""
        mean = state[f"{self.name}.running_mean"]
        own = np.zeros_like(mean) if bias is None else state[bias]
        shift = (own - mean) * self.scale(state)
        return np.asarray(shift + state[f"{self.name}.bias"] if self.affine else shift)

    def tensors(self) -> set[str]:
        ends = ("running_mean", "running_var", *(("weight", "bias") if self.affine else ()))
        return {f"{self.name}.{end}" for end in ends}


@dataclass(frozen=True, slots=True)
class _Source:
    """Origin of a tensor of the file.

    tensor: of the state dict; None = a bias that the layer did not have. axes: of the tensor, for each axis of the
    file's; None = an axis of length 1. norm: folded in. channels: axis of the norm's channels in the file's tensor;
    None = this is the folded bias. groups: of a transposed convolution, whose channels lie on two axes.
    """

    tensor: str | None
    axes: tuple[int | None, ...] = ()
    norm: _Norm | None = None
    channels: int | None = None
    groups: int = 1

    def values(self, state: State) -> NDArray[Any]:
        if self.norm is not None and self.channels is None:
            return self.norm.shift(state, self.tensor)
        assert self.tensor is not None
        values = state[self.tensor]
        values = np.transpose(values, [a for a in self.axes if a is not None])
        values = np.expand_dims(values, [i for i, a in enumerate(self.axes) if a is None])
        if self.norm is None:
            return values
        assert self.channels is not None
        scale = self.norm.scale(state)
        if self.groups == 1:
            shape = [-1 if i == self.channels else 1 for i in range(values.ndim)]
            return np.asarray(values * scale.reshape(shape))
        inputs, outputs, *kernel = values.shape
        split = values.reshape(self.groups, inputs // self.groups, outputs, *kernel)
        by_group = scale.reshape(self.groups, 1, outputs, *(1 for _ in kernel))
        return np.asarray((split * by_group).reshape(values.shape))

    def tensors(self) -> set[str]:
        return {*([self.tensor] if self.tensor else []), *(self.norm.tensors() if self.norm else ())}


class Refill:
    """The dense network's file, ready to be filled with the weights of networks that were cut from it."""

    def __init__(self, dense: bytes, model: nn.Module, example: Example) -> None:
        """dense: written by `onnx_export.export` for `model`. example: a batch, to see which norm follows which layer.

        Raises NotRefillable where a tensor of the model is not found in the file.
        """
        self._proto = onnx.ModelProto.FromString(dense)
        state = _state(model)
        self._names = frozenset(state)
        first = first_names(model)  # of tensors that are shared
        norms = _norms_after(model, example)
        self._sources = _sources(self._proto.graph, model, state, norms, {*first.values()})
        found = {first[name] for source in self._sources.values() for name in source.tensors()}
        floats = (first[name] for name, values in state.items() if values.dtype.kind == "f")
        if lost := next((name for name in floats if name not in found), None):
            raise NotRefillable(
                f"the dense network's ONNX file does not hold {lost!r} in a form that is known"
            )

    def file(self, network: nn.Module) -> bytes:
        """Returns the ONNX file of a network of the dense one's modules, some of them narrower or of fewer bits.

        Raises NotRefillable for a network of other modules.
        """
        state = _state(network)
        more = {
            name for name in state if name.removesuffix("_scale").removesuffix("_offset") not in self._names
        }
        if other := sorted(more | (self._names - state.keys())):
            raise NotRefillable(f"the network's tensors are not the dense one's, {other[0]!r} for one")
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        for name, source in self._sources.items():
            values = np.ascontiguousarray(source.values(state))
            tensors[name].CopyFrom(numpy_helper.from_array(values, name))
        readers = {name: node for node in proto.graph.node for name in node.input}
        for node in proto.graph.node:
            if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in self._sources:
                weight = self._sources[node.input[1]].tensor
                groups = getattr(network.get_submodule(str(weight).rpartition(".")[0]), "groups", None)
                for attribute in node.attribute:
                    if attribute.name == "group" and groups is not None:
                        attribute.i = groups
            elif node.op_type == "Reshape" and node.input[1] in tensors:
                flatten_to(tensors[node.input[1]], readers.get(node.output[0]), tensors)
        written: bytes = proto.SerializeToString(deterministic=True)
        return written


def _state(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Returns the tensors of a state dict that numpy can hold."""
    return {
        name: tensor.detach().cpu().numpy()
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor) and tensor.dtype != torch.bfloat16
    }


def _norms_after(model: nn.Module, example: Example) -> dict[str, _Norm]:
    """Returns name of a module -> the batch norm that takes its output as it is. Runs the network once."""
    made: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, so that no other gets the same id meanwhile
    norms: dict[str, _Norm] = {}
    hooks: list[torch.utils.hooks.RemovableHandle] = []

    def noting(name: str, module: nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):

            def taken(_: nn.Module, args: tuple[object, ...]) -> None:
                if args and id(args[0]) in made and module.track_running_stats:
                    norms[made[id(args[0])][0]] = _Norm(name, module.eps, module.affine)

            yield module.register_forward_pre_hook(taken)
        elif not any(module.children()):

            def gave(_: nn.Module, __: object, output: object) -> None:
                if isinstance(output, Tensor):
                    made[id(output)] = name, output

            yield module.register_forward_hook(gave)

    for name, module in model.named_modules():
        hooks += noting(name, module)
    try:
        with eval_mode(model), torch.no_grad():
            forward(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return norms


def _sources(
    graph: onnx.GraphProto, model: nn.Module, state: State, norms: Mapping[str, _Norm], names: Set[str]
) -> dict[str, _Source]:
    """Returns name of a tensor of the file -> where it comes from; those that come from no weight are left out.

    names: of the state dict, one for each tensor.
    """
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    found: dict[str, _Source] = {}
    for node in graph.node:
        for name, source in _folded(node, model, state, norms):
            if name in values and _same(values[name], source.values(state)):
                found[name] = source
    by_size: dict[int, list[str]] = {}
    for name in sorted(names & state.keys()):
        by_size.setdefault(state[name].size, []).append(name)
    for name, tensor in values.items():
        if name in found or tensor.dtype.kind != "f" or not tensor.ndim:
            continue
        # its own name decides; else a tensor must be the only one of these values
        candidates = [name] if name in state else by_size.get(tensor.size, [])
        fitting = [
            source
            for candidate in candidates
            for axes in _placements(state[candidate].shape, tensor.shape)
            if _same(tensor, (source := _Source(candidate, axes)).values(state))
        ]
        if fitting and (name in state or len({source.tensor for source in fitting}) == 1):
            found[name] = fitting[0]
    return found


def _folded(
    node: onnx.NodeProto, model: nn.Module, state: State, norms: Mapping[str, _Norm]
) -> Iterator[tuple[str, _Source]]:
    """Yields the tensors that a layer of the file has, if a batch norm was folded into it."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or node.input[1] not in state:
        return
    weight = node.input[1]
    module, _, _ = weight.rpartition(".")
    if module not in norms:
        return
    norm, axes = norms[module], tuple(range(state[weight].ndim))
    groups = getattr(model.get_submodule(module), "groups", 1) if node.op_type == "ConvTranspose" else 1
    channels = 1 if node.op_type == "ConvTranspose" else 0
    yield weight, _Source(weight, axes, norm, channels, groups)
    if len(node.input) > 2:
        own = f"{module}.bias"
        yield node.input[2], _Source(own if own in state else None, norm=norm)


def _placements(tensor: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[tuple[int | None, ...]]:
    """Yields the ways in which a tensor may lie in another shape: as it is, transposed, between axes of length 1."""
    if tensor == shape:
        yield tuple(range(len(shape)))
    if len(shape) == 2 and tensor == shape[::-1]:
        yield (1, 0)
    if len(tensor) < len(shape) and list(tensor) == [n for n in shape if n != 1]:
        places = iter(range(len(tensor)))
        yield tuple(None if n == 1 else next(places) for n in shape)


def _same(written: NDArray[Any], computed: NDArray[Any]) -> bool:
    """Tells whether both are the same but for the last digits, which the order of a sum decides."""
    return written.shape == computed.shape and np.allclose(
        written.astype(np.float64), computed.astype(np.float64), rtol=1e-5, atol=1e-7
    )
