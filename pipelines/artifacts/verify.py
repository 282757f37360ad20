"""Verifies a fetched artifact: first the digests of its files, then every recorded figure by measuring it again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.manifest import measure_file, read_manifest
from prunefront.pipelines.artifacts.record import ArtifactRecord, Entries, read_record
from prunefront.pipelines.config.sections import DataSection, ModelSection
from prunefront.pipelines.data import Split, Splits, Transform, batches
from prunefront.pipelines.data import load as load_splits
from prunefront.pipelines.formats.onnx_runtime import ORT_ERRORS, open_session
from prunefront.pipelines.measure.accuracy import Accuracy, accuracy
from prunefront.pipelines.stores.store import ArtifactError

CHECKED_INPUTS = 4
"""Number of test images, from the first on, whose logits an artifact records."""
OUTPUT_TOLERANCE = 1e-3
"""Largest difference of logits, as a fraction of the largest recorded one: other machines order sums otherwise."""
MOST = 1 << 20
"""Most classes, channels, or pixels along an axis that an artifact may name."""
FLIP_TOLERANCE = 1e-3
"""Largest difference of accuracy, as a fraction of the test images; one image may always differ."""


@dataclass(frozen=True, slots=True)
class Check:
    """One recorded figure and the same figure measured again, both as text."""

    name: str
    recorded: str
    measured: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Verification:
    """The checks of one artifact. skipped: checks that could not be made, each with its reason; they fail nothing."""

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


def verify(
    folder: Path,
    *,
    factory: ModelSection | None = None,
    data: DataSection | None = None,
    splits: Callable[[DataSection], Splits] = load_splits,
) -> Verification:
    """Checks a fetched artifact: its files, its plan against its weights, then outputs and accuracy.

    factory, data: sections of a study file that the user trusts, used in place of the artifact's own. splits: loads
    the data. A `module:callable` that only the artifact names is never imported, and a store that only the artifact
    names is never asked: without `factory` torch is skipped, and without `data` there is an error.
    Where a digest differs, nothing else is checked. Raises PrunefrontError for a folder that holds no artifact, or one
    without figures.
    """
    files = tuple(_check_files(folder))
    if not all(check.ok for check in files):
        return Verification(files, ("everything else: the files are not those that were published",))
    recorded = read_record(folder)
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
    """Returns the torch network of a fetched artifact. factory: section of a study file that the user trusts.

    Raises PrunefrontError where only the artifact names the code that makes its network, and for a malformed file.
    """
    # what only needs the ONNX file should not import the zoo
    from prunefront.pipelines.models import build
    from prunefront.pruners.saved import load_network

    plan = Entries(folder / "plan.json")
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
    """Returns the logits of every image of a (small) split: rows of `classes` numbers. Raises PrunefrontError."""
    return [row for logits, _ in _run(onnx, split, transform, threads=1) for row in logits.tolist()]


def onnx_accuracy(onnx: bytes, split: Split, transform: Transform, *, threads: int) -> Accuracy:
    """Returns the accuracy of an ONNX file, with its 95 % interval, on a split's plain images.

    Raises PrunefrontError for a model that fails on them.
    """
    right = sum(
        int((logits.argmax(1) == labels).sum())
        for logits, labels in _run(onnx, split, transform, threads=threads)
    )
    return Accuracy.count(right, len(split))


def _check_files(folder: Path) -> Iterator[Check]:
    for name, record in read_manifest(folder).files.items():
        try:
            measured = measure_file(folder / name)
        except OSError as error:
            yield Check(f"digest of {name}", record.sha256[:12], str(error.strerror), False)
        else:
            yield Check(f"digest of {name}", record.sha256[:12], measured.sha256[:12], measured == record)


def _check_plan(folder: Path, recorded: ArtifactRecord) -> Iterator[Check]:
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


def _check_onnx(folder: Path, recorded: ArtifactRecord, splits: Splits) -> Iterator[Check]:
    test = splits.test
    yield Check("test images", str(recorded.images), str(len(test)), recorded.images == len(test))
    onnx = (folder / "model.onnx").read_bytes()
    logits = onnx_outputs(onnx, test[: len(recorded.logits)], splits.transform)
    yield _compare_logits("outputs (onnx)", recorded, logits)
    measured = onnx_accuracy(onnx, test, splits.transform, threads=torch.get_num_threads())
    yield _compare_accuracy("accuracy (onnx)", recorded, measured)


def _check_torch(
    folder: Path, recorded: ArtifactRecord, splits: Splits, section: ModelSection
) -> Iterator[Check]:
    """Yields the checks of the torch network: the factory's dense one, cut by the plan, with the stored weights."""
    # what only needs the ONNX file should not import the zoo
    from prunefront.pipelines.models import build
    from prunefront.pruners.saved import count_trained, load_network

    dense = build(section, classes=splits.classes, input_shape=splits.input_shape)
    model = load_network(dense, folder)
    params = count_trained(model, recorded.plan)
    yield Check("params (torch)", str(recorded.params), str(params), recorded.params == params)
    if recorded.integers:
        return  # floats round otherwise than integers do, so the outputs are not comparable
    logits = _torch_outputs(model, splits.test[: len(recorded.logits)], splits.transform)
    yield _compare_logits("outputs (torch)", recorded, logits)
    yield _compare_accuracy("accuracy (torch)", recorded, accuracy(model, splits.test, splits.transform))


def _stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Returns tensor name -> shape, from the file's header alone. Raises ArtifactError."""
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
    """Yields logits (b, classes) and labels (b,), a batch at a time."""
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


def _compare_logits(name: str, recorded: ArtifactRecord, measured: Sequence[Sequence[float]]) -> Check:
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


def _compare_accuracy(name: str, recorded: ArtifactRecord, measured: Accuracy) -> Check:
    allowed = max(1.0, FLIP_TOLERANCE * measured.images) / measured.images
    ok = abs(measured.value - recorded.accuracy) <= allowed + 1e-9
    return Check(name, f"{recorded.accuracy:.4f} ± {allowed:.4f}", f"{measured.value:.4f}", ok)


def _built_in(section: ModelSection) -> ModelSection | None:
    """Returns the artifact's own factory where it is a model of ours, hence no foreign code; else None."""
    from prunefront.pipelines.models import models

    return section.model_copy(update={"weights": None}) if section.factory in models else None
