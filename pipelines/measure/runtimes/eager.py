"""PyTorch without a compiler, on the CPU."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunefront.pipelines.formats.example import Example, arguments, mapped
from prunefront.pipelines.measure.runtimes import runtime


@runtime("eager", "PyTorch on the CPU, uncompiled, channels_last")
def prepare(model: nn.Module, onnx: Path | None, example: Example, threads: int) -> Callable[[], None]:
    """Runs the network in channels_last: 0.9× the time on ResNet-20, the same on tiny networks.

    docs/decisions/0004-latency.md has the figures.
    """
    network, inputs = copy_to("cpu", model, example)
    return with_threads(lambda: network(*inputs), threads)


def copy_to(device: str, model: nn.Module, example: Example) -> tuple[nn.Module, tuple[Any, ...]]:
    """Returns the network, in eval mode, and its arguments on a device; channels_last where the only one has 4 axes."""
    network = copy.deepcopy(model).to(device).eval()
    inputs = arguments(mapped(lambda t: t.detach().to(device), example))
    if len(inputs) == 1 and inputs[0].dim() == 4:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        inputs = (inputs[0].contiguous(memory_format=torch.channels_last),)
    return network, inputs


def with_threads(forward: Callable[[], object], threads: int) -> Callable[[], None]:
    """Returns a call of `forward` in inference mode with so many threads; it puts torch's setting back (0.3 µs)."""

    def call() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                forward()
        finally:
            torch.set_num_threads(before)

    return call
