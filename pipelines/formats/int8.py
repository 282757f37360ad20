"""Quantises ONNX files to 8-bit integers, weights and activations, for ONNX Runtime on the CPU.

Weights become int8, symmetric, with a scale for each output channel. Activations become uint8, asymmetric; their ranges
are the extremes over calibration images. Biases are int32. The float graph gets QuantizeLinear/DequantizeLinear pairs
(QDQ). ONNX Runtime fuses these into integer kernels when it loads the file; any other runtime may compute them as they
stand.

Activations are uint8 rather than int8, because a ReLU then costs nothing: its range starts at the integer 0, and the
convolution before it can clip. With int8, half of ResNet-20's convolutions stayed float: 1.2 times float's latency
rather than 0.44 (AMD EPYC 9004, ONNX Runtime 1.32, one thread, a busy machine). On an x86 CPU without VNNI (before
Cascade Lake, Zen 4) sums of two products saturate at 16 bits: pass `reduce_range`, which gives the weights 7 bits.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from prunefront.atomic import write_whole
from prunefront.errors import PrunefrontError
from prunefront.pipelines.data.samples import Inputs
from prunefront.pipelines.formats.example import NAMES, Example, arguments, feed
from prunefront.pipelines.formats.example import rows as rows_of
from prunefront.pipelines.formats.onnx_file import read_model
from prunefront.pipelines.formats.onnx_runtime import ORT_ERRORS, onnxruntime, open_session
from prunefront.text import one_line

INTEGER_OPS = (
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Conv",
    "Flatten",
    "Gather",
    "Gemm",
    "GlobalAveragePool",
    "LeakyRelu",
    "MatMul",
    "MaxPool",
    "Mul",
    "Pad",
    "Relu",
    "Reshape",
    "Resize",
    "Sigmoid",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""Operators that ONNX Runtime's CPU kernels compute in integers, or that only move data. All others stay float."""

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that multiply with a module's weights."""

FEW_INPUTS = 32
"""Least number of inputs per conv group at which a grouped convolution becomes integer. With fewer the integer kernel
takes 1 to 5 times float's time (measured at 4 to 32 inputs). Depthwise convolutions become integer all the same."""


Given = Example | Inputs
"""A batch: by place, or as the data have it, with keyword arguments."""


class Int8Error(PrunefrontError):
    """An ONNX file cannot be quantised in this way, or the result is not good enough."""


@dataclass(frozen=True, slots=True)
class Int8Difference:
    """Distance of an int8 file from the float file.

    relative: largest difference of an output, as a fraction of the largest float output. agreement: fraction of the
    images whose largest output is the same one. images: number of images compared.
    """

    relative: float
    agreement: float
    images: int


def quantise_onnx(
    source: Path | bytes,
    calibration: Iterable[Given],
    target: Path,
    *,
    exclude: Collection[str] = (),
    weights: Mapping[str, Tensor] | None = None,
    per_channel: bool = True,
    reduce_range: bool = False,
) -> None:
    """Writes the float network `source`, as `onnx_export.export` writes it, in 8-bit integers to `target`.

    calibration: batches (n, ...) of plain, normalised images, or of whatever the network takes. exclude: paths of
    modules whose layers stay float, those below them included; a tensor that only such layers read is not rounded.
    weights: the network's state dict, needed to find an excluded layer whose weight has another name in the file
    (torch's exporter transposes that of a linear layer without bias on three axes). reduce_range: see above.

    Batch norms that no convolution took in become 1x1 depthwise convolutions, and products with a constant left matrix
    become convolutions, because these have integer kernels. The output of a last linear layer is not rounded. The batch
    axis stays free. The same input gives the same bytes. Raises PrunefrontError for a file that is no such network or
    holds integers already, for no or unusable calibration images, and for an excluded path without a layer.
    """
    # not above: the import takes 0.3 s, and few workers quantise
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

    data = read_model(source)
    open_session(data, threads=1)  # refuses a file that is no model, or keeps weights in other files
    model = onnx.shape_inference.infer_shapes(ModelProto.FromString(data))
    if holds_integers(data):
        raise Int8Error("the ONNX model computes in integers already; give the float network")
    excluded = {node for path in exclude for node in nodes_of(model, path, weights or {})}
    staying = float_nodes(model, excluded)
    rewrite_for_integers(model, staying)
    ranges = activation_ranges(model, calibration)
    with _quiet():
        quantiser = QDQQuantizer(
            model,
            per_channel,
            reduce_range,
            QuantType.QInt8,
            QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, ranges),
            [],
            staying,
            list(INTEGER_OPS),
            {},
        )
        quantiser.quantize_model()
    written: ModelProto = quantiser.model.model
    _keep_last_sums(written)
    _keep_float(written, staying)
    quantiser.model.topological_sort()
    names = [(entry.key, entry.value) for entry in written.metadata_props if entry.key == NAMES]
    for field in ("metadata_props", "doc_string"):
        written.ClearField(field)
    for key, value in names:
        written.metadata_props.add(key=key, value=value)
    written.producer_name, written.producer_version = "prunefront", ""
    del written.graph.value_info[:]
    result = written.SerializeToString(deterministic=True)
    open_session(result, threads=1)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, lambda file: file.write(result))


