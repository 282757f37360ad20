"""Example inputs of a network, by place: what exporters, sessions and timings do with several of them."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Example = Any
"""A tensor (n, ...), or a tuple of arguments: any structure of tensors whose first axis counts samples."""


def arguments(example: Example) -> tuple[Any, ...]:
    """Returns an example as the arguments of a forward."""
    return example if isinstance(example, tuple) else (example,)


def forward(model: nn.Module, example: Example) -> Any:
    """Returns what the network makes of an example."""
    return model(*arguments(example))


def mapped(function: Any, example: Example) -> Example:
    """Returns an example with a function applied to its tensors."""
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, example)


def rows(example: Example) -> int:
    """Returns the number of samples of an example."""
    return next(len(leaf) for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor))


def traced_with(example: Example) -> tuple[Any, ...]:
    """Returns arguments of two samples: torch.export takes sizes 0 and 1 as constants.

    A single input is zeros, as only its shape and type matter; of several, the values may (a mask of zeros hides all).
    """
    if isinstance(example, Tensor):
        return (torch.zeros((2, *example.shape[1:]), dtype=example.dtype),)
    return arguments(mapped(lambda t: t[torch.arange(2) % len(t)] if t.ndim else t, example))


def free_axes(args: tuple[Any, ...], batch: Any) -> tuple[Any, ...]:
    """Returns dynamic_shapes of exporters: axis 0 of every tensor is free."""
    found = pytree.tree_map(lambda leaf: {0: batch} if isinstance(leaf, Tensor) and leaf.ndim else None, args)
    return tuple(found)


def input_names(model: nn.Module, args: tuple[Any, ...]) -> list[str]:
    """Returns a name for each tensor among the arguments: `images` for the only one, else parameters of its forward."""
    flat, _ = pytree.tree_flatten_with_path(args)
    paths = [path for path, leaf in flat if isinstance(leaf, Tensor)]
    if len(paths) == 1:
        return ["images"]
    parameters = [*inspect.signature(model.forward).parameters]
    names = []
    for path in paths:
        place, *inner = (getattr(step, "key", getattr(step, "idx", None)) for step in path)
        first = parameters[place] if isinstance(place, int) and place < len(parameters) else f"input_{place}"
        names.append("_".join(map(str, (first, *inner))))
    return names


def output_names(outputs: Any) -> list[str]:
    """Returns a name for each output: `logits` for the only one, the keys of a mapping, else output_0, output_1 …"""
    leaves = pytree.tree_leaves(outputs)
    if len(leaves) == 1:
        return ["logits"]
    if isinstance(outputs, Mapping) and len(outputs) == len(leaves):
        return [str(key) for key in outputs]
    return [f"output_{i}" for i in range(len(leaves))]


def outputs_of(names: list[str], values: list[NDArray[Any]]) -> Any:
    """Returns what a session gave as a task takes it: a tensor, a tuple by place, or a dict by name."""
    tensors = [torch.from_numpy(np.asarray(value)) for value in values]
    if len(tensors) == 1:
        return tensors[0]
    if all(name == f"output_{i}" for i, name in enumerate(names)):
        return tuple(tensors)
    return dict(zip(names, tensors, strict=True))


def feed(session: Any, example: Example) -> dict[str, NDArray[Any]]:
    """Returns a session's inputs by name; the tensors that the exporter found unused are left out."""
    leaves = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
    known = [i.name for i in session.get_inputs()]
    arrays = [np.ascontiguousarray(leaf.detach().cpu().numpy()) for leaf in leaves]
    if len(known) == len(arrays):
        return dict(zip(known, arrays, strict=True))
    named = session.get_modelmeta().custom_metadata_map.get(NAMES, "").split("|")
    return {name: array for name, array in zip(named, arrays, strict=False) if name in known}


NAMES = "prunefront_inputs"
"""Key of an ONNX file's metadata with the names of all inputs of the network, in order."""
