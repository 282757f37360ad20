"""Whether a fetched artifact is what it says: digests first, then everything recorded is measured again."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.publish import measure_file, read_manifest
from prunefront.pipelines.config.sections import DataSection, ModelSection
from prunefront.pipelines.data import Split, Splits, Transform, batches
from prunefront.pipelines.formats.onnx_export import ORT_ERRORS, open_session
from prunefront.pipelines.measure.accuracy import Accuracy, accuracy, wilson
from prunefront.pipelines.stores.store import ArtifactError, parse_json
from prunefront.pruners.graph.plan import PruningPlan

S = TypeVar("S", bound=BaseModel)

CHECKED_INPUTS = 4
"""The first so many test images' logits are recorded."""
OUTPUT_TOLERANCE = 1e-3
"""Logits may differ by this fraction of the largest recorded one: sums are ordered otherwise elsewhere."""
MOST = 1 << 20
"""Classes, channels or pixels along an axis that an artifact may name."""
FLIP_TOLERANCE = 1e-3
"""The accuracy may differ by this fraction of the test images, and in any case by one image."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing recorded in the artifact and what it turned out to be, both as text."""

    name: str
    recorded: str
    measured: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Verification:
    """Every check that was made. skipped: what could not be checked, and why; that makes nothing wrong."""

    checks: tuple[Check, ...]
    skipped: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        checks = [
            {"name": c.name, "recorded": c.recorded, "measured": c.measured, "ok": c.ok} for c in self.checks
        ]
        return {"ok": self.ok, "checks": checks, "skipped": list(self.skipped)}


@dataclass(frozen=True, slots=True)
class Recorded:
    """What plan.json and measurement.json say, checked for form. logits: (k, classes), finite.

    integers: whether the ONNX network computes in integers, so that torch's floats differ from it. plan_key, achieved:
    as stated. planned_key, planned: the same, worked out from the plan.
    """

    key: str
    model: ModelSection
    data: DataSection
    plan: PruningPlan
    integers: bool
    plan_key: str
    planned_key: str
    planned: Mapping[str, float]
    shapes: Mapping[str, tuple[int, ...]]
    accuracy: float
    images: int
    params: int
    achieved: Mapping[str, float]
    logits: NDArray[np.float64]


def verify(
    folder: Path,
    *,
    splits: Callable[[DataSection], Splits],
    factory: ModelSection | None = None,
    data: DataSection | None = None,
) -> Verification:
    """Checks a fetched artifact: files, plan against weights, then outputs and accuracy again.

    splits: loads the data, `data.load`. factory, data: sections of a study file that the user trusts;
    they stand in for what the artifact names. A `module:callable` that only the artifact names is never
    imported, and no store that only the artifact names is asked: without `factory` torch is skipped, without `data`
    there is nothing to measure on, an error.
    Where a digest differs, nothing else is looked at. Raises PrunefrontError for a folder that holds no
    artifact, or one without figures.
    """
    files = tuple(_check_files(folder))
    if not all(check.ok for check in files):
        return Verification(files, ("everything else: the files are not those that were published",))
    recorded = read_recorded(folder)
    section = data or recorded.data
    if data is None and ":" in section.source:
        raise PrunefrontError(
            f"the test images come from {section.source!r}, code that an artifact may not import; "
            "pass the study file that names it"
        )
    if data is None and section.stored:
        raise PrunefrontError(
            "the test images come from S3, and this machine's credentials are not for an artifact to use; pass the "
            "study file that names them"
        )
    loaded = splits(section)
    checks = (*files, *_check_plan(folder, recorded), *_check_onnx(folder, recorded, loaded))
    model = factory or _built_in(recorded.model)
    if model is None:
        name = recorded.model.factory
        reason = f"torch: {name!r} is code that an artifact may not import; pass the study file that names it"
        return Verification(checks, (reason,))
    skipped = ("outputs and accuracy in torch: the ONNX network computes in integers",) * recorded.integers
    return Verification((*checks, *_check_torch(folder, recorded, loaded, model)), skipped)


def torch_network(folder: Path, factory: ModelSection | None = None) -> nn.Module:
    """The torch network of a fetched artifact. factory: of a study file that the user trusts.

    Raises PrunefrontError where only the artifact names the code that makes its network, or a file is not as it should.
    """
    # what only needs the ONNX file should not import the zoo
    from prunefront.pipelines.models import build
    from prunefront.pruners.saved import load_network

    plan = _Entries(folder / "plan.json")
    model = factory or _built_in(plan.section("model", ModelSection))
    if model is None:
        raise PrunefrontError(
            f"the network comes from {plan.get('model', dict)['factory']!r}, code that an artifact may not import; "
            "pass the study file that names it"
        )
    classes, shape = plan.get("classes", int), plan.get("input_shape", list)
    whole = len(shape) == 3 and all(type(n) is int and 0 < n <= MOST for n in (*shape, classes))
    if not whole:
        raise ArtifactError(f"{plan.file} has no usable number of classes and shape of images")
    return load_network(build(model, classes=classes, input_shape=tuple(shape)), folder)


