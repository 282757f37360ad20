"""Arguments of a network, by place and by keyword, and the tensors in whatever it gives."""

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
    found = list(_tensors(outputs, "", set()))
    plain = [tensor for tensor, state in found if not state]
    return plain or [tensor for tensor, _ in found]


def state_of(outputs: Any) -> list[str]:
    """Returns the names of the types of objects in an output whose tensors do not count in `tensors_of`."""
    states = {state for _, state in _tensors(outputs, "", set())}
    return sorted(states - {""}) if "" in states else []


def _tensors(value: Any, state: str, seen: set[int]) -> Iterator[tuple[Tensor, str]]:
    """Yields tensors, each with the type of the outermost object around it that is no container, "" for none.

    seen: objects that were met, since they may hold each other.
    """
    for leaf in _pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf, state
        elif isinstance(leaf, type | nn.Module) or id(leaf) in seen:
            continue
        elif is_dataclass(leaf):
            seen.add(id(leaf))
            yield from _tensors([getattr(leaf, f.name) for f in fields(leaf)], state, seen)
        elif hasattr(leaf, "__dict__"):
            seen.add(id(leaf))
            yield from _tensors(vars(leaf), state or type(leaf).__name__, seen)
