"""Verifies a fetched artifact: first the digests of its files, then every recorded figure by measuring it again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.gate import Requirement, held, read_requirements
from prunefront.pipelines.artifacts.manifest import TARGETS, check_digests, measure_file, read_manifest
from prunefront.pipelines.artifacts.record import ArtifactRecord, Entries, read_record
from prunefront.pipelines.config.sections import DataSection, ModelSection, TaskSection
from prunefront.pipelines.data import Batch, Inputs, Parts, Samples, Splits
from prunefront.pipelines.data import open_data as load_splits
from prunefront.pipelines.formats.example import feed, outputs_of
from prunefront.pipelines.formats.given_weights import load_given
from prunefront.pipelines.formats.onnx_file import read_model
from prunefront.pipelines.formats.onnx_runtime import ORT_ERRORS, open_session
from prunefront.pipelines.measure.dense_outputs import DenseOutputs
from prunefront.pipelines.measure.quality import JUDGED_AT_ONCE, Noted, judged, quality, scored
from prunefront.pipelines.stores.store import ArtifactError
from prunefront.pipelines.tasks import Estimate, Task, make_task
from prunefront.pipelines.tasks.classification import Classification
from prunefront.reading import check_regular
from prunefront.search.outcomes.measurement import Metric

MOST_OUTPUTS = 1000
"""Most numbers of a sample's outputs that an artifact records."""
CHECKED_INPUTS = 4
"""Number of test images, from the first on, whose logits an artifact records."""
OUTPUT_TOLERANCE = 1e-3
"""Largest difference of logits, as a fraction of the largest recorded one: other machines order sums otherwise."""
MOST = 1 << 20
"""Most classes, channels, or pixels along an axis that an artifact may name."""
FLIP_TOLERANCE = 1e-3
"""Largest difference of a share, as a fraction of the test samples; one sample may always differ."""


@dataclass(frozen=True, slots=True)
class Check:
    """One recorded figure and the same figure measured again, both as text."""

    name: str
    recorded: str
    measured: str
    ok: bool
    value: float | None = None
    """The figure that was measured, of a quality."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The checks of one artifact. skipped: checks that could not be made, each with its reason; they fail nothing.

    required: what it was asked to meet; nothing where the checks failed.
    """

    checks: tuple[Check, ...]
    skipped: tuple[str, ...] = ()
    required: tuple[Requirement, ...] = ()

    @property
    def ok(self) -> bool:
        """True where the artifact is as it says, whatever was required of it."""
        return all(check.ok for check in self.checks)

    @property
    def met(self) -> bool:
        """True where the artifact is as it says and meets all that was required."""
        return self.ok and all(one.ok for one in self.required)

    def to_json(self) -> dict[str, Any]:
        checks = [
            {"name": c.name, "recorded": c.recorded, "measured": c.measured, "ok": c.ok} for c in self.checks
        ]
        required = [{"asked": r.asked, "found": r.found, "ok": r.ok} for r in self.required]
        return {
            "ok": self.ok,
            "met": self.met,
            "checks": checks,
            "skipped": list(self.skipped),
            "required": required,
        }


