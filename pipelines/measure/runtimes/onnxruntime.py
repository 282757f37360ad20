"""ONNX Runtime on the CPU, on which most small networks are deployed. It is the default."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.formats.example import Example, feed
from prunefront.pipelines.formats.onnx_runtime import bound_call, open_session
from prunefront.pipelines.measure.runtimes import runtime


@runtime("onnxruntime", "ONNX Runtime on the CPU, from the exported model.onnx (default)", from_file=True)
def prepare(model: nn.Module, onnx: Path | None, example: Example, threads: int) -> Callable[[], None]:
    """Runs the file and ignores the module. Input and outputs are bound once, so that a call converts nothing."""
    if onnx is None:
        raise PrunefrontError(
            "runtime 'onnxruntime' times an ONNX file and got none; export the network first"
        )
    session = open_session(onnx, threads)
    return bound_call(session, feed(session, example))
