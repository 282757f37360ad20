"""Eval or training mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts the model into eval mode; in the end every module has its own training flag again."""
    with _flags_kept(model):
        model.eval()
        yield


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Puts the model into training mode as `train_but_norms` does; in the end every module has its own flag again."""
    with _flags_kept(model):
        train_but_norms(model)
        yield


def train_but_norms(model: nn.Module) -> None:
    """Puts the model into training mode *in place*, but batch norms with running statistics into eval mode.

    So they neither change nor ask for more than one value per channel; all else does what it does in training.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.eval()


@contextmanager
def _flags_kept(model: nn.Module) -> Iterator[None]:
    flags = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training