def onnx_outputs(onnx: bytes, split: Split, transform: Transform) -> list[list[float]]:
    """Logits of every image of a (small) split: rows of `classes` numbers. Raises PrunefrontError."""
    return [row for logits, _ in _run(onnx, split, transform, threads=1) for row in logits.tolist()]


def onnx_accuracy(onnx: bytes, split: Split, transform: Transform, *, threads: int) -> Accuracy:
    """Accuracy of an ONNX file, with its 95 % interval, on the split's plain images. Raises PrunefrontError."""
    right = sum(
        int((logits.argmax(1) == labels).sum())
        for logits, labels in _run(onnx, split, transform, threads=threads)
    )
    return Accuracy(right / len(split), *wilson(right, len(split)), len(split))


def read_recorded(folder: Path) -> Recorded:
    """What the artifact in `folder` says about itself. Raises ArtifactError naming a wrong entry."""
    plan = _Entries(folder / "plan.json")
    measured = _Entries(folder / "measurement.json")
    shapes = plan.get("shapes", dict)
    outputs = _Entries(measured.file, measured.get("outputs", dict), "outputs.")
    achieved = measured.get("achieved", dict)
    stated = plan.get("plan", dict)
    try:
        pruning = PruningPlan.from_json(stated)
        return Recorded(
            key=measured.get("key", str),
            model=plan.section("model", ModelSection),
            data=plan.section("data", DataSection),
            plan=pruning,
            integers=plan.get("onnx", str) == "int8",
            plan_key=str(stated["key"]),
            planned_key=pruning.key(),
            planned=pruning.achieved_ratios(),
            shapes={str(name): tuple(int(n) for n in shape) for name, shape in shapes.items()},
            accuracy=float(measured.get("accuracy", (int, float))),
            images=measured.get("images", int),
            params=measured.get("params", int),
            achieved={str(name): float(ratio) for name, ratio in achieved.items()},
            logits=_recorded_logits(outputs),
        )
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # what plain code makes of JSON that has the wrong form
        raise ArtifactError(
            f"{folder}: plan.json or measurement.json is not what prunefront writes ({type(error).__name__}: "
            f"{error!s:.120})"
        ) from None


class _Entries:
    """The entries of a JSON object that is not trusted."""

    def __init__(self, file: Path, data: object = None, prefix: str = "") -> None:
        self.file, self.prefix = file, prefix
        self.data = parse_json(file.read_text(errors="replace"), source=str(file)) if data is None else data
        if not isinstance(self.data, dict):
            raise ArtifactError(f"{file} must hold an object")

    def get(self, key: str, kind: type | tuple[type, ...]) -> Any:
        if key not in self.data:
            raise ArtifactError(
                f"{self.file} lacks {self.prefix}{key}: only a network of a reported front can be verified"
            )
        value = self.data[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ArtifactError(f"{self.file}: {self.prefix}{key} = {value!r:.60} has the wrong type")
        return value

    def section(self, key: str, kind: type[S]) -> S:
        try:
            return kind.model_validate(self.get(key, dict))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ArtifactError(f"{self.file}: {key}.{where}: {first['msg']}") from None


def _recorded_logits(outputs: _Entries) -> NDArray[np.float64]:
    described = outputs.get("inputs", str)
    logits = np.asarray(outputs.get("logits", list), dtype=np.float64)
    match = re.fullmatch(r"test\[:(\d{1,4})\]", described)
    whole = logits.ndim == 2 and logits.size > 0 and bool(np.isfinite(logits).all())
    if match is None or not whole or len(logits) != int(match[1]):
        raise ArtifactError(
            f"{outputs.file}: outputs must hold k rows of finite logits of 'test[:k]', got {logits.shape} of "
            f"{described!r:.40}"
        )
    return logits


def _check_files(folder: Path) -> Iterator[Check]:
    for name, record in read_manifest(folder).files.items():
        try:
            measured = measure_file(folder / name)
        except OSError as error:
            yield Check(f"digest of {name}", record.sha256[:12], str(error.strerror), False)
        else:
            yield Check(f"digest of {name}", record.sha256[:12], measured.sha256[:12], measured == record)


def _check_plan(folder: Path, recorded: Recorded) -> Iterator[Check]:
    name, planned = read_manifest(folder).name, recorded.planned
    yield Check("key", recorded.key, name, recorded.key == name)
    key = recorded.planned_key
    yield Check("plan key", recorded.plan_key, key, recorded.plan_key == key)
    stored, shapes = _stored_shapes(folder / "weights.safetensors"), recorded.shapes
    differing = [n for n in sorted(stored.keys() | shapes.keys()) if stored.get(n) != shapes.get(n)]
    if differing:
        first = differing[0]
        yield Check("shapes", f"{first} {shapes.get(first)}", f"{first} {stored.get(first)}", False)
    else:
        yield Check("shapes", f"{len(shapes)} tensors", f"{len(stored)} tensors", True)
    same = planned.keys() == recorded.achieved.keys() and all(
        abs(ratio - recorded.achieved[group]) < 1e-5 for group, ratio in planned.items()
    )
    yield Check("achieved ratios", _mean(recorded.achieved), _mean(planned), same)


def _check_onnx(folder: Path, recorded: Recorded, splits: Splits) -> Iterator[Check]:
    test = splits.test
    yield Check("test images", str(recorded.images), str(len(test)), recorded.images == len(test))
    onnx = (folder / "model.onnx").read_bytes()
    logits = onnx_outputs(onnx, test[: len(recorded.logits)], splits.transform)
    yield _compare_logits("outputs (onnx)", recorded, logits)
    measured = onnx_accuracy(onnx, test, splits.transform, threads=torch.get_num_threads())
    yield _compare_accuracy("accuracy (onnx)", recorded, measured)


def _check_torch(folder: Path, recorded: Recorded, splits: Splits, section: ModelSection) -> Iterator[Check]:
    """Of the network that the plan makes of the factory's dense one, with the stored weights."""
    # what only needs the ONNX file should not import the zoo
    from prunefront.pipelines.models import build
    from prunefront.pruners.saved import count_trained, load_network

    dense = build(section, classes=splits.classes, input_shape=splits.input_shape)
    model = load_network(dense, folder)
    params = count_trained(model, recorded.plan)
    yield Check("params (torch)", str(recorded.params), str(params), recorded.params == params)
    if recorded.integers:
        return  # rounds otherwise than integers do: what it computes is another network's
    logits = _torch_outputs(model, splits.test[: len(recorded.logits)], splits.transform)
    yield _compare_logits("outputs (torch)", recorded, logits)
    yield _compare_accuracy("accuracy (torch)", recorded, accuracy(model, splits.test, splits.transform))


def _stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """From the header alone. Raises ArtifactError."""
    try:
        with safetensors.safe_open(file, "pt") as stored:
            names = stored.keys()
            return {name: tuple(stored.get_slice(name).get_shape()) for name in names}
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"{file} is no safetensors file: {error}") from None


