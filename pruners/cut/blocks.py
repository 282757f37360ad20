"""Whole blocks of a stack taken away, or zeroed: what is left of them is the identity."""

from collections.abc import Collection

from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.cut.surgery import copied
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.text import did_you_mean


def without_blocks(model: nn.Module, blocks: Collection[str]) -> nn.Module:
    """Returns a deep copy of the model in which each block is an nn.Identity; gradients are not carried over.

    blocks: module paths. Raises PrunefrontError for a path that the model lacks.
    """
    memo: dict[int, object] = {}
    for path in blocks:
        block = _block(model, path)
        memo[id(block)] = nn.Identity().train(block.training)  # deepcopy takes what the memo holds
    return copied(model, memo)


def mask_blocks(model: nn.Module, graph: ChannelGraph, blocks: Collection[str]) -> nn.Module:
    """Returns a deep copy of the model with zeros for all parameters of the blocks (the oracle of `without_blocks`).

    Running statistics of norms become zero too. Raises PrunefrontError for a block that is in no stack of the graph.
    """
    known = [block for stack in graph.stacks for block in stack.blocks]
    for path in blocks:
        if path not in known:
            able = ", ".join(known) or "none"
            raise PrunefrontError(f"{path!r} is no block that can go; these are: {able}")
    masked = copied(model, {})
    for path in blocks:
        _zero(_block(masked, path))
    return masked


def _block(model: nn.Module, path: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if not path or path not in modules:
        raise PrunefrontError(
            f"{type(model).__name__} has no module {path!r} that could go; {did_you_mean(path, modules)}"
            f"there are: {', '.join(list(modules)[1:9])} …"
        )
    return modules[path]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a block computes with, by name: parameters, and running statistics of norms."""
    statistics = {n: b for n, b in module.named_buffers() if n.rpartition(".")[2] in _STATISTICS}
    return {name: p.detach() for name, p in module.named_parameters()} | statistics


def _zero(module: nn.Module) -> None:
    for tensor in _tensors(module).values():
        tensor.zero_()


_STATISTICS = ("running_mean", "running_var")
