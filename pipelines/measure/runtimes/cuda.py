"""PyTorch without a compiler, on the first GPU."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from prunefront.pipelines.formats.example import Example
from prunefront.pipelines.measure.runtimes import runtime
from prunefront.pipelines.measure.runtimes.eager import copy_to


def _missing() -> str | None:
    return None if torch.cuda.is_available() else "torch sees no CUDA GPU"


@runtime(
    "cuda",
    "PyTorch on a CUDA GPU, uncompiled, channels_last; a call ends when the GPU has finished",
    _missing,
)
def prepare(model: nn.Module, onnx: Path | None, example: Example, threads: int) -> Callable[[], None]:
    """Returns a call of launch and compute, without copies of data. threads: has no effect."""
    network, inputs = copy_to("cuda", model, example)

    def call() -> None:
        with torch.inference_mode():
            network(*inputs)
        torch.cuda.synchronize()

    return call
