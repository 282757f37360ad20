"""The dense network of a study: loaded or trained, and traced. Every candidate only reads it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    TaskSection,
    TrainingSection,
)
from prunefront.pipelines.data import DataSet, Part, Parts, Samples, Splits, open_data
from prunefront.pipelines.data.samples import example_of, positional
from prunefront.pipelines.formats.given_weights import load_given
from prunefront.pipelines.formats.weights import load_weights, save_weights
from prunefront.pipelines.journal.journal import altered_file_error, write_json
from prunefront.pipelines.journal.layout import PREPARED
from prunefront.pipelines.measure.quality import judged, targets_of
from prunefront.pipelines.models import build, expected_inputs
from prunefront.pipelines.models.libraries import Expected
from prunefront.pipelines.prepare.checks import check_graph
from prunefront.pipelines.prepare.problem import objectives
from prunefront.pipelines.prepare.read_prepared import (
    read_digests,
    read_graph,
)
from prunefront.pipelines.prepare.training import check_task
from prunefront.pipelines.tasks import CLASSIFICATION, Task, make_task
from prunefront.pipelines.tasks.classification import Classification
from prunefront.pipelines.workers.train import Recipe, scalar, train
from prunefront.pipelines.workers.workbench import arrays
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan, Scores
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.trace.tracer import trace
from prunefront.search.outcomes.constraints import check_metrics
from prunefront.search.space.candidate import Candidate
from prunefront.text import did_you_mean, one_line

Say = Callable[[str], None]


EVEN_CHANCE = ("accuracy", "balanced_accuracy")
"""Metrics of which guessing among even classes has one in their number."""

SAY_SECONDS = 20.0
"""While a dense network is trained, a line at least this far apart."""


@dataclass(frozen=True, slots=True)
class Network:
    """The dense network and what it was trained on. splits: held by the driver alone, as they hold test images.

    initial: the weights before training, where they are known. outputs_classes: True where the network answers with
    classes of the data.
    """

    splits: Splits | Parts
    model: nn.Module
    graph: ChannelGraph
    initial: Mapping[str, NDArray[np.generic]] | None
    task: Task = CLASSIFICATION
    outputs_classes: bool = True

    @property
    def classes(self) -> int | None:
        """Number of classes; None where outputs are no classes, or the data have none."""
        return self.splits.classes if self.outputs_classes else None

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Channels, height, width; None where the data are no images of one size."""
        return self.splits.input_shape

    @property
    def test(self) -> Samples:
        """The test part, for the last stage alone."""
        return self.splits.part("test")

    @property
    def chance(self) -> float | None:
        """Quality of guessing: the metric's own, that of the number of classes, or not known."""
        metric = self.task.quality
        if metric.chance is None and self.classes is not None and metric.name in EVEN_CHANCE:
            return 1.0 / self.classes
        return metric.chance

    def example(self, count: int) -> Any:
        """Returns inputs of the network by place, of so many samples."""
        return example_input(self.model, self.splits, count)


