"""Scores of units, and what allocators read: gathered once per study on calibration images."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from prunefront.atomic import write_whole
from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import SpaceSection
from prunefront.pipelines.journal.layout import PREPARED
from prunefront.pipelines.prepare.network import Network, Say
from prunefront.pipelines.prepare.problem import criteria_within_layers
from prunefront.pipelines.prepare.read_prepared import (
    MOMENTS,
    read_facts,
    read_graph,
    read_moments,
    read_scores,
    save_nested,
)
from prunefront.pipelines.prepare.repairs import unfitted
from prunefront.pipelines.workers.calibration import calibration_batches
from prunefront.pruners.allocators import SCORES, allocators
from prunefront.pruners.criteria import criteria
from prunefront.pruners.granularities import layer_granularities
from prunefront.pruners.granularities.block import stack_granularities
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import Scores
from prunefront.pruners.scoring import needs_of, rank
from prunefront.pruners.statistics import Batch, Statistics, gathered_by
from prunefront.pruners.statistics import images as count_images


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Scores of the dense network's units. facts: field -> group -> array, as allocators read them.

    moments: of the inputs of its weights, for `pruners.cut.refit`; None where the study's repair does not take any.
    """

    scores: Scores
    facts: Mapping[str, Mapping[str, NDArray[np.float64]]]
    moments: Mapping[str, NDArray[np.float64]] | None = None


Gather = Callable[[ChannelGraph, Sequence[Batch], Set[str]], Statistics]
"""Graph, calibration batches, needs -> statistics, wherever they are gathered."""


def know(
    study: Path,
    section: SpaceSection,
    network: Network,
    gather: Gather,
    say: Say,
    *,
    asked: Sequence[str],
    seed: int,
) -> Knowledge:
    """Returns scores, facts and moments from one pass over calibration images, or those of an earlier run.

    study: its folder. asked: allocators that facts are for. seed: the study's, which draws the images.
    """
    folder = study / PREPARED
    kept, facts = folder / "scores.safetensors", folder / "facts.safetensors"
    moments = _moment_needs(section)
    if kept.exists():
        found = Knowledge(read_scores(folder, network.graph), read_facts(folder, network.graph))
        if not moments:
            return found
        if not (folder / MOMENTS).exists():  # they stay on the machine that gathered them
            images = calibration(section.calibration_images, network, seed)
            _save_moments(gather(network.graph, images, moments), folder)
        return replace(found, moments=read_moments(folder, network.graph))
    names = dict.fromkeys((*section.criteria, *chain.from_iterable(section.per_group.values())))
    wanted = frozenset(chain.from_iterable(allocators[a].needs for a in asked)) - {SCORES}
    if section.bound == "redundancy":
        wanted |= {"gradient_gram"}
    if moments and "channel" in section.granularities:
        wanted |= {"error_curve"}
    if not network.task.labels:
        _check_needs_no_labels(names, asked)
    needs = needs_of(names) | wanted | moments
    statistics = Statistics()
    if any(gathered_by(need) for need in needs):
        started = time.perf_counter()
        images = calibration(section.calibration_images, network, seed)
        statistics = gather(network.graph, images, needs)
        say(
            f"{len(names)} criteria: their statistics were gathered on "
            f"{sum(map(count_images, images)):,} images in {time.perf_counter() - started:.1f} s"
        )
    scores = {n: dict(g) for n, g in rank(network.model, network.graph, names, statistics).items()}
    if "block" in section.granularities:
        _rank_blocks(network, criteria_within_layers(section.criteria), scores)
    for name, groups in scores.items():
        if not groups:
            say(f"criterion {name!r} fits no channel group; `prunefront inspect` says why")
    measured = {f: {g: t.numpy() for g, t in statistics.values.get(f, {}).items()} for f in sorted(wanted)}
    save_nested(measured, facts)
    held = None
    if moments:
        held = _save_moments(statistics, folder)
        for line in unfitted(network.graph, frozenset(held)):
            say(line)
    save_nested(scores, kept)  # last: its presence says that all are whole
    return Knowledge(scores, measured, held)


def _moment_needs(section: SpaceSection) -> frozenset[str]:
    """Returns the fields of moments that the study's repair takes."""
    if section.repair != "moments":
        return frozenset()
    within_layers = any(name in layer_granularities for name in section.granularities)
    return frozenset({"moments", "layer_moments"} if within_layers else {"moments"})


def _save_moments(statistics: Statistics, folder: Path) -> dict[str, NDArray[np.float64]]:
    """Writes the moments, and returns them: weight -> [conv groups, columns, columns]."""
    fields = [statistics.values.get(name, {}) for name in ("moments", "layer_moments")]
    held = {name: tensor.numpy() for field in fields for name, tensor in field.items()}
    write_whole(folder / MOMENTS, lambda file: file.write(save(held)))
    return held


OF_LABELS = ("selection",)
"""Statistics that look at the labels themselves."""

UNLABELLED = ("gradients", "HVP", "masking")
"""Kinds of work that look at the loss, which is at its least where the dense network is compared with itself."""


def _check_needs_no_labels(names: Iterable[str], asked: Iterable[str]) -> None:
    """Raises PrunefrontError for a criterion or an allocator that follows the loss of a task without labels."""

    def looks(fields: Iterable[str]) -> bool:
        found = [(s, field) for field in fields if (s := gathered_by(field)) is not None]
        return any(s.takes[field] in UNLABELLED or s.name in OF_LABELS for s, field in found)

    able = [name for name in criteria if not looks(needs_of([name]))]
    for name in names:
        if name not in able:
            raise PrunefrontError(
                f"criterion {name!r} follows the loss, and the task has no labels: the dense network's loss beside "
                f"itself is flat; set space.criteria to some of: {', '.join(able)}"
            )
    for name in asked:
        if looks(allocators[name].needs - {SCORES}):
            raise PrunefrontError(
                f"allocator {name!r} follows the loss, and the task has no labels; choose another one"
            )


def read_knowledge(study: Path) -> tuple[ChannelGraph, Knowledge]:
    """Reads what an earlier run found out about its network; no data is read, no network built.

    Raises PrunefrontError if it did not come so far.
    """
    folder = study / PREPARED
    if not (folder / "graph.json").exists() or not (folder / "scores.safetensors").exists():
        raise PrunefrontError(
            f"study {study.name!r} has not scored the units of its network yet ({folder}); let `prunefront search` "
            "run until it scores candidates"
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


def calibration(images: int, network: Network, seed: int) -> list[Batch]:
    """Returns so many augmented training images in batches of 64, the same ones for every criterion."""
    rng = np.random.default_rng([seed, 2])
    data = network.splits.for_search()
    return calibration_batches(
        network.model, network.task, data, rng, images=images, size=64, device="cpu", smallest=2
    )
