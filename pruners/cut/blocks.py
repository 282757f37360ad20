"""Whole blocks of a stack replaced by the identity."""

from collections.abc import Collection

from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.cut.surgery import deep_copy
from prunefront.text import did_you_mean


def without_blocks(model: nn.Module, blocks: Collection[str]) -> nn.Module:
    """Returns a deep copy of the model in which each block is an nn.Identity; gradients are not carried over.

    blocks: module paths. Raises PrunefrontError for a path that the model lacks.
    """
    memo: dict[int, object] = {}
    for path in blocks:
        block = _block(model, path)
        memo[id(block)] = nn.Identity().train(block.training)  # deepcopy takes what the memo holds
    return deep_copy(model, memo)


def _block(model: nn.Module, path: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if not path or path not in modules:
        hint = did_you_mean(path, modules).strip() or f"there are: {', '.join(list(modules)[1:9])} …"
        raise PrunefrontError(f"{type(model).__name__} has no module {path!r} to drop; {hint}")
    return modules[path]


def block_tensors(block: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors that a block computes with, by name: parameters, and running statistics of norms."""
    statistics = {n: b for n, b in block.named_buffers() if n.rpartition(".")[2] in _STATISTICS}
    return {name: p.detach() for name, p in block.named_parameters()} | statistics


def zero_block(block: nn.Module) -> None:
    """Sets all tensors that a block computes with to zero, *in place*."""
    for tensor in block_tensors(block).values():
        tensor.zero_()


_STATISTICS = ("running_mean", "running_var")
