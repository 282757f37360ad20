"""Cuts a pruned network's ONNX file out of the dense one's in milliseconds; an export would take seconds.

These files are for timing alone. A published file has the trained weights (`formats.onnx_refill`) and is compared with
torch.
`same_as_exported` checks that both ways give the same file: it compares their bytes for one plan of the network.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from prunefront.pipelines.formats.example import Example, of_rows
from prunefront.pipelines.formats.onnx_export import export
from prunefront.pruners.cut.surgery import RemovedPositions, apply, removed_positions
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.reading import read_bytes

FOLDED_BIAS = "_bias"
"""Ending that the exporter appends to a weight's name for the bias that a batch norm becomes."""


def cut(dense: bytes, graph: ChannelGraph, plan: PruningPlan) -> bytes:
    """Returns the ONNX file of `surgery.apply(model, graph, plan)`, given that of `model`.

    dense: written by `onnx_export.export`. plan: only its channels count; blocks, and choices within layers, stay as
    they are. Cuts the tensors that have their name of the state dict, the biases that batch norms were folded into, the
    sizes that a flattening before a linear layer spells out, and the conv groups of depthwise convolutions. A network
    that spells out its widths elsewhere too comes out wrong, which `same_as_exported` detects.
    """
    proto = onnx.ModelProto.FromString(dense)
    going = removed_positions(graph, plan)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, tensor in tensors.items():
        if axes := _axes(name, going):
            values = numpy_helper.to_array(tensor)
            for dim, positions in axes.items():
                values = np.delete(values, positions, axis=dim)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))
    readers = {name: node for node in proto.graph.node for name in node.input}
    for node in proto.graph.node:
        if node.op_type == "Conv" and node.input[1] in graph.depthwise:
            for attribute in node.attribute:
                if attribute.name == "group":
                    dense_outputs = graph.shapes[node.input[1]][0]
                    attribute.i = attribute.i * tensors[node.input[1]].dims[0] // dense_outputs
        elif node.op_type == "Reshape" and node.input[1] in tensors:
            flatten_to(tensors[node.input[1]], readers.get(node.output[0]), tensors)
    written: bytes = proto.SerializeToString(deterministic=True)
    return written


def same_as_exported(
    dense: bytes, model: nn.Module, graph: ChannelGraph, plan: PruningPlan, example: Example
) -> bool:
    """Tells whether `cut` gives the bytes that an export of the pruned module gives. Takes as long as an export.

    model: network that `dense` was exported from with an example like this one.
    """
    with tempfile.TemporaryDirectory(prefix="prunefront-") as temporary:
        path = Path(temporary) / "model.onnx"
        export(apply(model, graph, plan), of_rows(example, 2), path)
        return cut(dense, graph, plan) == read_bytes(path, limit=2 << 30)


def _axes(name: str, going: RemovedPositions) -> dict[int, list[int]]:
    """Returns axis -> positions that an initialiser loses."""
    weight = name.removesuffix(FOLDED_BIAS)
    if name not in going and weight != name and 0 in going.get(weight, {}):
        return {0: going[weight][0]}
    return going.get(name, {})


def flatten_to(
    shape: onnx.TensorProto, reader: onnx.NodeProto | None, tensors: dict[str, onnx.TensorProto]
) -> None:
    """Sets the features of `x.reshape(-1, features)` to the number that the linear layer behind it now reads."""
    values = numpy_helper.to_array(shape)
    if reader is None or reader.op_type != "Gemm" or values.shape != (2,) or reader.input[1] not in tensors:
        return
    transposed = any(a.name == "transB" and a.i for a in reader.attribute)
    features = tensors[reader.input[1]].dims[1 if transposed else 0]
    shape.CopyFrom(numpy_helper.from_array(np.array([values[0], features], values.dtype), shape.name))
