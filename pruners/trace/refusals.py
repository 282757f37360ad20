"""Refusals of models that no copy can be cut of, before anything is traced."""

import torch
from torch import nn

from prunefront.errors import NotTraceable


def refuse(model: nn.Module) -> None:
    """Raises NotTraceable for a wrapper around the network, and for a network without values."""
    name = type(model).__name__
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise NotTraceable(
            f"{name} wraps the network to run it on several devices: trace the network itself, model.module, and wrap "
            "the pruned one afterwards"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise NotTraceable(
            f"{name} is a TorchScript program, whose operators are fixed: trace the nn.Module that it was made of, "
            "with the program's state_dict() loaded"
        )
    for path, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and tensor.is_meta:
            raise NotTraceable(
                f"{path} of {name} is on the meta device and has no values: load the weights onto a real device first"
            )
