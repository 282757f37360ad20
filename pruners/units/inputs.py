"""Inputs of a network by place: each a tensor, a structure of tensors, or None, whose first axis counts images."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

Arguments = Sequence[Any]
"""Arguments of a forward."""


def tensors_in(arguments: Arguments) -> list[Tensor]:
    """Returns the tensors among the arguments, in order."""
    return [leaf for leaf in pytree.tree_leaves(tuple(arguments)) if isinstance(leaf, Tensor)]


def count_images(arguments: Arguments) -> int:
    """Returns the number of images that the arguments hold."""
    return len(tensors_in(arguments)[0])


def piece_of(arguments: Arguments, rows: Any) -> tuple[Any, ...]:
    """Returns the arguments of some images. rows: whatever picks rows of a tensor."""
    found: tuple[Any, ...] = pytree.tree_map(
        lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, tuple(arguments)
    )
    return found
