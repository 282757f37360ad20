"""What is done once per study: data, dense network, channel graph, scores. Every candidate only reads it."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster.device import check_runtime
from prunefront.pipelines.config.sections import SpaceSection, StudyConfig
from prunefront.pipelines.data import SearchData, Splits, batches
from prunefront.pipelines.data import load as load_data
from prunefront.pipelines.events.redaction import redacted
from prunefront.pipelines.formats.onnx_export import export
from prunefront.pipelines.formats.weights import load_weights, save_weights
from prunefront.pipelines.journal.journal import changed, write_json
from prunefront.pipelines.journal.layout import PREPARED
from prunefront.pipelines.models import build
from prunefront.pipelines.prepare.feasibility import check_bounds
from prunefront.pipelines.prepare.problem import check_space, widest_space, within
from prunefront.pipelines.prepare.saved_knowledge import (
    read_digests,
    read_facts,
    read_graph,
    read_precision,
    read_scores,
    save_nested,
)
from prunefront.pipelines.workers.bench import Workbench, arrays
from prunefront.pipelines.workers.train import Precision, Recipe, faster_precision, train
from prunefront.pruners.allocators import SCORES, allocators
from prunefront.pruners.bits.activations import check_inputs
from prunefront.pruners.controls import controls
from prunefront.pruners.criteria import criteria
from prunefront.pruners.granularities import granularities, layer_granularities
from prunefront.pruners.granularities.block import stack_granularities
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.plan import PruningPlan, Scores
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.procedures import procedures
from prunefront.pruners.quantisers import quantisers
from prunefront.pruners.scoring import available, needs_of, rank, why_not
from prunefront.pruners.statistics import Batch, Statistics, gathered_by
from prunefront.pruners.trace.tracer import trace
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate

SPARSE = frozenset({"element", "n_of_m"})
"""Granularities that leave single weights zero in a tensor of the whole size."""

Say = Callable[[str], None]

KEPT_WHERE = frozenset({"folder", "artifacts.state"})
"""Keys that say where a study's state is, not what it searches."""

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
class Knowledge:
    """What calibration images say about the dense network. facts: field -> group -> array, what allocators read."""

    scores: Scores
    facts: Mapping[str, Mapping[str, NDArray[np.float64]]]


Gather = Callable[[ChannelGraph, Sequence[Batch], Set[str]], Statistics]
"""Graph, calibration batches, needs -> statistics, wherever they are gathered."""


def check_names(config: StudyConfig) -> None:
    """Raises PrunefrontError for a name that no registry holds, and for a runtime that this machine lacks, before
    anything is spent."""
    for name in (*config.space.criteria, *chain.from_iterable(config.space.per_group.values())):
        criteria[name]
    for name in config.search.allocators:
        allocators[name]
    for name in config.controls:
        controls[name]
    check_space_names(config.space, config.training.procedure)
    procedures[config.training.procedure].check(config.training.options)
    searchers[config.search.searcher]
    if "lottery_ticket" in config.controls and config.model.weights and not config.model.initial:
        raise PrunefrontError(
            "the control 'lottery_ticket' starts from the weights before training, which are not known, as the network "
            "comes trained: give them as model.initial, or leave model.weights out so that the study trains it"
        )
    check_runtime(config.measure)