def verify(
    folder: Path,
    *,
    factory: ModelSection | None = None,
    data: DataSection | None = None,
    task: TaskSection | None = None,
    splits: Callable[[DataSection], Splits | Parts] = load_splits,
    require: Sequence[str] = (),
    dense: Path | None = None,
) -> Verification:
    """Checks a fetched artifact: its files, its plan against its weights, then outputs and quality.

    factory, data, task: sections of a study file that the user trusts, used in place of the artifact's own. splits:
    loads the data. A `module:callable` that only the artifact names is never imported, and a store that only the
    artifact names is never asked: without `factory` torch is skipped, and without `data` there is an error. Where a
    digest differs, nothing else is checked. Raises PrunefrontError for a folder that holds no artifact, or one
    without figures.

    require: bounds as a study file writes them, which the network is held to once it has passed, see `gate.held`.
    dense: folder of the fetched dense network that they are relative to. Raises ConstraintError for other text.
    """
    files = tuple(_check_files(folder))
    if not all(check.ok for check in files):
        return Verification(files, ("everything else: the files are not those that were published",))
    read_model(folder / "model.onnx")  # before all, as it may be that no figure is measured again
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
    asked = task or recorded.task
    if task is None and asked.code:
        raise PrunefrontError(
            f"networks are judged by {asked.code[0]!r}, code that an artifact may not import; pass the study file that "
            "names it"
        )
    judge = make_task(asked)
    bounds = read_requirements(require, judge.quality)
    if bounds and dense is not None:
        check_digests(dense)
    targets = None if judge.labels else _targets(folder, recorded)
    if targets is None and not judge.labels:
        why = (
            "outputs and quality: they are beside the dense network's, of which this artifact, made by an earlier "
            "version, holds none; search again to publish them"
        )
        if bounds:
            raise PrunefrontError(f"'{bounds[0]}' cannot be checked: {why}")
        return Verification((*files, *_check_plan(folder, recorded)), (why,))
    loaded = splits(section)
    checks = (*files, *_check_plan(folder, recorded), *_check_onnx(folder, recorded, loaded, judge, targets))
    required: tuple[Requirement, ...] = ()
    if bounds and all(check.ok for check in checks):

        def measured(other: Path) -> float:
            onnx, on = read_model(other / "model.onnx"), _judged_on(loaded.part("test"), targets)
            found = onnx_quality(onnx, on, judge, threads=torch.get_num_threads(), known=targets)
            return found[judge.quality.name].value

        required = tuple(
            held(
                bounds,
                folder,
                metric=judge.quality,
                quality=next((check.value for check in checks if check.value is not None), None),
                test=loaded.part("test"),
                dense=dense,
                measured=measured,
            )
        )
    model = factory or _built_in(recorded.model)
    if model is None:
        name = recorded.model.factory
        reason = f"torch: {name!r} is code that an artifact may not import; pass the study file that names it"
        return Verification(checks, (reason,), required)
    skipped = ("outputs and quality in torch: the ONNX network computes in integers",) * recorded.integers
    if targets is not None and targets.samples < recorded.images:
        skipped += (
            f"{judge.quality.name} on all {recorded.images} test samples: the dense network's outputs are published "
            f"of the first {targets.samples}",
        )
    torch_checks = _check_torch(folder, recorded, loaded, model, judge, targets)
    return Verification((*checks, *torch_checks), skipped, required)


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
    none = type(None)
    classes, shape = plan.get("classes", (int, none)), plan.get("input_shape", (list, none))
    sizes = [*([] if classes is None else [classes]), *(shape or [])]
    if len(shape or (0, 0, 0)) != 3 or not all(type(n) is int and 0 < n <= MOST for n in sizes):
        raise ArtifactError(f"{plan.file} has no usable number of classes and shape of images")
    return load_network(build(model, classes=classes, input_shape=tuple(shape) if shape else None), folder)


def onnx_outputs(onnx: bytes, samples: Samples) -> list[list[float]]:
    """Returns the outputs of every one of a few samples: rows of numbers, see `_rows`. Raises PrunefrontError."""
    return [row for outputs, batch in _run(onnx, samples, threads=1) for row in _rows(outputs, batch.count)]


def _rows(outputs: Any, count: int) -> list[list[float]]:
    """Returns the first MOST_OUTPUTS numbers of each sample's outputs, of all outputs that count samples."""
    leaves = [t for t in _pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.ndim and len(t) == count]
    rows = [(t.flatten(1) if t.ndim > 1 else t[:, None]).float() for t in leaves]
    found: list[list[float]] = torch.cat(rows, 1)[:, :MOST_OUTPUTS].tolist() if rows else []
    return found


def onnx_quality(
    onnx: bytes,
    samples: Samples,
    task: Task,
    *,
    threads: int,
    dense: bytes | None = None,
    known: DenseOutputs | None = None,
) -> Mapping[str, Estimate]:
    """Returns the task's metrics of an ONNX file, with 95 % intervals, on plain samples.

    A task without labels compares with the dense network. known: its outputs, as far as they are at hand; dense: its
    file, for the rest. Raises PrunefrontError for a model that
    fails on them.
    """
    return scored(task, onnx_notes(onnx, samples, task, threads=threads, dense=dense, known=known))


