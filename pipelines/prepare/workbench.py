"""The workbench that every worker gets: dense network, data, recipes."""

from dataclasses import asdict

import torch

from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.data import SearchData
from prunefront.pipelines.events.redaction import redact
from prunefront.pipelines.formats.onnx_export import export
from prunefront.pipelines.journal.journal import write_json
from prunefront.pipelines.journal.layout import PREPARED
from prunefront.pipelines.prepare.network import Network, Say, dense_recipe
from prunefront.pipelines.prepare.read_prepared import read_precision
from prunefront.pipelines.workers.train import Precision, Recipe, faster_precision
from prunefront.pipelines.workers.workbench import Workbench, arrays


def make_bench(config: StudyConfig, network: Network, say: Say = lambda line: None) -> Workbench:
    """Returns what every worker gets. Takes seconds: exports the dense network, finds the faster precision."""
    data = network.splits.for_search()
    device = "cuda" if config.cluster.gpus_per_worker > 0 else "cpu"
    path = config.path / PREPARED / "dense.onnx"
    if not path.exists():
        export(network.model, torch.zeros(2, *network.input_shape), path)
    return Workbench(
        study=config.name,
        seed=config.seed,
        model=config.model,
        classes=network.splits.classes,
        input_shape=network.input_shape,
        weights=arrays(network.model),
        graph=network.graph,
        data=data,
        calibration_images=config.space.calibration_images,
        validation_limit=config.search.validation_limit,
        recipe=_recipe(config, network, data, device, say),
        scratch=dense_recipe(config),
        initial=network.initial,
        procedure=config.training.procedure,
        options=config.training.options,
        measure=config.measure,
        dense_onnx=path.read_bytes(),
        artifact_uri=config.artifact_uri,
        artifacts=config.artifacts,
        description=redact(
            {
                "model": {
                    "factory": config.model.factory,
                    "options": config.model.options,
                    "license": config.model.license,
                },
                "data": config.data.model_dump(mode="json"),
                "repair": config.space.repair,
            }
        ),
        device=device,
        train_images=config.search.train_images,
        repair=config.space.repair,
    )


def _recipe(config: StudyConfig, network: Network, data: SearchData, device: str, say: Say) -> Recipe:
    section = config.training
    path = config.path / PREPARED / "precision.json"
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
                teacher=network.model if section.distill > 0 else None,
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
        seed=config.seed,
    )
