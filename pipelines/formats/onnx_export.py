"""Writes networks as ONNX files, and compares these with torch."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from google.protobuf.message import Message
from torch import nn
from torch.utils import _pytree as pytree

from prunefront.atomic import write_whole
from prunefront.errors import NotTraceable, PrunefrontError
from prunefront.pipelines.formats.example import (
    NAMES,
    Example,
    arguments,
    by_keyword,
    feed,
    forward,
    free_axes,
    input_names,
    mapped,
    output_names,
    rows,
    traced_with,
)
from prunefront.pipelines.formats.onnx_runtime import ORT_ERRORS, open_session
from prunefront.pipelines.formats.same_outputs import batch_sizes, largest_difference
from prunefront.pruners.units.eval_mode import eval_mode
from prunefront.text import first_line


def export(model: nn.Module, example: Example, path: Path) -> None:
    """Writes `model` in eval mode as one self-contained ONNX file: input `images`, free batch axis 0.

    example: one input batch (n, ...), any n; only its shape and type matter. Several inputs are called as the
    forward calls them. The output of a network with one output is called `logits`, those of a mapping by their
    keys. The same network gives the same bytes, which name no path and no source file of this machine. The model is
    left as it was. Takes about 2 s (docs/decisions/0004-latency.md says why). Raises NotTraceable where torch
    cannot export the model, PrunefrontError where its batch size is hard-coded.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    args = arguments(mapped(lambda t: t.to(device), traced_with(example)))
    names = input_names(model, args)
    given, kwargs = by_keyword(model, args)
    # one object for all: under one name, axes of several inputs would count as different ones that turn out equal
    batch = "batch" if len(names) == 1 else torch.export.Dim("batch", min=1)
    with eval_mode(model), torch.no_grad(), _quiet():
        outputs = output_names(model(*args))
        try:
            program = torch.onnx.export(
                model,
                given,
                kwargs=kwargs or None,
                dynamo=True,
                dynamic_shapes=free_axes(model, given, kwargs, batch),
                input_names=names,
                output_names=outputs,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise NotTraceable(
                f"{type(model).__name__} cannot be exported to ONNX with a free batch size: "
                f"{_root_cause(error)}"
            ) from error
    assert program is not None  # only the old exporter, which writes files itself, returns None
    proto = program.model_proto
    dimension = proto.graph.input[0].type.tensor_type.shape.dim[0]
    if not dimension.dim_param:
        raise PrunefrontError(
            f"{type(model).__name__} only takes batches of {dimension.dim_value} once exported; take "
            "the batch size from the input in its forward, e.g. x.flatten(1)"
        )
    _strip(proto)
    if len(proto.graph.input) != len(names):
        proto.metadata_props.add(key=NAMES, value="|".join(names))
    data = proto.SerializeToString(deterministic=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(data))


def check(model: nn.Module, path: Path, examples: Example, tolerance: float = 1e-4) -> float:
    """Returns the largest absolute difference of the file's outputs from those of `model`, over batches of 1, 2, n.

    examples: (n, ...). Raises PrunefrontError where the difference exceeds `tolerance` times the largest output (or
    times 1, if all outputs are smaller), where a shape differs, or the file cannot be run.
    """
    session = open_session(path, threads=1)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    worst = 0.0
    for size in batch_sizes(rows(examples)):
        batch = mapped(lambda t, size=size: t[:size] if t.ndim else t, examples)
        with eval_mode(model), torch.no_grad():
            leaves = pytree.tree_leaves(forward(model, mapped(lambda t: t.to(device), batch)))
        expected = [leaf.detach().cpu().float().numpy() for leaf in leaves]
        try:
            actual = session.run(None, feed(session, batch))
        except ORT_ERRORS as error:
            raise PrunefrontError(f"{path} fails on a batch of {size}: {first_line(error)}") from None
        worst = max(worst, largest_difference(path, "torch", expected, actual, tolerance))
    return worst


def _strip(proto: onnx.ModelProto) -> None:
    """Removes the exporter's own debugging notes: stack traces, module paths, intermediate shapes."""
    del proto.graph.value_info[:]
    _strip_notes(proto)


def _strip_notes(message: Message) -> None:
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for child in [value] if isinstance(value, Message) else value:
                _strip_notes(child)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back four messages of the exporter that no user can act on, and nothing else."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    # a node that cannot be computed beforehand stays in the file, which `check` compares with the network
    folding = logging.getLogger("onnxscript.optimizer._constant_folding")

    def without_torchvision(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    def without_failed_folding(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Evaluation failed")

    registration.addFilter(without_torchvision)
    folding.addFilter(without_failed_folding)
    try:
        with warnings.catch_warnings():
            # torch copies its own tree specification
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            # several inputs share their batch axis, whose name is said of the first one alone
            warnings.filterwarnings("ignore", r"# The axis name: batch will not be used", UserWarning)
            yield
    finally:
        registration.removeFilter(without_torchvision)
        folding.removeFilter(without_failed_folding)


def _root_cause(error: BaseException) -> str:
    """Returns type and first line of the error that caused all others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"