def onnx_notes(
    onnx: bytes,
    samples: Samples,
    task: Task,
    *,
    threads: int,
    dense: bytes | None = None,
    known: DenseOutputs | None = None,
) -> Iterator[Noted]:
    """Yields what the task notes of an ONNX file on each batch of plain samples. Arguments, errors: `onnx_quality`."""
    seen, reference = 0, None
    for outputs, batch in _run(onnx, samples, threads=threads):
        targets = batch.targets
        if not task.labels:
            targets = None if known is None else known.beside(outputs, seen, batch.count)
            if targets is None:
                if dense is None:
                    raise PrunefrontError(
                        "a task without labels compares networks with the dense one, which is missing"
                    )
                reference = reference or open_session(dense, threads)
                targets = _forward(reference, batch.inputs)
        seen += batch.count
        yield judged(task, outputs, targets, batch.count)


def onnx_targets(dense: bytes, samples: Samples, *, threads: int, most: int) -> DenseOutputs:
    """Returns outputs of the dense network's ONNX file, as `onnx_quality` takes them, without those after `most` bytes.

    Raises PrunefrontError for a model that fails on the samples.
    """
    session = open_session(dense, threads)
    return DenseOutputs.of(
        [samples], lambda inputs: _forward(session, inputs), size=JUDGED_AT_ONCE, most=most
    )


def _targets(folder: Path, recorded: ArtifactRecord) -> DenseOutputs | None:
    """Returns the published outputs of the dense network; None where an artifact has none. Raises ArtifactError."""
    if recorded.sampled is None or TARGETS not in read_manifest(folder).files:
        return None
    try:
        found = DenseOutputs.read(folder / TARGETS, {})
    except PrunefrontError as error:
        raise ArtifactError(f"{folder / TARGETS} holds no outputs of a dense network: {error}") from None
    if found.samples != recorded.sampled[0]:
        raise ArtifactError(
            f"{folder / TARGETS} is of {found.samples} samples, and measurement.json says {recorded.sampled[0]}"
        )
    return found


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


def _check_onnx(
    folder: Path,
    recorded: ArtifactRecord,
    splits: Splits | Parts,
    task: Task,
    targets: DenseOutputs | None,
) -> Iterator[Check]:
    test = splits.part("test")
    if test.count is not None:
        yield Check("test images", str(recorded.images), str(test.count), recorded.images == test.count)
    onnx = read_model(folder / "model.onnx")
    logits = onnx_outputs(onnx, test.first(len(recorded.logits)))
    yield _compare_logits("outputs (onnx)", recorded, logits)
    judged_on = _judged_on(test, targets)
    measured = onnx_quality(onnx, judged_on, task, threads=torch.get_num_threads(), known=targets)
    yield _compare_quality("onnx", recorded, task.quality, measured)


def _judged_on(test: Samples, targets: DenseOutputs | None) -> Samples:
    """Returns the test samples that qualities are measured on again: those whose targets are published."""
    return test if targets is None else test.first(targets.samples)


def _check_torch(
    folder: Path,
    recorded: ArtifactRecord,
    splits: Splits | Parts,
    section: ModelSection,
    task: Task,
    targets: DenseOutputs | None,
) -> Iterator[Check]:
    """Yields the checks of the torch network: the factory's dense one, cut by the plan, with the stored weights."""
    # what only needs the ONNX file should not import the zoo
    from prunefront.pipelines.models import build
    from prunefront.pruners.saved import count_trained, load_network

    classes = splits.classes if isinstance(task, Classification) or ":" not in section.factory else None
    dense = build(section, classes=classes, input_shape=splits.input_shape)
    model = load_network(dense, folder)
    params = count_trained(model, recorded.plan)
    yield Check("params (torch)", str(recorded.params), str(params), recorded.params == params)
    if recorded.integers:
        return  # floats round otherwise than integers do, so the outputs are not comparable
    test = splits.part("test")
    logits = _torch_outputs(model, test.first(len(recorded.logits)))
    yield _compare_logits("outputs (torch)", recorded, logits)
    judged_on = _judged_on(test, targets)
    yield _compare_quality("torch", recorded, task.quality, quality(model, judged_on, task, known=targets))
    if targets is not None and section.weights is not None:
        load_given(dense, section)
        yield _check_targets(targets, dense.eval(), judged_on)