@dataclass(frozen=True, slots=True)
class NetworkSections:
    """The settings that decide a study's dense network and its channel graph. path: the study's folder."""

    name: str
    seed: int
    path: Path
    model: ModelSection
    task: TaskSection
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
    task = make_task(study.task)
    check_task(study.training, study.task.name, task)
    check_metrics(study.goal.constraints, task.metrics)
    objectives(study.goal, task.quality)
    splits = open_data(study.data, say=say)
    say(_said(splits))
    classes = classes_of(study.model, task, splits)
    model = build(study.model, classes=classes, input_shape=splits.input_shape, seed=study.seed)
    for line in said_of_inputs(study.model, model, splits):
        say(line)
    check_normalisation(study.model, study.data, model, splits)
    check_takes(model, splits, task)

    def traced() -> ChannelGraph:
        return trace_model(model, factory, space, quantisation, example_input(model, splits, 2))

    kept, before = folder / "dense.safetensors", folder / "initial.safetensors"
    if (folder / "graph.json").exists():
        _check_same_data(splits, read_digests(folder), study.name)
        initial = _initial(model, before)
        load_weights(model, kept)
        graph = read_graph(folder)
        # a second or two, and whatever else the file says cannot mislead what is computed from it
        if graph != traced():
            raise altered_file_error(folder / "graph.json", "it is not the graph of this network")
        check_graph(graph, space, quantisation, study.goal)
        return Network(splits, model.eval(), graph, initial, task, classes is not None)
    folder.mkdir(parents=True, exist_ok=True)
    if study.model.weights is not None:
        if study.model.initial is not None:
            if found := load_weights(model, study.model.initial):
                say(found)
            save_weights(model, before)
        if found := load_given(model, study.model):
            say(found)
        graph = traced()
    else:
        save_weights(model, before)
        graph = traced()
        check_graph(graph, space, quantisation, study.goal)  # what cannot be is said before hours of training
        recipe = dense_recipe(study.dense, weight_decay=study.training.weight_decay, seed=study.seed)
        if not task.labels:
            raise PrunefrontError(
                f"task.name = {study.task.name!r} compares networks with the dense one, which has no weights; give "
                "them as model.weights"
            )
        train_dense(model, factory, splits.for_search(), recipe, say, task=task)
        graph = traced()
    check_graph(graph, space, quantisation, study.goal)
    save_weights(model, kept)
    write_json(folder / "data.json", fingerprint(splits))
    write_json(folder / "graph.json", asdict(graph))  # last: its presence says that the rest is whole
    return Network(
        splits, model.eval(), graph, _initial(copy.deepcopy(model), before), task, classes is not None
    )


def _initial(model: nn.Module, path: Path) -> Mapping[str, NDArray[np.generic]] | None:
    if not path.exists():
        return None
    load_weights(model, path)
    return arrays(model)


def fingerprint(splits: Splits | Parts) -> dict[str, str]:
    """Returns part -> a digest of its images and labels."""
    parts: dict[str, Part] = {"training": "train", "validation": "validation", "test": "test"}
    return {name: splits.part(part).fingerprint() for name, part in parts.items()}


def _said(splits: Splits | Parts) -> str:
    """Returns what the data are, in a line."""
    counts = [splits.part(part).count for part in ("train", "validation", "test")]
    train, validation, test = ("unknown" if n is None else f"{n:,}" for n in counts)
    shape = splits.input_shape
    what = "samples" if shape is None else f"images of {' × '.join(map(str, shape))}"
    classes = "" if splits.classes is None else f", {splits.classes} classes"
    return f"data: {train} training, {validation} validation and {test} test {what}{classes}"


def said_of_inputs(section: ModelSection, model: nn.Module, splits: Splits | Parts) -> list[str]:
    """Returns, in a line, the images that a library's network was made for, and what of the data differs from that."""
    expected = expected_inputs(section, model)
    normalised = _normalised(expected)
    parts = [] if expected.shape is None else [f"images of {' × '.join(map(str, expected.shape))}"]
    parts += [f"{name} {_rounded(values)}" for name, values in normalised.items()]
    if not parts or splits.input_shape is None:
        return []
    differs = []
    if expected.shape not in (None, splits.input_shape):
        differs.append(f"the data's are {' × '.join(map(str, splits.input_shape))}")
    for name, ours in _otherwise(normalised, splits).items():
        differs.append(f"the data's {name} is {_rounded(ours)} (set data.{name})")
    return [
        f"{section.factory} was made for {', '.join(parts)}" + (f"; {'; '.join(differs)}" if differs else "")
    ]


