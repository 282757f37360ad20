"""What is done once per study: data, dense network, channel graph, scores. Every candidate only reads it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from pipelines.config import StudyConfig
from pipelines.data import SearchData, Splits, batches
from pipelines.data import load as load_data
from pipelines.journal import write_json
from pipelines.models import build
from pipelines.onnx_export import export
from pipelines.runtimes import runtimes
from pipelines.train import Recipe, faster_precision, train
from pipelines.weights import load_weights, save_weights
from pipelines.workbench import Workbench, arrays
from pruners.criteria import criteria
from pruners.errors import PrunefrontError
from pruners.graph import ChannelGraph
from pruners.plan import Scores
from pruners.scoring import score_all
from pruners.trace import trace
from search.searchers import searchers

Say = Callable[[str], None]

SAY_SECONDS = 20.0
"""While a dense network is trained, a line at least this far apart."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The dense network and what is known about it. splits: held by the driver alone, as they hold test images."""

    splits: Splits
    model: nn.Module
    graph: ChannelGraph
    scores: Scores

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.splits.train.images.shape
        return channels, height, width


def check_names(config: StudyConfig) -> None:
    """Raises PrunefrontError for a name that no registry holds, and for a runtime that this machine lacks, before
    anything is spent."""
    for name in config.space.criteria:
        criteria[name]
    searchers[config.search.searcher]
    runtime = runtimes[config.measure.runtime]
    if missing := runtime.missing():
        raise PrunefrontError(
            f"measure.runtime = {runtime.name!r} cannot be used here: {missing}; `prunefront list runtimes` says "
            "which can"
        )


def prepare(config: StudyConfig, say: Say) -> Prepared:
    """Loads, trains if there are no weights, traces and scores; or takes what an earlier run of this study kept.

    Raises PrunefrontError for data, weights or a network that cannot be used, and for data that changed since.
    """
    folder = config.path / "prepared"
    splits = load_data(config.data)
    shape = splits.train.images.shape[1:]
    say(
        f"data: {len(splits.train):,} training, {len(splits.validation):,} validation and {len(splits.test):,} test "
        f"images of {' × '.join(map(str, shape))}, {splits.classes} classes"
    )
    model = build(config.model, classes=splits.classes, input_shape=shape, seed=config.seed)
    kept = folder / "dense.safetensors"
    if (folder / "graph.json").exists():
        _check_same_data(splits, folder / "data.json", config.name)
        load_weights(model, kept)
        graph = ChannelGraph.from_json(json.loads((folder / "graph.json").read_text()))
        return Prepared(splits, model.eval(), graph, _load_scores(folder / "scores.safetensors"))
    if config.model.weights is not None:
        load_weights(model, config.model.weights)
    else:
        train_dense(model, splits.for_search(), config, say)
    model.eval()
    graph = trace_model(model, config, shape)
    data = splits.for_search()
    rng = np.random.default_rng([config.seed, 2])
    calibration = []
    for images, labels in batches(data.train, data.transform, 64, augment=rng, shuffle=rng, smallest=2):
        calibration.append((images, labels))
        if 64 * len(calibration) >= config.space.calibration_images:
            break
    scores = score_all(model, graph, config.space.criteria, calibration)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, kept)
    _save_scores(scores, folder / "scores.safetensors")
    write_json(folder / "data.json", fingerprint(splits))
    write_json(folder / "graph.json", graph.to_json())  # last: its presence says that the rest is whole
    return Prepared(splits, model, graph, scores)


def fingerprint(splits: Splits) -> dict[str, str]:
    """Part -> a digest of its images and labels."""
    parts = {"training": splits.train, "validation": splits.validation, "test": splits.test}
    digests = {}
    for name, part in parts.items():
        digest = blake2b(repr((part.images.shape, part.images.dtype.str)).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(part.images))
        digest.update(np.ascontiguousarray(part.labels))
        digests[name] = digest.hexdigest()
    return digests


def _check_same_data(splits: Splits, kept: Path, study: str) -> None:
    """Candidates that were scored on different images cannot be compared."""
    then = json.loads(kept.read_text())
    if changed := [name for name, digest in fingerprint(splits).items() if then[name] != digest]:
        raise PrunefrontError(
            f"the {' and '.join(changed)} images are no longer those that study {study!r} was started with; put them "
            "back, or start afresh with --fresh or another `name`"
        )