def check_space_names(section: SpaceSection, procedure: str) -> None:
    """Raises PrunefrontError for a granularity or quantiser that there is not, a word length that the quantiser cannot
    have, and a training procedure that cannot go together with them."""
    known = sorted({*granularities, *layer_granularities, *stack_granularities})
    for name in section.granularities:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise PrunefrontError(f"no granularity is called {name!r}; {hint}known: {', '.join(known)}")
    quantiser = quantisers[section.quantiser]
    for bits in section.bits:
        if bits < 32 and bits not in quantiser.bits:
            raise PrunefrontError(
                f"space.bits = {bits} is no word length of quantiser {quantiser.name!r}, which takes "
                f"{quantiser.bits[0]} to {quantiser.bits[-1]}, or 32 for none"
            )
        for name in section.granularities:
            if bits < 32 and name in SPARSE and not quantiser.keeps_zero:
                able = ", ".join(n for n in quantisers if quantisers[n].keeps_zero)
                raise PrunefrontError(
                    f"granularity {name!r} leaves zeros, which quantiser {quantiser.name!r} has no level for; "
                    f"these have one: {able}"
                )
    inner = [name for name in section.granularities if name in layer_granularities]
    quantisation = section.quantisation
    if quantisation.activations != "none":
        check_inputs(quantisation.activations, quantisation.activation_bits)
    if quantisation.activations == "xnor" and inner:
        raise PrunefrontError(
            f"space.activations = 'xnor' takes whole layers, which granularity {inner[0]!r} takes apart; leave that "
            "out, or choose 'fixed_point'"
        )
    if inner and procedures[procedure].over == "weights":
        able = [name for name in procedures if procedures[name].over == "channels"]
        raise PrunefrontError(
            f"training.procedure = {procedure!r} masks single weights of whole layers, which granularity {inner[0]!r} "
            f"takes apart; these procedures go with it: {', '.join(able)}"
        )


def dense_network(config: StudyConfig, say: Say) -> Network:
    """Loads, trains if there are no weights, and traces; or takes what an earlier run of this study kept.

    Raises PrunefrontError for data, weights or a network that cannot be used, and for data that changed since.
    """
    folder = config.path / PREPARED
    splits = load_data(config.data)
    shape = splits.train.images.shape[1:]
    say(
        f"data: {len(splits.train):,} training, {len(splits.validation):,} validation and {len(splits.test):,} test "
        f"images of {' × '.join(map(str, shape))}, {splits.classes} classes"
    )
    model = build(config.model, classes=splits.classes, input_shape=shape, seed=config.seed)
    kept, before = folder / "dense.safetensors", folder / "initial.safetensors"
    if (folder / "graph.json").exists():
        _check_same_data(splits, read_digests(folder), config.name)
        initial = _initial(model, before)
        load_weights(model, kept)
        graph = read_graph(folder)
        # a second or two, and whatever else the file says cannot mislead what is computed from it
        if graph != trace_model(model.eval(), config, shape):
            raise changed(folder / "graph.json", "it is not the graph of this network")
        check_graph(config, graph)
        return Network(splits, model.eval(), graph, initial)
    folder.mkdir(parents=True, exist_ok=True)
    if config.model.weights is not None:
        if config.model.initial is not None:
            load_weights(model, config.model.initial)
            save_weights(model, before)
        load_weights(model, config.model.weights)
        graph = trace_model(model.eval(), config, shape)
    else:
        save_weights(model, before)
        check_graph(
            config, trace_model(model, config, shape)
        )  # what cannot be is said before hours of training
        train_dense(model, splits.for_search(), config, say)
        graph = trace_model(model.eval(), config, shape)
    check_graph(config, graph)
    save_weights(model, kept)
    write_json(folder / "data.json", fingerprint(splits))
    write_json(folder / "graph.json", graph.to_json())  # last: its presence says that the rest is whole
    return Network(splits, model.eval(), graph, _initial(copy.deepcopy(model), before))


def _initial(model: nn.Module, path: Path) -> Mapping[str, NDArray[np.generic]] | None:
    if not path.exists():
        return None
    load_weights(model, path)
    return arrays(model)


def check_graph(config: StudyConfig, graph: ChannelGraph) -> None:
    """Raises PrunefrontError for what of a study does not go with its network, as far as is known before any score:
    groups that there are not, a space without a choice, bounds on exact costs that no network of the space meets."""
    check_per_group(config.space.per_group, graph)
    check_space(graph, config.space)
    check_bounds(graph, widest_space(graph, config.space), config.space, config.search.constraints)


