"""The dense network of a study: loaded or trained, and traced. Every candidate only reads it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import (
    DataSection,
    DenseSection,
    GoalSection,
    ModelSection,
    QuantisationSection,
    SpaceSection,
    TrainingSection,
)
from prunefront.pipelines.data import SearchData, Splits
from prunefront.pipelines.data import load as load_data
from prunefront.pipelines.formats.weights import load_weights, save_weights
from prunefront.pipelines.journal.journal import altered_file_error, write_json
from prunefront.pipelines.journal.layout import PREPARED
from prunefront.pipelines.models import build
from prunefront.pipelines.prepare.checks import check_graph
from prunefront.pipelines.prepare.read_prepared import (
    read_digests,
    read_graph,
)
from prunefront.pipelines.workers.train import Recipe, train
from prunefront.pipelines.workers.workbench import arrays
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan, Scores
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.trace.tracer import trace
from prunefront.search.space.candidate import Candidate
from prunefront.text import did_you_mean

Say = Callable[[str], None]


SAY_SECONDS = 20.0
"""While a dense network is trained, a line at least this far apart."""


@dataclass(frozen=True, slots=True)
class Network:
    """The dense network and what it was trained on. splits: held by the driver alone, as they hold test images.

    initial: the weights before training, where they are known.
    """

    splits: Splits
    model: nn.Module
    graph: ChannelGraph
    initial: Mapping[str, NDArray[np.generic]] | None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.splits.train.images.shape
        return channels, height, width


@dataclass(frozen=True, slots=True)
class NetworkSections:
    """The settings that decide a study's dense network and its channel graph. path: the study's folder."""

    name: str
    seed: int
    path: Path
    model: ModelSection
    data: DataSection
    dense: DenseSection
    training: TrainingSection
    space: SpaceSection
    quantisation: QuantisationSection
    goal: GoalSection


def dense_network(study: NetworkSections, say: Say) -> Network:
    """Returns the dense network: loaded, or trained where there are no weights, and traced; or that of an earlier run.

    Raises PrunefrontError for data, weights or a network that cannot be used, and for data that changed since.
    """
    folder = study.path / PREPARED
    factory, space, quantisation = study.model.factory, study.space, study.quantisation
    splits = load_data(study.data)
    shape = splits.train.images.shape[1:]
    say(
        f"data: {len(splits.train):,} training, {len(splits.validation):,} validation and {len(splits.test):,} test "
        f"images of {' × '.join(map(str, shape))}, {splits.classes} classes"
    )
    model = build(study.model, classes=splits.classes, input_shape=shape, seed=study.seed)
    kept, before = folder / "dense.safetensors", folder / "initial.safetensors"
    if (folder / "graph.json").exists():
        _check_same_data(splits, read_digests(folder), study.name)
        initial = _initial(model, before)
        load_weights(model, kept)
        graph = read_graph(folder)
        # a second or two, and whatever else the file says cannot mislead what is computed from it
        if graph != trace_model(model.eval(), factory, space, quantisation, shape):
            raise altered_file_error(folder / "graph.json", "it is not the graph of this network")
        check_graph(graph, space, quantisation, study.goal)
        return Network(splits, model.eval(), graph, initial)
    folder.mkdir(parents=True, exist_ok=True)
    if study.model.weights is not None:
        if study.model.initial is not None:
            load_weights(model, study.model.initial)
            save_weights(model, before)
        load_weights(model, study.model.weights)
        graph = trace_model(model.eval(), factory, space, quantisation, shape)
    else:
        save_weights(model, before)
        graph = trace_model(model, factory, space, quantisation, shape)
        check_graph(graph, space, quantisation, study.goal)  # what cannot be is said before hours of training
        recipe = dense_recipe(study.dense, weight_decay=study.training.weight_decay, seed=study.seed)
        train_dense(model, factory, splits.for_search(), recipe, say)
        graph = trace_model(model.eval(), factory, space, quantisation, shape)
    check_graph(graph, space, quantisation, study.goal)
    save_weights(model, kept)
    write_json(folder / "data.json", fingerprint(splits))
    write_json(folder / "graph.json", asdict(graph))  # last: its presence says that the rest is whole
    return Network(splits, model.eval(), graph, _initial(copy.deepcopy(model), before))


def _initial(model: nn.Module, path: Path) -> Mapping[str, NDArray[np.generic]] | None:
    if not path.exists():
        return None
    load_weights(model, path)
    return arrays(model)


def fingerprint(splits: Splits) -> dict[str, str]:
    """Returns part -> a digest of its images and labels."""
    parts = {"training": splits.train, "validation": splits.validation, "test": splits.test}
    digests = {}
    for name, part in parts.items():
        digest = blake2b(repr((part.images.shape, part.images.dtype.str)).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(part.images).data)
        digest.update(np.ascontiguousarray(part.labels).data)
        digests[name] = digest.hexdigest()
    return digests


def _check_same_data(splits: Splits, then: Mapping[str, str], study: str) -> None:
    """Candidates that were scored on different images cannot be compared."""
    if changed := [name for name, digest in fingerprint(splits).items() if then[name] != digest]:
        raise PrunefrontError(
            f"the {' and '.join(changed)} images are no longer those that study {study!r} was started with; put them "
            "back, or start afresh with --fresh or another `name`"
        )


def trace_model(
    model: nn.Module,
    factory: str,
    section: SpaceSection,
    quantisation: QuantisationSection,
    input_shape: Sequence[int],
) -> ChannelGraph:
    """Returns the channel graph of the study's network, which `factory` made.

    Raises PrunefrontError when nothing of it can be pruned.
    """
    graph = trace(
        model,
        torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0)),
        frozen=section.frozen,
    )
    paths = [path for path, _ in model.named_modules() if path]
    for name in section.whole:
        if name not in paths:
            raise PrunefrontError(
                f"space.whole names module {name!r}, which the network does not have; "
                f"{did_you_mean(name, paths)}there are: {', '.join(paths[:8])} …"
            )
    inner = bool(set(section.granularities) - {"channel"}) or set(quantisation.bits) != {32}
    if not graph.groups and not (inner and (graph.layers or graph.stacks)):
        reasons = "; ".join(f"{f.name}: {f.reason}" for f in graph.frozen[:3])
        raise PrunefrontError(
            f"nothing in {factory!r} can be pruned: {reasons or 'it has no convolution or linear layer'}"
        )
    return graph


def train_dense(model: nn.Module, name: str, data: SearchData, recipe: Recipe, say: Say) -> None:
    """Trains a network that came without weights, in place."""
    say(f"no weights given: training {name} for {recipe.epochs} epochs")
    seconds = told = 0.0
    for report in train(model, data, recipe):
        seconds += report.seconds
        if seconds - told > SAY_SECONDS and report.epoch < recipe.epochs:
            told = seconds
            say(f"epoch {report.epoch} of {recipe.epochs}: loss {report.loss:.3f}, {seconds:.0f} s")
    say(f"trained in {seconds:.0f} s, last loss {report.loss:.3f}")


def planned_by(
    section: SpaceSection,
    quantisation: QuantisationSection,
    network: Network,
    scores: Scores,
    candidate: Candidate,
) -> PruningPlan:
    """Returns the plan of a candidate. Raises PrunefrontError for a candidate that cannot be had."""
    return plan(
        network.graph,
        candidate.choices,
        scores,
        round_to=section.round_to,
        quantisation=quantisation.method,
    )


def dense_recipe(section: DenseSection, *, weight_decay: float, seed: int) -> Recipe:
    """Returns how a network is trained that starts from random weights."""
    return Recipe(
        epochs=section.epochs,
        learning_rate=section.learning_rate,
        batch_size=section.batch_size,
        weight_decay=weight_decay,
        seed=seed,
        warmup=0.2,
    )
