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


def of_rows(example: Example, count: int) -> Example:
    """Returns an example of so many samples: its first ones, which repeat where there are fewer."""
    return mapped(lambda t: t[torch.arange(count) % len(t)] if t.ndim else t, example)


def traced_with(example: Example) -> tuple[Any, ...]:
    """Returns arguments of two samples: torch.export takes sizes 0 and 1 as constants.

    A single input is zeros, as only its shape and type matter; of several, the values may (a mask of zeros hides all).
    """
    if isinstance(example, Tensor):
        return (torch.zeros((2, *example.shape[1:]), dtype=example.dtype),)
    return arguments(of_rows(example, 2))


def by_keyword(model: nn.Module, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns arguments as exporters take them: what comes after an argument left out (None) goes by its name."""
    if not any(arg is None for arg in args):
        return args, {}
    gap = next(i for i, arg in enumerate(args) if arg is None)
    names = [*inspect.signature(model.forward).parameters]
    return args[:gap], {names[i]: arg for i, arg in enumerate(args) if i > gap and arg is not None}


def free_axes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: Any) -> Any:
    """Returns dynamic_shapes of exporters: axis 0 of every tensor is free."""

    def free(value: Any) -> Any:
        return pytree.tree_map(lambda t: {0: batch} if isinstance(t, Tensor) and t.ndim else None, value)

    if not kwargs:
        return tuple(free(arg) for arg in args)
    names = [*inspect.signature(model.forward).parameters]
    return {**{names[i]: free(arg) for i, arg in enumerate(args)}, **{k: free(v) for k, v in kwargs.items()}}


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


def feed(session: Any, example: Example, named: Mapping[str, Any] | None = None) -> dict[str, NDArray[Any]]:
    """Returns a session's inputs by name; the tensors that the exporter found unused are left out.

    named: inputs that are given by keyword, which the file calls by it.
    """
    known = [i.name for i in session.get_inputs()]
    listed = session.get_modelmeta().custom_metadata_map.get(NAMES)
    names = listed.split("|") if listed else known
    found = {}
    for path, leaf in pytree.tree_flatten_with_path(dict(named or {}))[0]:
        if isinstance(leaf, Tensor):
            steps = (getattr(step, "key", getattr(step, "idx", None)) for step in path)
            found["images" if names == ["images"] else "_".join(map(str, steps))] = leaf
    places = [name for name in names if name not in found]
    leaves = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
    found |= dict(zip(places, leaves, strict=False))
    return {
        name: np.ascontiguousarray(leaf.detach().cpu().numpy())
        for name, leaf in found.items()
        if name in known
    }


NAMES = "prunefront_inputs"
"""Key of an ONNX file's metadata with the names of all inputs of the network, in order."""