def _mean(ratios: Mapping[str, float]) -> str:
    return f"mean {np.mean([*ratios.values()]):.4f} over {len(ratios)} groups" if ratios else "no group"


def _run(
    onnx: bytes, split: Split, transform: Transform, *, threads: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Logits (b, classes) and labels (b,), a batch at a time."""
    session = open_session(onnx, threads)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise PrunefrontError(
            f"the ONNX model has {len(inputs)} inputs and {len(outputs)} outputs; possible is one of each"
        )
    for images, labels in batches(split, transform, 256):
        try:
            (logits,) = session.run(None, {inputs[0].name: images.numpy()})
        except ORT_ERRORS as error:
            reason = str(error).partition("\n")[0]
            raise PrunefrontError(f"the ONNX model fails on the test images: {reason:.200}") from None
        if not isinstance(logits, np.ndarray) or logits.ndim != 2 or len(logits) != len(labels):
            raise PrunefrontError("the ONNX model does not give one row of logits for each image")
        yield logits, labels.numpy()


def _torch_outputs(model: nn.Module, split: Split, transform: Transform) -> list[list[float]]:
    with torch.inference_mode():
        return [row for images, _ in batches(split, transform, 256) for row in model(images).tolist()]


def _compare_logits(name: str, recorded: Recorded, measured: Sequence[Sequence[float]]) -> Check:
    got = np.asarray(measured, dtype=np.float64)
    scale = max(1.0, float(np.abs(recorded.logits).max()))
    allowed = (
        f"{len(recorded.logits)} x {recorded.logits.shape[1]} logits, within {OUTPUT_TOLERANCE * scale:.2g}"
    )
    if got.shape != recorded.logits.shape:
        return Check(name, allowed, f"{' x '.join(map(str, got.shape))} logits", False)
    worst = float(np.abs(got - recorded.logits).max())
    return Check(
        name, allowed, f"differ by {worst:.2g}", worst <= OUTPUT_TOLERANCE * scale
    )  # NaN is not within


def _compare_accuracy(name: str, recorded: Recorded, measured: Accuracy) -> Check:
    allowed = max(1.0, FLIP_TOLERANCE * measured.images) / measured.images
    ok = abs(measured.value - recorded.accuracy) <= allowed + 1e-9
    return Check(name, f"{recorded.accuracy:.4f} ± {allowed:.4f}", f"{measured.value:.4f}", ok)


def _built_in(section: ModelSection) -> ModelSection | None:
    """The artifact's own factory where it is a zoo name, hence no foreign code."""
    from prunefront.pipelines.models import models

    return section.model_copy(update={"weights": None}) if section.factory in models else None
