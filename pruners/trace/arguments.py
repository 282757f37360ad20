"""What a network is called with, by place and by keyword, and the tensors in whatever it gives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree


@dataclass(frozen=True, slots=True)
class Inputs:
    """Arguments of a network's forward. `torch.utils._pytree` maps over the tensors in them."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @staticmethod
    def of(example: Any, kwargs: Mapping[str, Any] | None) -> "Inputs":
        """Returns the arguments of an example: one input, or a tuple of them, and those that are given by keyword."""
        return Inputs(example if isinstance(example, tuple) else (example,), dict(kwargs or {}))

    def call(self, network: nn.Module) -> Any:
        """Returns what a network gives for them."""
        return network(*self.args, **self.kwargs)


_pytree.register_pytree_node(
    Inputs,
    lambda inputs: ([inputs.args, dict(inputs.kwargs)], None),
    lambda values, _: Inputs(*values),
    serialized_type_name="prunefront.Inputs",
)


def tensors_of(outputs: Any) -> list[Tensor]:
    """Returns all tensors of a network's output, in the order in which it holds them.

    Objects that are no containers, such as a cache of keys and values, are state that the network takes back: a cut
    network fills them with what it makes itself. Their tensors count only where there are no others.
    """
    return list(_tensors(outputs, set(), inside=False)) or list(_tensors(outputs, set(), inside=True))


def state_of(outputs: Any) -> list[str]:
    """Returns the names of the types of objects in an output whose tensors do not count in `tensors_of`."""
    if not list(_tensors(outputs, set(), inside=False)):
        return []
    leaves = [leaf for leaf in _pytree.tree_leaves(outputs) if not isinstance(leaf, Tensor)]
    return sorted({type(leaf).__name__ for leaf in leaves if list(_tensors(leaf, set(), inside=True))})


def _tensors(value: Any, seen: set[int], *, inside: bool) -> Iterator[Tensor]:
    """Yields tensors. seen: objects that were met, since they may hold each other. inside: look into all objects."""
    for leaf in _pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif id(leaf) in seen or isinstance(leaf, type | nn.Module):
            continue
        elif is_dataclass(leaf) or (inside and hasattr(leaf, "__dict__")):
            seen.add(id(leaf))
            held = [getattr(leaf, f.name) for f in fields(leaf)] if is_dataclass(leaf) else vars(leaf)
            yield from _tensors(held, seen, inside=inside)
