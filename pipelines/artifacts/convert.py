"""Converts a fetched artifact to another format, for `prunefront export`."""

import inspect
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from prunefront.atomic import move_whole
from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.fetch import check_artifact
from prunefront.pipelines.artifacts.manifest import FILES, MANIFEST
from prunefront.pipelines.artifacts.verify import torch_network
from prunefront.pipelines.config.sections import DataSection, ModelSection
from prunefront.pipelines.data import Inputs, Part, Parts, Split, Splits, batches
from prunefront.pipelines.data import open_data as load_splits
from prunefront.pipelines.formats import onnx_export, openvino_export, pt2_export
from prunefront.pipelines.formats.example import NAMES, Example
from prunefront.pipelines.formats.int8 import check_int8, quantise_onnx
from prunefront.pipelines.formats.onnx_file import read_model
from prunefront.pipelines.formats.onnx_runtime import open_session
from prunefront.pipelines.stores.store import ArtifactError, read_json_file

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "openvino": ".xml", "int8": ".onnx"}
"""File suffix of each format. OpenVINO's weights lie in a .bin file beside it."""

IMAGES = 512
"""Most training images that give int8 its ranges of activations, and most validation images that check it."""
BATCH = 128
"""Images per batch of the calibration."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted network. size_bytes: all its files together. difference: from the artifact's ONNX file, in words."""

    path: Path
    size_bytes: int
    difference: str

    def __str__(self) -> str:
        return f"{self.path}: {self.size_bytes:,} bytes; {self.difference}"