def holds_integers(onnx_file: bytes) -> bool:
    """Tells whether a network's activations or weights are rounded to integers."""
    nodes = ModelProto.FromString(onnx_file).graph.node
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in nodes)


def check_int8(
    source: Path | bytes, target: Path | bytes, images: Iterable[Given], *, agreement: float | None = None
) -> Int8Difference:
    """Returns the difference of the int8 file's outputs from the float file's on batches (n, ...) of images.

    Its `agreement` is that of the first output. agreement: least fraction of the images that must keep their largest
    output. Raises Int8Error for a smaller one, and for an output that is not finite or has another shape.
    """
    float_session, session = open_session(source, threads=1), open_session(target, threads=1)
    name = "the int8 network" if isinstance(target, bytes) else str(target)
    worst = largest = 0.0
    same = seen = 0
    for batch in images:
        expected, actual = _run(float_session, batch), _run(session, batch)
        if [e.shape for e in expected] != [a.shape for a in actual]:
            raise Int8Error(f"{name} gives outputs of other shapes than the float network")
        for theirs, mine in zip(expected, actual, strict=True):
            if not (np.isfinite(theirs).all() and np.isfinite(mine).all()):
                raise Int8Error(f"{name} or the float network gives outputs that are not finite")
            worst = max(worst, float(np.abs(theirs - mine).max(initial=0.0)))
            largest = max(largest, float(np.abs(theirs).max(initial=0.0)))
        rows = _rows(batch)
        chosen = [outputs[0].reshape(rows, -1).argmax(1) for outputs in (expected, actual)]
        same, seen = same + int((chosen[0] == chosen[1]).sum()), seen + rows
    if seen == 0:
        raise Int8Error(f"{name} cannot be compared without images")
    difference = Int8Difference(worst / largest if largest > 0 else worst, same / seen, seen)
    if agreement is not None and difference.agreement < agreement:
        raise Int8Error(
            f"{name} chooses the float network's class for {difference.agreement:.1%} of {seen} images, needed are "
            f"{agreement:.1%}; keep sensitive layers float (often the first and the depthwise ones), or calibrate on "
            "more images"
        )
    return difference


def nodes_of(model: ModelProto, path: str, weights: Mapping[str, Tensor]) -> frozenset[str]:
    """Returns the names of the nodes that multiply with the weights of a module, or of modules below it.

    A node belongs to the module after which its weight is named. Where the exporter renamed the weight, the bias that
    is added next tells the module, or the one tensor of `weights` (a state dict) that holds the same values. Raises
    Int8Error where there is no such node.
    """
    owners = _owners(model, weights)
    names = frozenset(node for node, owner in owners.items() if owner == path or owner.startswith(f"{path}."))
    if not names:
        known = sorted(owner for owner in set(owners.values()) if owner)
        raise Int8Error(
            f"the ONNX model has no layer {path!r} that could stay float; it has: {', '.join(known)[:600]}"
        )
    return names


def float_nodes(model: ModelProto, excluded: Collection[str]) -> list[str]:
    """Returns the names of the nodes that stay float: layers that are excluded or slower in integers, and nodes that
    only these read.

    model: with inferred shapes.
    """
    constants, ranks = _constants(model), _ranks(model)
    layers = {n.name for n in model.graph.node if n.op_type in LAYERS and constants.keys() & set(n.input)}
    floats = {
        n.name for n in model.graph.node if n.name in excluded or _slow_in_integers(n, constants, ranks)
    }
    read: set[str] = (
        set()
    )  # names of tensors that an integer layer reads, directly or through other operators
    for node in reversed(model.graph.node):
        if (node.name in layers and node.name not in floats) or (
            node.name not in layers and not read.isdisjoint(node.output)
        ):
            read.update(node.input)
        else:
            floats.add(node.name)
    return sorted(floats)


