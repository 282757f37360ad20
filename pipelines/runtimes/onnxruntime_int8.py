"""ONNX Runtime on the CPU in 8-bit integers."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from pipelines.int8 import holds_integers, quantise_onnx
from pipelines.runtimes import onnxruntime, runtime
from pruners.errors import PrunefrontError


@runtime(
    "onnxruntime_int8",
    "ONNX Runtime on the CPU, from model.onnx in 8-bit integers; accuracy stays that of floats",
)
def prepare(model: nn.Module, onnx: Path | None, example: Tensor, threads: int) -> Callable[[], None]:
    """Quantised with the ranges of the example alone: how fast integers are does not depend on them."""
    if onnx is None:
        raise PrunefrontError(
            "runtime 'onnxruntime_int8' times an ONNX file and got none; export the network first"
        )
    if holds_integers(onnx.read_bytes()):
        return onnxruntime.prepare(model, onnx, example, threads)
    with tempfile.TemporaryDirectory(prefix="prunefront-") as temporary:
        integers = Path(temporary) / "model.onnx"
        quantise_onnx(onnx, [example], integers)
        return onnxruntime.prepare(model, integers, example, threads)