def check_normalisation(
    section: ModelSection, data: DataSection, model: nn.Module, splits: Splits | Parts
) -> None:
    """Raises PrunefrontError where trained weights of a library were made for other numbers than the data's default.

    What the study says itself, in data.mean and data.std, is its own affair.
    """
    if section.weights is None or (data.mean is not None and data.std is not None):
        return
    wanted = _normalised(expected_inputs(section, model))
    differs = _otherwise(wanted, splits)
    if differs:
        name, ours = next(iter(differs.items()))
        raise PrunefrontError(
            f"model.weights of {section.factory} were made for images of {name} {_rounded(wanted[name])}, and the "
            f"data's is {_rounded(ours)}: set data.mean = {_rounded(wanted['mean'])} and data.std = "
            f"{_rounded(wanted['std'])}, or both to what your weights were trained with"
        )


def _normalised(expected: Expected) -> dict[str, Sequence[float]]:
    """Returns the mean and standard deviation that a library gives; neither where it lacks one."""
    if expected.mean is None or expected.std is None:
        return {}
    return {"mean": expected.mean, "std": expected.std}


def _otherwise(wanted: Mapping[str, Sequence[float]], splits: Splits | Parts) -> dict[str, Sequence[float]]:
    """Returns those of the data's mean and standard deviation that are not the wanted ones."""
    transform = getattr(splits, "transform", None)
    found = {}
    for name, values in wanted.items():
        ours = getattr(transform, name, None)
        if ours is not None and (len(ours) != len(values) or not np.allclose(ours, values, atol=1e-3)):
            found[name] = ours
    return found


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(v), 4) for v in values]


def classes_of(model: ModelSection, task: Task, splits: Splits | Parts) -> int | None:
    """Returns the number of classes; None where the outputs of a network of one's own are none, by its task."""
    return splits.classes if isinstance(task, Classification) or ":" not in model.factory else None


def example_input(model: nn.Module, splits: DataSet, count: int) -> Any:
    """Returns inputs of the network by place: random images of the data's size, or else real samples."""
    if (shape := splits.input_shape) is not None:
        return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    return positional(model, example_of(splits.part("validation"), count))


def check_takes(model: nn.Module, splits: Splits | Parts, task: Task) -> None:
    """Raises PrunefrontError, one line, where network, data and task do not go together on two real samples."""
    batch = next(iter(splits.part("validation").first(2).batches(2)), None)
    if batch is None:
        raise PrunefrontError("the validation part gave no batch")
    positional(model, batch.inputs)
    try:
        with torch.no_grad():
            outputs = batch.inputs.call(model)
            targets = targets_of(task, batch.targets, model, batch.inputs.call)
            judged(task, outputs, targets, batch.count)
            loss = task.loss(outputs, targets)
    except PrunefrontError:
        raise
    except Exception as error:
        raise PrunefrontError(
            f"network and task do not take the data's inputs "
            f"({', '.join(f'{tuple(t.shape)} {t.dtype}' for t in batch.inputs.tensors())}): "
            f"{type(error).__name__}: {one_line(error, 300)}"
        ) from error
    scalar(task, loss)


def _check_same_data(splits: Splits | Parts, then: Mapping[str, str], study: str) -> None:
    """Candidates that were scored on different images cannot be compared."""
    if changed := [name for name, digest in fingerprint(splits).items() if then[name] != digest]:
        raise PrunefrontError(
            f"the {' and '.join(changed)} images are no longer those that study {study!r} was started with; put them "
            "back, or start again with --fresh or another `name`"
        )


def trace_model(
    model: nn.Module,
    factory: str,
    section: SpaceSection,
    quantisation: QuantisationSection,
    example: Any,
) -> ChannelGraph:
    """Returns the channel graph of the study's network, which `factory` made.

    Raises PrunefrontError when nothing of it can be pruned.
    """
    graph = trace(
        model.eval(),
        example,
        frozen=section.frozen,
        merged=section.merged,
        strict=section.strict,
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


def train_dense(
    model: nn.Module, name: str, data: DataSet, recipe: Recipe, say: Say, *, task: Task = CLASSIFICATION
) -> None:
    """Trains a network that came without weights, in place."""
    say(f"no weights given: training {name} for {recipe.epochs} epochs")
    seconds = told = 0.0
    for report in train(model, data, recipe, task=task):
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