def trace_model(model: nn.Module, config: StudyConfig, input_shape: Sequence[int]) -> ChannelGraph:
    """The channel graph of the study's network. Raises PrunefrontError when nothing of it can be pruned."""
    graph = trace(
        model,
        torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0)),
        frozen=config.space.frozen,
    )
    if not graph.groups:
        reasons = "; ".join(f"{f.name}: {f.reason}" for f in graph.frozen[:3])
        raise PrunefrontError(
            f"nothing in {config.model.factory!r} can be pruned: {reasons or 'it has no convolution or linear layer'}"
        )
    return graph


def train_dense(model: nn.Module, data: SearchData, config: StudyConfig, say: Say) -> None:
    """Trains a network that came without weights, in place."""
    section = config.dense
    say(f"no weights given: training {config.model.factory} for {section.epochs} epochs")
    recipe = Recipe(
        epochs=section.epochs,
        learning_rate=section.learning_rate,
        batch_size=section.batch_size,
        weight_decay=config.training.weight_decay,
        distill=0.0,
        temperature=1.0,
        precision="float32",
        channels_last=False,
        seed=config.seed,
        warmup=0.2,
    )
    seconds = told = 0.0
    for report in train(model, data, recipe):
        seconds += report.seconds
        if seconds - told > SAY_SECONDS and report.epoch < section.epochs:
            told = seconds
            say(f"epoch {report.epoch} of {section.epochs}: loss {report.loss:.3f}, {seconds:.0f} s")
    say(f"trained in {seconds:.0f} s, last loss {report.loss:.3f}")


def _save_scores(scores: Scores, path: Path) -> None:
    save_file(
        {f"{c}/{g}": np.ascontiguousarray(v) for c, groups in scores.items() for g, v in groups.items()}, path
    )


def _load_scores(path: Path) -> Scores:
    scores: dict[str, dict[str, np.ndarray]] = {}
    for name, values in load_file(path).items():
        criterion, _, group = name.partition("/")
        scores.setdefault(criterion, {})[group] = values
    return scores


def make_bench(config: StudyConfig, prepared: Prepared) -> Workbench:
    """What every worker gets. Takes seconds: exports the dense network, finds the faster precision."""
    data = prepared.splits.for_search()
    device = "cuda" if config.cluster.gpus_per_worker > 0 else "cpu"
    path = config.path / "prepared" / "dense.onnx"
    if not path.exists():
        export(prepared.model, torch.zeros(2, *prepared.input_shape), path)
    return Workbench(
        study=config.name,
        seed=config.seed,
        model=config.model,
        classes=prepared.splits.classes,
        input_shape=prepared.input_shape,
        weights=arrays(prepared.model),
        graph=prepared.graph,
        data=data,
        calibration_images=config.space.calibration_images,
        validation_limit=config.search.validation_limit,
        recipe=_recipe(config, prepared, data, device),
        measure=config.measure,
        dense_onnx=path.read_bytes(),
        artifact_uri=config.artifact_uri,
        artifacts=config.artifacts,
        description={
            "model": {"factory": config.model.factory, "options": config.model.options},
            "data": config.data.model_dump(mode="json"),
        },
        device=device,
    )


def _recipe(config: StudyConfig, prepared: Prepared, data: SearchData, device: str) -> Recipe:
    section = config.training
    path = config.path / "prepared" / "precision.json"
    if section.precision != "auto":
        precision, channels_last = section.precision, section.precision == "bfloat16"
    else:
        if not path.exists():
            found = faster_precision(
                prepared.model.to(device),
                data,
                batch_size=section.batch_size,
                teacher=prepared.model if section.distill > 0 else None,
            )
            prepared.model.cpu()
            write_json(path, asdict(found))
        kept = json.loads(path.read_text())
        precision, channels_last = kept["precision"], kept["channels_last"]
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


def unchanged(config: StudyConfig, kept: Mapping[str, object]) -> list[str]:
    """The keys, dotted, in which `config` differs from the one that an earlier run kept; [cluster] may differ."""
    ours, theirs = _flat(config.to_json()), _flat(kept)
    return sorted(
        k
        for k in ours.keys() | theirs.keys()
        if not k.startswith("cluster.") and ours.get(k) != theirs.get(k)
    )


def _flat(data: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
