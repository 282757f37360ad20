"""ONNX Runtime on the CPU, on which most small networks are deployed. It is the default."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.formats.onnx_runtime import onnxruntime, open_session
from prunefront.pipelines.measure.runtimes import runtime


@runtime("onnxruntime", "ONNX Runtime on the CPU, from the exported model.onnx (default)", from_file=True)
def prepare(model: nn.Module, onnx: Path | None, example: Tensor, threads: int) -> Callable[[], None]:
    """Runs the file and ignores the module. Input and outputs are bound once, so that a call converts nothing."""
    if onnx is None:
        raise PrunefrontError(
            "runtime 'onnxruntime' times an ONNX file and got none; export the network first"
        )
    session = open_session(onnx, threads)
    images = np.ascontiguousarray(example.detach().cpu().numpy())
    binding = session.io_binding()
    binding.bind_ortvalue_input(
        session.get_inputs()[0].name, onnxruntime.OrtValue.ortvalue_from_numpy(images)
    )
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")

    def call() -> None:
        session.run_with_iobinding(binding)

    return call