def rewrite_for_integers(model: ModelProto, staying: Collection[str] = ()) -> None:
    """Rewrites nodes without an integer kernel as convolutions that compute the same, see `quantise_onnx`.

    model: with inferred shapes; changed in place. staying: names of nodes that stay as they are.
    """
    graph = model.graph
    constants, ranks = _constants(model), _ranks(model)
    for node in graph.node:
        if node.name in staying:
            continue
        if node.op_type == "BatchNormalization" and _is_affine(node, constants, ranks):
            scale, shift, mean, variance = (constants[n].astype(np.float64) for n in node.input[1:5])
            epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
            factor = scale / np.sqrt(variance + epsilon)
            kernel = factor.reshape(-1, *[1] * (ranks[node.input[0]] - 1))
            _become_conv(model, node, node.input[0], kernel, shift - mean * factor, len(factor))
        elif node.op_type == "MatMul" and _is_pointwise(node, constants, ranks):
            _become_conv(model, node, node.input[1], constants[node.input[0]][..., None], None, 1)
    used = {name for node in graph.node for name in node.input} | {v.name for v in graph.output}
    still_used = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(still_used)


def activation_ranges(
    model: ModelProto, calibration: Iterable[Given]
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Returns the smallest and largest value of every float tensor that the network computes, its inputs included.

    model: with inferred types. calibration: batches (n, ...). Raises Int8Error for no batches, and for infinite values.
    """
    watched = ModelProto()
    watched.CopyFrom(model)
    graph = watched.graph
    typed = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    names = [v.name for v in graph.input]
    names += [output for node in graph.node for output in node.output]
    names = [name for name in names if typed.get(name) == TensorProto.FLOAT]
    del graph.output[:]
    for i, name in enumerate(names):
        for op in ("Min", "Max"):
            # a name that no tensor of the network has
            output = f"prunefront range {op} {i}"
            graph.node.append(helper.make_node(f"Reduce{op}", [name], [output], name=output, keepdims=0))
            graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    session = open_session(watched.SerializeToString(), threads=1)
    low, high = np.full(len(names), np.inf, np.float32), np.full(len(names), -np.inf, np.float32)
    for batch in calibration:
        extremes = np.asarray(_run(session, batch), dtype=np.float32)
        low, high = np.minimum(low, extremes[0::2]), np.maximum(high, extremes[1::2])
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        # without a batch the infinities from the start are left; NumPy's minimum passes NaN on
        raise Int8Error(
            "the calibration images give no finite range of activations: pass at least one batch, and a network "
            "whose outputs are finite"
        )
    return {name: (low[i], high[i]) for i, name in enumerate(names)}


def _become_conv(
    model: ModelProto,
    node: NodeProto,
    images: str,
    kernel: NDArray[Any],
    bias: NDArray[Any] | None,
    groups: int,
) -> None:
    """Turns a node into a 1x1 convolution of the tensor `images` with the same output."""
    names = [f"{node.output[0]}_kernel"] + [f"{node.output[0]}_bias"] * (bias is not None)
    values = [kernel] + ([] if bias is None else [bias])
    model.graph.initializer.extend(
        numpy_helper.from_array(v.astype(np.float32), n) for n, v in zip(names, values, strict=True)
    )
    shape = [1] * (kernel.ndim - 2)
    node.CopyFrom(
        helper.make_node(
            "Conv", [images, *names], [node.output[0]], name=node.name, kernel_shape=shape, group=groups
        )
    )


def _is_affine(node: NodeProto, constants: Mapping[str, NDArray[Any]], ranks: Mapping[str, int]) -> bool:
    """Tells whether a batch norm has constant parameters, and an input with more than two axes."""
    known = all(name in constants for name in node.input[1:5]) and len(node.output) == 1
    return known and ranks.get(node.input[0], 0) > 2


def _is_pointwise(node: NodeProto, constants: Mapping[str, NDArray[Any]], ranks: Mapping[str, int]) -> bool:
    """Tells whether a product multiplies a constant matrix with each of a batch of matrices."""
    left = constants.get(node.input[0])
    return left is not None and left.ndim == 2 and ranks.get(node.input[1]) == 3


def _slow_in_integers(
    node: NodeProto, constants: Mapping[str, NDArray[Any]], ranks: Mapping[str, int]
) -> bool:
    if node.op_type == "MatMul":
        # the integer product takes one scale for the left matrix, and cannot fuse a constant one
        return node.input[0] in constants and not _is_pointwise(node, constants, ranks)
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    if node.op_type != "Conv" or groups == 1 or node.input[1] not in constants:
        return False
    outputs, inputs = constants[node.input[1]].shape[:2]
    return 1 < int(inputs) < FEW_INPUTS or (inputs == 1 and outputs != groups)


def _owners(model: ModelProto, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns the module path of each node that multiplies with a constant; "" where it cannot be told."""
    constants = _constants(model)
    adds = {name: node for node in model.graph.node if node.op_type == "Add" for name in node.input}
    owners = {}
    for node in model.graph.node:
        if node.op_type not in LAYERS:
            continue
        held = [name for name in node.input[:2] if name in constants]
        if not held:
            continue
        following = adds.get(node.output[0])
        biases = [name for name in following.input if name in constants] if following is not None else []
        named = [name for name in (*held, *node.input[2:], *biases) if _module(name)]
        owners[node.name] = _module(named[0]) if named else _same_values(constants[held[0]], weights)
    return owners


def _module(name: str) -> str:
    """Returns `layer1.0.conv1` for `layer1.0.conv1.weight`; "" for a name with another ending."""
    path, _, leaf = name.rpartition(".")
    return path if leaf in ("weight", "bias") else ""


def _same_values(values: NDArray[Any], weights: Mapping[str, Tensor]) -> str:
    """Returns the module of the one tensor that holds these values, in any order of axes; "" unless there is one."""
    ordered = np.sort(values, axis=None)
    names = {
        name
        for name, tensor in weights.items()
        if tensor.numel() == values.size
        and np.array_equal(ordered, np.sort(tensor.detach().float().cpu().numpy(), axis=None))
    }
    return names.pop().rpartition(".")[0] if len(names) == 1 else ""


def _keep_last_sums(model: ModelProto) -> None:
    """Removes the rounding of outputs that a linear layer computes: its integer kernel can return float sums."""
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    readers = [name for node in graph.node for name in node.input]
    for output in graph.output:
        restored = makers.get(output.name)
        if restored is None or restored.op_type != "DequantizeLinear":
            continue
        rounded = makers.get(restored.input[0])
        maker = makers.get(rounded.input[0]) if rounded is not None else None
        alone = rounded is not None and all(
            readers.count(name) == n
            for name, n in ((output.name, 0), (rounded.output[0], 1), (rounded.input[0], 1))
        )
        if rounded is None or maker is None or not alone or maker.op_type not in ("Gemm", "MatMul"):
            continue
        maker.output[0] = output.name
        graph.node.remove(rounded)
        graph.node.remove(restored)


def _keep_float(model: ModelProto, staying: Collection[str]) -> None:
    """Inserts a DequantizeLinear with a scale per channel before each layer that stays float.

    ONNX Runtime 1.32 would quantise the float weights of a layer between two roundings by itself, with one scale for
    all of them (its WeightBiasQuantization), but only behind a DequantizeLinear with a single scale. The scales here
    are all the same, so nothing else changes.
    """
    graph = model.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    for node in [
        n for n in graph.node if n.name in staying and n.op_type in ("Conv", "ConvTranspose", "Gemm")
    ]:
        restored = makers.get(node.input[0])
        if restored is None or restored.op_type != "DequantizeLinear" or node.input[1] not in constants:
            continue
        channels = _inputs_of(node, constants[node.input[1]])
        own = [f"{node.output[0]} float {part}" for part in ("scale", "zero", "input")]
        for name, of in zip(own, restored.input[1:], strict=False):
            repeated = np.repeat(constants[of].reshape(1), channels)
            graph.initializer.append(numpy_helper.from_array(repeated, name))
        graph.node.append(
            helper.make_node(
                "DequantizeLinear", [restored.input[0], *own[:2]], own[2:], name=f"{node.name} float", axis=1
            )
        )
        node.input[0] = own[2]


def _inputs_of(node: NodeProto, weight: NDArray[Any]) -> int:
    """Returns the number of input channels or features of a convolution or Gemm."""
    attributes = {a.name: int(a.i) for a in node.attribute}
    if node.op_type == "Conv":
        return int(weight.shape[1]) * attributes.get("group", 1)
    return int(weight.shape[1 if node.op_type == "Gemm" and attributes.get("transB", 0) else 0])


def _ranks(model: ModelProto) -> dict[str, int]:
    """Returns the number of axes of each tensor whose shape was inferred."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {v.name: len(v.type.tensor_type.shape.dim) for v in values if v.type.tensor_type.HasField("shape")}


def _constants(model: ModelProto) -> dict[str, NDArray[Any]]:
    """Returns the float constants by name."""
    return {
        t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT
    }


def _rows(batch: Given) -> int:
    return len(batch.tensors()[0]) if isinstance(batch, Inputs) else rows_of(batch)


def _run(session: onnxruntime.InferenceSession, batch: Given) -> list[NDArray[Any]]:
    named = batch if isinstance(batch, Inputs) else Inputs(arguments(batch))
    try:
        outputs: list[NDArray[Any]] = session.run(None, feed(session, named.args, named.kwargs))
    except ORT_ERRORS as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in named.tensors())
        raise Int8Error(f"the ONNX model fails on inputs {shapes}: {one_line(error, 300)}") from None
    return outputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back the lines that onnxruntime logs to the root logger, to which it would also add a handler."""
    root, silent = logging.getLogger(), logging.NullHandler()

    def not_onnxruntime(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in record.pathname

    root.addHandler(silent)
    root.addFilter(not_onnxruntime)
    try:
        yield
    finally:
        root.removeFilter(not_onnxruntime)
        root.removeHandler(silent)
