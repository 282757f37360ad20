"""PyTorch without a compiler, on the CPU."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from prunefront.pipelines.measure.runtimes import runtime


@runtime("eager", "PyTorch on the CPU, uncompiled, channels_last")
def prepare(model: nn.Module, onnx: Path | None, example: Tensor, threads: int) -> Callable[[], None]:
    """Runs the network in channels_last: 0.9× the time on ResNet-20, the same on tiny networks.

    docs/decisions/0004-latency.md has the figures.
    """
    network, images = copy_to("cpu", model, example)
    return with_threads(lambda: network(images), threads)


def copy_to(device: str, model: nn.Module, example: Tensor) -> tuple[nn.Module, Tensor]:
    """Returns copies of both on a device, in eval mode; channels_last where the input has four axes."""
    network = copy.deepcopy(model).to(device).eval()
    images = example.detach().to(device)
    if images.dim() == 4:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        images = images.contiguous(memory_format=torch.channels_last)
    return network, images


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