def _check_targets(targets: DenseOutputs, dense: nn.Module, samples: Samples) -> Check:
    """Returns the check of the published outputs, beside those of the dense weights that a study file names."""
    seen, worst, largest = 0, 0.0, 1.0
    with torch.inference_mode():
        for batch in samples.batches(JUDGED_AT_ONCE):
            mine = batch.inputs.call(dense)
            theirs = targets.beside(mine, seen, batch.count)
            seen += batch.count
            for a, b in zip(*(_pytree.tree_leaves(o) for o in (mine, theirs)), strict=False):
                if isinstance(a, Tensor) and a.shape == b.shape:
                    worst = max(worst, float((a.float() - b.float()).abs().nan_to_num(torch.inf).max()))
                    largest = max(largest, float(a.abs().max()))
                elif isinstance(a, Tensor) or theirs is None:
                    worst = torch.inf
    allowed = OUTPUT_TOLERANCE * largest
    return Check(
        "targets (dense weights)",
        f"{seen} samples, within {allowed:.2g}",
        f"differ by {worst:.2g}",
        worst <= allowed,
    )


def _stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Returns tensor name -> shape, from the file's header alone. Raises ArtifactError."""
    try:
        check_regular(file)
        with safetensors.safe_open(file, "pt") as stored:
            names = stored.keys()
            return {name: tuple(stored.get_slice(name).get_shape()) for name in names}
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"{file} is no safetensors file: {error}") from None


def _mean(ratios: Mapping[str, float]) -> str:
    return f"mean {np.mean([*ratios.values()]):.4f} over {len(ratios)} groups" if ratios else "no group"


def _run(onnx: bytes, samples: Samples, *, threads: int) -> Iterator[tuple[Any, Batch]]:
    """Yields outputs as a task takes them, and the batch."""
    session = open_session(onnx, threads)
    for batch in samples.batches(256):
        yield _forward(session, batch.inputs), batch


def _forward(session: Any, inputs: Inputs) -> Any:
    """Returns what a session makes of inputs. Raises PrunefrontError where it fails on them."""
    try:
        values = session.run(None, feed(session, inputs.args, inputs.kwargs))
    except ORT_ERRORS as error:
        reason = str(error).partition("\n")[0]
        raise PrunefrontError(f"the ONNX model fails on the test data: {reason:.200}") from None
    if not all(isinstance(value, np.ndarray) for value in values):
        raise PrunefrontError("the ONNX model gives an output that is no tensor")
    return outputs_of([output.name for output in session.get_outputs()], values)


def _torch_outputs(model: nn.Module, samples: Samples) -> list[list[float]]:
    with torch.inference_mode():
        return [row for b in samples.batches(256) for row in _rows(b.inputs.call(model), b.count)]


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


def _compare_quality(
    where: str, recorded: ArtifactRecord, metric: Metric, found: Mapping[str, Estimate]
) -> Check:
    measured = found[metric.name]
    stated, of = recorded.quality, ""
    if recorded.sampled is not None and recorded.sampled[0] != recorded.images:
        stated, of = recorded.sampled[1], f" of {recorded.sampled[0]} samples"
    allowed = max(1.0, FLIP_TOLERANCE * measured.samples) / measured.samples
    if metric.scale != "share":
        allowed *= max(abs(stated), measured.noise)
    ok = abs(measured.value - stated) <= allowed + 1e-9
    name = f"{metric.name}{of} ({where})"
    return Check(name, f"{stated:.4f} ± {allowed:.4f}", f"{measured.value:.4f}", ok, measured.value)


def _built_in(section: ModelSection) -> ModelSection | None:
    """Returns the artifact's own factory where it is a model of ours, hence no foreign code; else None."""
    from prunefront.pipelines.models import models

    return section.model_copy(update={"weights": None, "rules": None}) if section.factory in models else None
