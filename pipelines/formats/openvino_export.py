"""Writes networks as OpenVINO's intermediate representation: an .xml file, and the weights in a .bin file beside it.

prunefront does not require OpenVINO: `pip install openvino` (60 MB, 180 MB installed). It is imported without its
telemetry, which reports the import to its maker and leaves a folder in the user's home.
"""

import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from prunefront.atomic import move_whole
from prunefront.errors import PrunefrontError
from prunefront.pipelines.formats.example import Example, feed, of_rows, rows
from prunefront.pipelines.formats.onnx_file import read_model
from prunefront.pipelines.formats.onnx_runtime import ORT_ERRORS, open_session
from prunefront.pipelines.formats.same_outputs import batch_sizes, largest_difference
from prunefront.text import one_line

_RUN_ERRORS: tuple[type[Exception], ...] = (RuntimeError, *ORT_ERRORS)  # OpenVINO raises the first


def export(source: Path | bytes, path: Path) -> None:
    """Writes the network in an ONNX file as `path` (.xml) and its weights, as they are, in the .bin file beside it.

    Raises PrunefrontError where OpenVINO is absent, `path` names no .xml file, or the ONNX file cannot be read.
    """
    if path.suffix != ".xml":
        raise PrunefrontError(
            f"OpenVINO's files are called .xml and .bin, got {path.name}; name the .xml file"
        )
    openvino = _import()
    data = read_model(source)
    open_session(data, threads=1)  # refuses a file that is no model, or keeps weights in other files
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        written = Path(temporary) / path.name
        try:
            openvino.save_model(openvino.Core().read_model(data), written, compress_to_fp16=False)
        except RuntimeError as error:
            raise PrunefrontError(f"OpenVINO cannot take the ONNX model: {one_line(error, 300)}") from None
        for suffix in (".bin", ".xml"):  # the .xml file last: readers open it
            move_whole(written.with_suffix(suffix), path.with_suffix(suffix))


def check(source: Path | bytes, path: Path, examples: Example, tolerance: float = 1e-4) -> float:
    """Returns the largest absolute difference of OpenVINO's outputs from ONNX Runtime's, over batches of 1, 2, n.

    source: the ONNX file. examples: (n, ...). Raises PrunefrontError where the difference exceeds `tolerance` times the
    largest output (or times 1, if all outputs are smaller), where a shape differs, or the files cannot be run.
    """
    session, openvino = open_session(source, threads=1), _import()
    try:
        core = openvino.Core()
        # on some processors it would round to 16 bits by itself
        compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        worst = 0.0
        for size in batch_sizes(rows(examples)):
            batch = feed(session, of_rows(examples, size))
            expected = session.run(None, batch)
            actual = [compiled(batch)[i] for i in range(len(compiled.outputs))]
            worst = max(worst, largest_difference(path, "the ONNX file", expected, actual, tolerance))
    except _RUN_ERRORS as error:
        raise PrunefrontError(f"{path} cannot be run: {one_line(error, 300)}") from None
    return worst


def _import() -> ModuleType:
    """Returns the module openvino, imported without its telemetry. Raises PrunefrontError where it is absent."""
    silent = "openvino_telemetry" not in sys.modules
    if silent:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # importing it fails, which is foreseen
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise PrunefrontError(
            f"OpenVINO's format needs the package openvino, which cannot be imported ({one_line(error, 300)}): "
            "pip install openvino"
        ) from None
    finally:
        if silent:
            del sys.modules["openvino_telemetry"]