def check_per_group(per_group: Mapping[str, Sequence[str]], graph: ChannelGraph) -> None:
    """Raises PrunefrontError for a group that there is not, and for a criterion that does not fit its group."""
    names = [g.name for g in graph.groups]
    for name, asked in per_group.items():
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise PrunefrontError(
                f"space.per_group names group {name!r}, which the network does not have; {hint}there are: "
                f"{', '.join(names)}"
            )
        for criterion in asked:
            if reason := why_not(criteria[criterion], graph.group(name), graph):
                raise PrunefrontError(
                    f"criterion {criterion!r} does not apply to group {name!r}, as that {reason}; "
                    f"these do: {', '.join(available(graph)[name])}"
                )


def know(config: StudyConfig, network: Network, gather: Gather, say: Say) -> Knowledge:
    """Scores, and what allocators read, from one pass over calibration images; or what an earlier run kept."""
    folder = config.path / PREPARED
    kept, facts = folder / "scores.safetensors", folder / "facts.safetensors"
    if kept.exists():
        return Knowledge(read_scores(folder, network.graph), read_facts(folder, network.graph))
    names = dict.fromkeys((*config.space.criteria, *chain.from_iterable(config.space.per_group.values())))
    wanted = frozenset(chain.from_iterable(allocators[a].needs for a in config.search.allocators)) - {SCORES}
    if config.space.bound == "redundancy":
        wanted |= {"gradient_gram"}
    needs = needs_of(names) | wanted
    statistics = Statistics()
    if any(gathered_by(need) for need in needs):
        started = time.perf_counter()
        statistics = gather(network.graph, calibration(config, network.splits.for_search()), needs)
        say(
            f"{len(names)} criteria: what they look at was gathered on {config.space.calibration_images:,} images in "
            f"{time.perf_counter() - started:.1f} s"
        )
    scores = rank(network.model, network.graph, names, statistics)
    if "block" in config.space.granularities:
        _rank_blocks(network, within(config.space.criteria), scores)
    for name, groups in scores.items():
        if not groups:
            say(f"criterion {name!r} fits no channel group; `prunefront inspect` says why")
    found = {f: {g: t.numpy() for g, t in statistics.values.get(f, {}).items()} for f in sorted(wanted)}
    save_nested(found, facts)
    save_nested(scores, kept)  # last: its presence says that both are whole
    return Knowledge(scores, found)


def kept(study: Path) -> tuple[ChannelGraph, Knowledge]:
    """What an earlier run found out about its network, from the study's folder; no data is read, no network built.

    Raises PrunefrontError if it did not come so far.
    """
    folder = study / PREPARED
    if not (folder / "graph.json").exists() or not (folder / "scores.safetensors").exists():
        raise PrunefrontError(
            f"study {study.name!r} has not scored the units of its network yet ({folder}); let `prunefront search` "
            "go on until it scores candidates"
        )
    graph = read_graph(folder)
    return graph, Knowledge(read_scores(folder, graph), read_facts(folder, graph))


def _rank_blocks(
    network: Network, names: Sequence[str], scores: dict[str, dict[str, NDArray[np.float64]]]
) -> None:
    """Adds the scores of every stack's blocks."""
    tensors = network.model.state_dict()
    for stack in network.graph.stacks:
        view = stack_granularities["block"].view(stack, tensors, network.graph)
        for name in names:
            scores.setdefault(name, {})[stack.name] = criteria[name](view).numpy()


