"""ONNX files from elsewhere: whole in themselves, or not read at all."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError, Message

from prunefront.errors import PrunefrontError
from prunefront.reading import read_bytes

if TYPE_CHECKING:
    import onnx

LARGEST = 2 << 30
"""Largest ONNX file that is read, in bytes: the most that one protobuf message can hold."""

ORT_MARK = b"ORTM"
"""Bytes 4 to 8 by which ONNX Runtime takes a file for its own format, whatever else it is."""

OUTSIDE = frozenset({"EPContext"})
"""Operators that name a file of compiled code beside the model."""


def read_model(model: bytes | Path) -> bytes:
    """Returns the bytes of an ONNX file, or those given, if they are whole in themselves.

    That is so where no tensor and no operator lies in another file, and where the bytes are ONNX and nothing else. All
    that reads, converts or passes on a network of an artifact goes through here. Raises PrunefrontError.
    """
    name = "the ONNX model" if isinstance(model, bytes) else str(model)
    try:
        data = model if isinstance(model, bytes) else read_bytes(model, limit=LARGEST)
    except OSError as error:
        raise PrunefrontError(f"{model!s} cannot be read: {error.strerror}") from None
    if data[4:8] == ORT_MARK:
        raise PrunefrontError(
            f"{name} is in ONNX Runtime's own format (ORT), which is not read; export it as ONNX"
        )
    import onnx  # a second of imports, which processes that read no model are spared

    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise PrunefrontError(f"{name} is not an ONNX model") from None
    for part in _parts(proto):
        if isinstance(part, onnx.NodeProto):
            if part.op_type in OUTSIDE:
                raise PrunefrontError(
                    f"{name} has the operator {part.op_type!r}, whose code lies in another file, which is not read"
                )
        elif part.data_location == onnx.TensorProto.EXTERNAL or part.external_data:
            raise PrunefrontError(
                f"{name} keeps its tensor {part.name!r} in another file, which is not read; embed all weights"
            )
    return data


def _parts(message: Message) -> "Iterator[onnx.TensorProto | onnx.NodeProto]":
    """Yields every tensor and node anywhere: initialisers, attributes, subgraphs, functions, sparse parts."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        yield message
        return
    if isinstance(message, onnx.NodeProto):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if isinstance(value, Message) else value:
                yield from _parts(child)