def convert(
    folder: Path,
    format: str,
    out: Path | None = None,
    *,
    factory: ModelSection | None = None,
    data: DataSection | None = None,
    exclude: tuple[str, ...] = (),
    agreement: float | None = None,
    overwrite: bool = False,
    splits: Callable[[DataSection], Splits | Parts] = load_splits,
    network: Callable[[Path, ModelSection | None], nn.Module] = torch_network,
) -> Converted:
    """Writes the network of a fetched artifact as ONNX, .pt2, OpenVINO's .xml and .bin, or ONNX in int8.

    out: file to write; None = `model` in the current folder. factory, data: sections of a study file that the user
    trusts, used in place of the artifact's own; a `module:callable` that only the artifact names is never imported.
    exclude: modules that stay float in int8. agreement: smallest fraction of images whose class int8 must keep.
    splits: loads the data, for int8. network: makes the torch network from the folder, for .pt2; the artifact's own
    .pt2 is not loaded, since that could run code. Nothing is written unless digests, and the new file's outputs, are
    right. Raises PrunefrontError.
    """
    if format not in SUFFIXES:
        raise PrunefrontError(f"there is no format {format!r}; possible: {', '.join(SUFFIXES)}")
    if out is None:
        out = Path("model.int8.onnx" if format == "int8" else f"model{SUFFIXES[format]}")
    _check_place(folder, format, out, overwrite)
    check_artifact(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        draft, source = Path(temporary) / out.name, folder / "model.onnx"
        if format == "onnx":
            draft.write_bytes(read_model(source))
            difference = "the artifact's own file, its digest checked"
        elif format == "openvino":
            openvino_export.export(source, draft)
            # integers are rounded elsewhere otherwise: some logits differ by a level
            rounded = 0.02 if _plan(folder).get("onnx") == "int8" else 1e-4
            worst = openvino_export.check(source, draft, _examples(source), rounded)
            difference = f"outputs within {worst:.2g}"
        elif format == "pt2":
            difference = _pt2(folder, draft, network(folder, factory))
        else:
            difference = _int8(folder, draft, data, splits, exclude, agreement)
        files = sorted(Path(temporary).iterdir())  # a .bin comes before its .xml, which is what is opened
        size = sum(file.stat().st_size for file in files)
        for file in files:
            move_whole(file, out.with_suffix(file.suffix))
    return Converted(out, size, difference)


def _check_place(folder: Path, format: str, out: Path, overwrite: bool) -> None:
    if out.suffix != SUFFIXES[format]:
        raise PrunefrontError(
            f"a file in the format {format!r} is called *{SUFFIXES[format]}, got {out.name!r}; rename it"
        )
    if out.name in (*FILES, MANIFEST) and out.absolute().parent.resolve() == folder.resolve():
        raise PrunefrontError(f"{out} is a file of the artifact, which stays as it is; choose another place")
    taken = [p for p in (out, out.with_suffix(".bin")) if p.exists() and (p == out or format == "openvino")]
    if taken and not overwrite:
        raise PrunefrontError(f"{taken[0]} exists; choose another name, or replace it with --replace")


def _pt2(folder: Path, draft: Path, model: nn.Module) -> str:
    source = folder / "model.onnx"
    examples = _examples(source, model)
    pt2_export.export(model, examples, draft)
    worst = pt2_export.check(model, draft, examples)
    if _plan(folder).get("onnx") == "int8":
        return f"outputs within {worst:.2g} of the torch network's; the ONNX file computes in integers"
    return f"outputs within {max(worst, onnx_export.check(model, source, examples)):.2g}"


def _int8(
    folder: Path,
    draft: Path,
    data: DataSection | None,
    splits: Callable[[DataSection], Splits | Parts],
    exclude: tuple[str, ...],
    agreement: float | None,
) -> str:
    if _plan(folder).get("onnx") == "int8":
        raise PrunefrontError(
            "the artifact's model.onnx computes in integers already; the format onnx copies it"
        )
    told = _plan(folder).get("task")
    classifies = told is None or (isinstance(told, dict) and told.get("name") == "classification")
    if agreement is not None and not classifies:
        raise PrunefrontError(
            "the least share of samples that keep their class is of networks that classify, and this one does not; "
            "leave it out, and compare the files' quality"
        )
    loaded = splits(data or _data_of(folder))
    source = folder / "model.onnx"
    quantise_onnx(source, _images(loaded, "train"), draft, exclude=exclude)
    found = check_int8(source, draft, _images(loaded, "validation"), agreement=agreement)
    same = f"the same class for {found.agreement:.2%} of" if classifies else "on"
    return f"{same} {found.images} validation images, outputs within {found.relative:.2%} of the largest"


def _plan(folder: Path) -> dict[str, object]:
    """Returns the content of an artifact's plan.json. Raises ArtifactError."""
    file = folder / "plan.json"
    plan = read_json_file(file)
    if not isinstance(plan, dict):
        raise ArtifactError(f"{file} must hold an object")
    return plan


def _data_of(folder: Path) -> DataSection:
    try:
        section = DataSection.model_validate(_plan(folder).get("data"))
    except ValidationError as error:
        raise ArtifactError(f"{folder / 'plan.json'}: data: {error.errors()[0]['msg']}") from None
    if ":" in section.source:
        raise PrunefrontError(
            f"the images to calibrate on come from {section.source!r}, code that an artifact may not import; "
            "pass the study file that names it"
        )
    if section.stored:
        raise PrunefrontError(
            "the images to calibrate on come from S3, and this machine's credentials are not for an artifact to use; "
            "pass the study file that names them"
        )
    return section


def _images(splits: Splits | Parts, name: Part) -> Iterator[Inputs]:
    """Yields batches from all over a part, which may be sorted by class; of streams and own data, shuffled ones."""
    if isinstance(splits, Splits):
        split: Split = getattr(splits, name)
        chosen = split[:: max(1, -(-len(split) // IMAGES))]
        return (Inputs((images,)) for images, _ in batches(chosen, splits.transform, BATCH))
    part = splits.part(name)
    if name == "validation":  # compared plain, as it is judged
        return (batch.inputs for batch in part.first(IMAGES).batches(BATCH))
    shuffled = part.batches(BATCH, rng=np.random.default_rng(0))
    return (batch.inputs for batch in islice(shuffled, IMAGES // BATCH))


def _examples(source: Path, model: nn.Module | None = None) -> Example:
    """Returns three inputs for an ONNX file, by place: normal noise, and zeros where integers are taken.

    model: says at which place each of several inputs goes. Raises PrunefrontError for inputs of any size, and for ones
    that are no parameters of its forward.
    """
    session = open_session(source, threads=1)
    found = {}
    for entry in session.get_inputs():
        shape = entry.shape[1:]
        if not all(isinstance(size, int) for size in shape):
            raise PrunefrontError(f"{source} takes inputs of any size {shape}; possible is one size")
        if entry.type == "tensor(float)":
            noise = np.random.default_rng(0).standard_normal((3, *shape), dtype=np.float32)
            found[entry.name] = torch.from_numpy(noise)
        else:
            found[entry.name] = torch.zeros((3, *shape), dtype=KINDS.get(entry.type, torch.int64))
    if len(found) == 1 or model is None:
        values = tuple(found.values())
        return values[0] if len(values) == 1 else values
    places = [*inspect.signature(model.forward).parameters]
    listed = session.get_modelmeta().custom_metadata_map.get(NAMES)
    if missing := [
        name for name in (listed.split("|") if listed else found) if name not in places or name not in found
    ]:
        raise PrunefrontError(
            f"the network's input {missing[0]!r} is part of another one, or has no effect, so that no example of it "
            "can be made; the artifact's model.pt2 is that file already"
        )
    return tuple(found.get(name) for name in places[: max(map(places.index, found)) + 1])


KINDS = {"tensor(bool)": torch.bool, "tensor(int32)": torch.int32, "tensor(double)": torch.float64}
"""Type of an ONNX input -> torch's, where it is neither float nor int64."""