def calibration(config: StudyConfig, data: SearchData) -> list[Batch]:
    """Augmented training images in batches of 64, the same ones for every criterion."""
    rng = np.random.default_rng([config.seed, 2])
    stream = batches(data.train, data.transform, 64, augment=rng, shuffle=rng, smallest=2)
    return list(islice(stream, -(-config.space.calibration_images // 64)))


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


def _check_same_data(splits: Splits, then: Mapping[str, str], study: str) -> None:
    """Candidates that were scored on different images cannot be compared."""
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
    section = config.space
    paths = [path for path, _ in model.named_modules() if path]
    for name in section.whole:
        if name not in paths:
            near = get_close_matches(name, paths, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise PrunefrontError(f"space.whole names module {name!r}, which the network does not have{hint}")
    inner = bool(set(section.granularities) - {"channel"}) or set(section.bits) != {32}
    if not graph.groups and not (inner and (graph.layers or graph.stacks)):
        reasons = "; ".join(f"{f.name}: {f.reason}" for f in graph.frozen[:3])
        raise PrunefrontError(
            f"nothing in {config.model.factory!r} can be pruned: {reasons or 'it has no convolution or linear layer'}"
        )
    return graph


def train_dense(model: nn.Module, data: SearchData, config: StudyConfig, say: Say) -> None:
    """Trains a network that came without weights, in place."""
    section = config.dense
    say(f"no weights given: training {config.model.factory} for {section.epochs} epochs")
    recipe = dense_recipe(config)
    seconds = told = 0.0
    for report in train(model, data, recipe):
        seconds += report.seconds
        if seconds - told > SAY_SECONDS and report.epoch < section.epochs:
            told = seconds
            say(f"epoch {report.epoch} of {section.epochs}: loss {report.loss:.3f}, {seconds:.0f} s")
    say(f"trained in {seconds:.0f} s, last loss {report.loss:.3f}")


def dense_recipe(config: StudyConfig) -> Recipe:
    """How a network is trained that starts from random weights."""
    section = config.dense
    return Recipe(
        epochs=section.epochs,
        learning_rate=section.learning_rate,
        batch_size=section.batch_size,
        weight_decay=config.training.weight_decay,
        seed=config.seed,
        warmup=0.2,
    )


def make_bench(config: StudyConfig, network: Network) -> Workbench:
    """What every worker gets. Takes seconds: exports the dense network, finds the faster precision."""
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
        recipe=_recipe(config, network, data, device),
        scratch=dense_recipe(config),
        initial=network.initial,
        procedure=config.training.procedure,
        options=config.training.options,
        measure=config.measure,
        dense_onnx=path.read_bytes(),
        artifact_uri=config.artifact_uri,
        artifacts=config.artifacts,
        description=redacted(
            {
                "model": {
                    "factory": config.model.factory,
                    "options": config.model.options,
                    "license": config.model.license,
                },
                "data": config.data.model_dump(mode="json"),
            }
        ),
        device=device,
        train_images=config.search.train_images,
    )


def _recipe(config: StudyConfig, network: Network, data: SearchData, device: str) -> Recipe:
    section = config.training
    path = config.path / PREPARED / "precision.json"
    precision: Precision
    if section.precision != "auto":
        precision, channels_last = section.precision, section.precision == "bfloat16"
    elif device == "cuda" and not torch.cuda.is_available():
        precision, channels_last = (
            "float32",
            False,
        )  # what is faster on GPUs of other machines cannot be tried here
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


def unchanged(config: StudyConfig, kept: Mapping[str, object]) -> list[str]:
    """The keys, dotted, in which `config` differs from the one that an earlier run kept. [cluster] may differ, and
    where the study is kept: it may go on elsewhere."""
    ours, theirs = _flat(redacted(config.to_json())), _flat(kept)
    return sorted(
        k
        for k in ours.keys() | theirs.keys()
        if not k.startswith("cluster.") and k not in KEPT_WHERE and ours.get(k) != theirs.get(k)
    )


def _flat(data: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def planned_by(config: StudyConfig, network: Network, scores: Scores, candidate: Candidate) -> PruningPlan:
    """What the study makes of a candidate. Raises PrunefrontError for what cannot be had."""
    return plan(
        network.graph,
        candidate.choices,
        scores,
        round_to=config.space.round_to,
        quantisation=config.space.quantisation,
    )
