"""PyTorch through torch.compile (Inductor), on the CPU."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from prunefront.pipelines.formats.example import Example
from prunefront.pipelines.measure.runtimes import runtime
from prunefront.pipelines.measure.runtimes.eager import copy_to, with_threads


def _missing() -> str | None:
    compiler = os.environ.get("CXX", "g++")
    return (
        None if shutil.which(compiler) else f"torch.compile needs a C++ compiler and there is no {compiler!r}"
    )


@runtime(
    "compile",
    "PyTorch on the CPU through torch.compile; each network takes tens of seconds to build",
    _missing,
)
def prepare(model: nn.Module, onnx: Path | None, example: Example, threads: int) -> Callable[[], None]:
    """Compiles the network before it returns, for this batch size and thread count.

    The network is exported first, which gives each candidate a forward of its own. Compiled as modules of one class,
    candidates would share one cache: Dynamo gives up on the ninth shape and runs it uncompiled.
    """
    network, inputs = copy_to("cpu", model, example)
    with torch.no_grad():
        graph = torch.export.export(network, inputs).module()
        compiled = torch.compile(graph, fullgraph=True, dynamic=False)
    call = with_threads(lambda: compiled(*inputs), threads)
    call()
    return call
