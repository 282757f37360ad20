"""The workbench that every worker gets: dense network, data, recipes."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from prunefront.pipelines.config.sections import (
    ArtifactSection,
    ClusterSection,
    DataSection,
    DenseSection,
    MeasureSection,
    ModelSection,
    ScoringSection,
    SpaceSection,
    TaskSection,
    TrainingSection,
)
from prunefront.pipelines.data import DataSet
from prunefront.pipelines.events.redaction import redact
from prunefront.pipelines.formats.example import forward
from prunefront.pipelines.formats.onnx_export import export
from prunefront.pipelines.journal.journal import write_json
from prunefront.pipelines.journal.layout import PREPARED
from prunefront.pipelines.prepare.dense_targets import dense_targets
from prunefront.pipelines.prepare.network import Network, Say, dense_recipe
from prunefront.pipelines.prepare.read_prepared import read_precision
from prunefront.pipelines.workers.train import Precision, Recipe, faster_precision
from prunefront.pipelines.workers.workbench import Workbench, arrays
from prunefront.reading import read_bytes

PATIENCE = 50.0
"""Factor of the dense network's time that a candidate may take: machines are busy, and compact layers slow."""
PASSES = 3
"""Forwards that training on a sample costs, about."""
SCORE_SECONDS, STEP_SECONDS = 120.0, 600.0
"""Shortest limits that are set unless the study file gives some, in seconds."""
TIMED_SAMPLES = 8
"""Samples of the forward that is timed."""
UNKNOWN = 1_000_000
"""Number of samples that a part of unknown length may have."""


@dataclass(frozen=True, slots=True)
class BenchSections:
    """The settings that workers go by. path: the study's folder. artifact_uri: with the default filled in."""

    name: str
    seed: int
    path: Path
    artifact_uri: str
    model: ModelSection
    task: TaskSection
    data: DataSection
    dense: DenseSection
    space: SpaceSection
    scoring: ScoringSection
    training: TrainingSection
    measure: MeasureSection
    cluster: ClusterSection
    artifacts: ArtifactSection


def make_bench(study: BenchSections, network: Network, say: Say = lambda line: None) -> Workbench:
    """Returns what every worker gets. Takes seconds: exports the dense network, finds the faster precision."""
    data = network.splits.for_search()
    device = "cuda" if study.cluster.gpus_per_worker > 0 else "cpu"
    if (processes := study.cluster.processes) > 1:
        device_of_each = "a GPU of its own" if device == "cuda" else "CPUs of its own"
        say(f"each training is shared by {processes} processes, each with {device_of_each}")
    limits = limits_of(study, network, data)
    path = study.path / PREPARED / "dense.onnx"
    if not path.exists():
        export(network.model, network.example(2), path)
    return Workbench(
        study=study.name,
        seed=study.seed,
        model=study.model,
        classes=network.classes,
        input_shape=network.input_shape,
        weights=arrays(network.model),
        graph=network.graph,
        data=data,
        calibration_images=study.space.calibration_images,
        validation_limit=study.scoring.validation_limit,
        recipe=_recipe(study, network, data, device, say),
        scratch=dense_recipe(study.dense, weight_decay=study.training.weight_decay, seed=study.seed),
        initial=network.initial,
        procedure=study.training.procedure,
        options=study.training.options,
        loop=study.training.loop,
        processes=study.cluster.processes,
        measure=study.measure,
        dense_onnx=read_bytes(path, limit=2 << 30),
        artifact_uri=study.artifact_uri,
        artifacts=study.artifacts,
        description=redact(
            {
                "model": {
                    "factory": study.model.factory,
                    "options": study.model.options,
                    "license": study.model.license,
                },
                "task": study.task.model_dump(mode="json"),
                "data": study.data.model_dump(mode="json"),
                "repair": study.space.repair,
            }
        ),
        device=device,
        train_images=study.scoring.train_images,
        task=study.task,
        repair=study.space.repair,
        targets=dense_targets(study.path, network, study.scoring.validation_limit, say, device),
        score_seconds=limits.score_seconds,
        step_seconds=limits.step_seconds,
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """Longest times, in seconds, see `ClusterSection`."""

    score_seconds: float
    step_seconds: float


def limits_of(study: BenchSections, network: Network, data: DataSet) -> Limits:
    """Returns the limits that the study file gives, or those that follow from the dense network's time a sample."""
    cluster, scoring = study.cluster, study.scoring
    if cluster.score_seconds is not None and cluster.step_seconds is not None:
        return Limits(cluster.score_seconds, cluster.step_seconds)
    each = _seconds_a_sample(network) * torch.get_num_threads() / cluster.cpus_per_worker
    # a stream may not know its length
    training, validation = (data.part(part).count or UNKNOWN for part in ("train", "validation"))
    scored = min(validation, scoring.validation_limit or validation) + study.space.calibration_images
    trained = PASSES * (scored + scoring.train_images)
    return Limits(
        cluster.score_seconds or max(SCORE_SECONDS, PATIENCE * each * trained),
        cluster.step_seconds or max(STEP_SECONDS, PATIENCE * each * PASSES * (training + validation)),
    )


def _seconds_a_sample(network: Network) -> float:
    """Returns the seconds of a forward of the dense network here, for each of a few samples."""
    example = network.example(TIMED_SAMPLES)
    with torch.no_grad():
        forward(network.model, example)  # the first one allocates
        begun = time.perf_counter()
        forward(network.model, example)
    return (time.perf_counter() - begun) / TIMED_SAMPLES


def _recipe(study: BenchSections, network: Network, data: DataSet, device: str, say: Say) -> Recipe:
    section = study.training
    path = study.path / PREPARED / "precision.json"
    precision: Precision
    if section.precision != "auto":
        precision, channels_last = section.precision, section.precision == "bfloat16"
    elif device == "cuda" and not torch.cuda.is_available():
        precision, channels_last = "float32", False
        say(
            "training.precision = 'auto' is float32: which one is faster on the workers' GPUs cannot be measured here, "
            "as this machine has none; try precision = 'bfloat16'"
        )
    else:
        if not path.exists():
            found = faster_precision(
                network.model.to(device),
                data,
                batch_size=section.batch_size,
                task=network.task,
                teacher=network.model if section.distill > 0 or not network.task.labels else None,
            )
            network.model.cpu()
            write_json(path, asdict(found))
        kept = read_precision(path.parent)
        precision, channels_last = kept.precision, kept.channels_last
    return Recipe(
        epochs=section.epochs,
        learning_rate=section.learning_rate,
        batch_size=section.batch_size,
        weight_decay=section.weight_decay,
        distill=section.distill,
        temperature=section.temperature,
        precision=precision,
        channels_last=channels_last,
        seed=study.seed,
        optimizer=section.optimizer,
        schedule=section.schedule,
        label_smoothing=section.label_smoothing,
        clip_norm=section.clip_norm,
        ema=section.ema,
        mixup=section.mixup,
    )
