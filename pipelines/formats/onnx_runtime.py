"""ONNX Runtime: the one place that imports it, and sessions on the CPU.

From 1.32 on, ONNX Runtime reports to its maker and leaves a device id in the user's home as soon as it is imported,
unless ORT_DISABLE_TELEMETRY is set at that moment. It is set here for the import alone. A value that the user has set
stays.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunefront.errors import PrunefrontError
from prunefront.pipelines.formats.onnx_file import read_model
from prunefront.text import one_line

__all__ = ["ORT_ERRORS", "bound_call", "onnxruntime", "open_session"]


@contextmanager
def _telemetry_off() -> Iterator[None]:
    """Sets the variable within, unless the user has set it."""
    name = "ORT_DISABLE_TELEMETRY"
    if name in os.environ:
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]


with _telemetry_off():
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    UnicodeDecodeError,  # of a name in the file
)
"""Errors that ONNX Runtime raises for a file or its input; they have no base class of their own."""


def open_session(model: bytes | Path, threads: int) -> onnxruntime.InferenceSession:
    """Returns a CPU session with `threads` threads, for one call at a time. Idle threads sleep rather than spin.

    The model is read here and handed over as bytes. One that refers to other files is refused, so that a fetched file
    cannot pull in what lies beside it. Raises PrunefrontError for that, and for a file that cannot be read or loaded.
    """
    name = "the ONNX model" if isinstance(model, bytes) else str(model)
    data = read_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors: they are raised as well, warnings would go to the terminal
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise PrunefrontError(f"{name} cannot be loaded: {one_line(error, 300)}") from None


def bound_call(session: onnxruntime.InferenceSession, inputs: Mapping[str, Any]) -> Callable[[], None]:
    """Returns a call that is one forward of arrays by name: input and outputs are bound once, nothing is converted."""
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")

    def call() -> None:
        session.run_with_iobinding(binding)

    return call
