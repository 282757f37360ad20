"""ONNX Runtime: the one place that imports it, and sessions on the CPU.

From 1.32 on, ONNX Runtime reports to its maker and leaves a device id in the user's home as soon as it is imported,
unless ORT_DISABLE_TELEMETRY is set at that moment. It is set here for the import alone. A value that the user has set
stays.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message

from prunefront.errors import PrunefrontError
from prunefront.text import one_line

__all__ = ["ORT_ERRORS", "onnxruntime", "open_session", "read_model"]


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
    _refuse_external(data, name)
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


def read_model(model: bytes | Path) -> bytes:
    """Returns the bytes of an ONNX file, or those given. Raises PrunefrontError for a file that cannot be read."""
    if isinstance(model, bytes):
        return model
    try:
        return model.read_bytes()
    except OSError as error:
        raise PrunefrontError(f"{model} cannot be read: {error.strerror}") from None


def _refuse_external(data: bytes, name: str) -> None:
    """Raises PrunefrontError for a model that keeps tensors in other files, and for bytes that are no model."""
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise PrunefrontError(f"{name} is not an ONNX model") from None
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise PrunefrontError(
                f"{name} keeps its tensor {tensor.name!r} in another file, which is not read; "
                "embed all weights"
            )


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Yields every tensor anywhere in a message: initialisers, attributes, subgraphs, functions, sparse parts."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if isinstance(value, Message) else value:
                yield from _tensors(child)
