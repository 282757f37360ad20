"""The last stage: the front, chosen on validation images, is scored on test images that no step before has seen."""

import json
import math
import shlex
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.card import card
from prunefront.pipelines.artifacts.fetch import fetch_from
from prunefront.pipelines.artifacts.manifest import PROGRAM, TARGETS
from prunefront.pipelines.artifacts.publish import publish
from prunefront.pipelines.artifacts.verify import (
    CHECKED_INPUTS,
    onnx_outputs,
    onnx_quality,
    onnx_targets,
)
from prunefront.pipelines.config.sections import TaskSection
from prunefront.pipelines.data import Samples
from prunefront.pipelines.data.samples import example_of
from prunefront.pipelines.formats.onnx_file import read_model
from prunefront.pipelines.fronts.row import FrontRow, describe_plan, front_objectives
from prunefront.pipelines.measure.dense_outputs import MOST_BYTES, DenseOutputs
from prunefront.pipelines.measure.quality import JUDGED_AT_ONCE
from prunefront.pipelines.measure.time_limit import TimedOut, time_limit
from prunefront.pipelines.stages.program import DenseModel, add_programs
from prunefront.pipelines.stores.store import ArtifactStore, StoreAway, StoreRefused, read_json_file
from prunefront.pipelines.tasks import Estimate, make_task
from prunefront.pipelines.workers.failures import failure
from prunefront.pipelines.workers.workbench import Job
from prunefront.pipelines.workers.workers import Workers
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import DENSE
from prunefront.pruners.plan.cost import cost
from prunefront.search.outcomes.constraints import Bound, describe_violations
from prunefront.search.outcomes.dominance import dominance
from prunefront.search.outcomes.front import ParetoFront, minimised, violation
from prunefront.search.outcomes.measurement import ACCURACY, Constraint, Failure, Measurement, Metric


@dataclass(frozen=True, slots=True)
class Trained:
    """A network that was made; `measurement` knows validation images only. artifact: its id in the store."""

    job: Job
    measurement: Measurement
    artifact: str
    epochs: int

    @property
    def name(self) -> str:
        """The network's name: the key of its architecture, or what it is of another network."""
        return self.job.name


def chosen(
    trained: Iterable[Trained], constraints: Sequence[Constraint], metric: Metric = ACCURACY
) -> list[Trained]:
    """The front on validation figures, and the dense network whether it is on it or not."""
    networks = {t.name: t for t in trained}
    front = ParetoFront(front_objectives(metric), constraints)
    for name, network in networks.items():
        front.add(name, network.measurement)
    return [n for name, n in networks.items() if name in front or name == DENSE]


def standing(
    trained: Iterable[Trained],
    bounds: Sequence[Bound],
    constraints: Sequence[Constraint],
    where: Callable[[str], str],
) -> dict[str, Any]:
    """Returns how the pruned networks stand to the bounds.

    `asked`, `limits`, how many `met` them `of` how many, the `nearest` one where none did, and all of it as a line,
    `said`. where: an artifact's id -> its URI.
    """
    pruned = {t.name: t for t in trained if t.job.plan.key() != DENSE}
    broken = {name: violation(t.measurement, constraints) for name, t in pruned.items()}
    met = sum(amount == 0.0 for amount in broken.values())
    asked = ", ".join(map(str, bounds))
    nearest = min(broken, key=lambda name: (broken[name], name), default=None) if not met else None
    said = f"{met} of {len(pruned)} fine-tuned networks meet {asked} (on validation images)"
    if nearest is not None:
        network = pruned[nearest]
        said = (
            f"no pruned network meets {asked}; nearest: {nearest} with "
            f"{describe_violations(network.measurement.values, constraints)} on validation images; prunefront fetch "
            f"{shlex.quote(where(network.artifact))}"
        )
    elif not pruned:
        said = f"no pruned network meets {asked}: none was fine-tuned"
    return {
        "asked": [str(b) for b in bounds],
        "limits": {
            c.name: {side: v for side, v in (("low", c.low), ("high", c.high)) if math.isfinite(v)}
            for c in constraints
        },
        "met": met,
        "of": len(pruned),
        "nearest": nearest,
        "said": said,
    }


MOST_PUBLISHED = 8 << 20
"""Most bytes of the dense network's outputs that each artifact of a task without labels holds, to be verified with."""


@dataclass(frozen=True, slots=True)
class Beside:
    """The dense network of a task without labels, on test data. known: its outputs there, as many as are kept.

    sample: those that are published, of the first test samples. onnx: the network, for the rest.
    """

    onnx: bytes
    known: DenseOutputs
    sample: DenseOutputs


@dataclass(frozen=True, slots=True)
class Tested:
    """A network on test data. outputs: rows of the first samples. sampled: quality beside what is published, if any."""

    qualities: Mapping[str, Estimate]
    outputs: list[list[float]]
    sampled: Estimate | None = None


def dense_on_test(onnx: bytes, test: Samples, threads: int) -> Beside | Failure:
    """Returns what networks are compared with by a task without labels, or why there is nothing."""
    try:
        known = onnx_targets(onnx, test, threads=threads, most=MOST_BYTES)
        first = onnx_targets(onnx, test.first(2), threads=threads, most=MOST_BYTES)
        row = sum(array.nbytes for arrays in first.batches.values() for array in arrays) // 2
        few = max(2, min(JUDGED_AT_ONCE, MOST_PUBLISHED // max(1, row)))
        whole = (
            test if few == JUDGED_AT_ONCE else test.first(few)
        )  # outputs so large that a batch is too much
        return Beside(
            onnx, known, onnx_targets(onnx, whole, threads=threads, most=max(MOST_PUBLISHED, 2 * row))
        )
    except Exception as error:  # noqa: BLE001 - recorded as the dense network's failure, which ends the study
        return failure(error)


def on_test(
    onnx: bytes,
    test: Samples,
    section: TaskSection,
    beside: Beside | None,
    threads: int,
    seconds: float | None = None,
) -> Tested | Failure:
    """Returns a network's quality on test data and its outputs for the first of them, or why there are none.

    beside: the dense network, which a task without labels compares it with. seconds: most that it may take.
    """
    try:
        task = make_task(section)
        with time_limit(seconds, "the test"):
            outputs = onnx_outputs(onnx, test.first(CHECKED_INPUTS))
            if beside is None:
                return Tested(onnx_quality(onnx, test, task, threads=threads), outputs)
            qualities = onnx_quality(onnx, test, task, dense=beside.onnx, known=beside.known, threads=threads)
            if not beside.sample.samples:
                return Tested(qualities, outputs)
            few = test.first(beside.sample.samples)
            sampled = onnx_quality(onnx, few, task, known=beside.sample, threads=threads)
            return Tested(qualities, outputs, sampled[task.quality.name])
    except (Exception, TimedOut) as error:  # noqa: BLE001 - one network's failure is recorded, the others are reported
        return failure(error)


def report(
    networks: Sequence[Trained],
    graph: ChannelGraph,
    test: Samples,
    section: TaskSection,
    store: ArtifactStore,
    workers: Workers,
    *,
    threads: int,
    seconds: float | None = None,
    dense_model: DenseModel | None,
    say: Callable[[str], None],
) -> tuple[list[FrontRow], dict[str, Failure]]:
    """Scores each network's ONNX file on the test data and publishes it again with that measurement.

    dense_model: what `model.pt2` of each is made of; None = it gets none.
    The set of rows is given: nothing is selected by a test figure. A row that turns out dominated on the test figures
    stays, and says so. Returns the rows, fastest first, and by name the networks that could not be fetched, run or
    published. Raises StoreAway and StoreRefused, for a front without what lies in the store would be another.
    """
    with tempfile.TemporaryDirectory(prefix="prunefront-") as temporary:
        folders: dict[str, Path] = {}
        failures: dict[str, Failure] = {}
        for network in networks:
            try:
                folders[network.name] = fetch_from(store, network.artifact, Path(temporary) / network.name)
            except (StoreAway, StoreRefused):  # says nothing of this network
                raise
            except PrunefrontError as error:
                failures[network.name] = failure(error)
        files = [read_model(folder / "model.onnx") for folder in folders.values()]
        task = make_task(section)
        beside = None
        if not task.labels and DENSE in folders:
            dense = files[[*folders].index(DENSE)]
            compared = workers.each(dense_on_test, [dense], (test, threads))[0]
            if isinstance(compared, Failure):
                return [], {**failures, DENSE: compared}
            beside = compared
        found = dict(
            zip(folders, workers.each(on_test, files, (test, section, beside, threads, seconds)), strict=True)
        )
        rows, tests = {}, {}
        for network in networks:
            if network.name not in found:
                continue
            tested = found[network.name]
            if isinstance(tested, Failure):
                failures[network.name] = tested
                continue
            tests[network.name] = tested
            latency = read_json_file(folders[network.name] / "measurement.json")["latency"]
            rows[network.name] = _row(network, graph, task.quality, tested.qualities, latency)
            if beside is not None and beside.sample.samples:
                beside.sample.write(folders[network.name] / TARGETS, {})
        if dense_model is not None:
            add_programs({n: folders[n] for n in rows}, dense_model, example_of(test, 3), workers, say)
        published = []
        for name, row in _mark(rows).items():
            try:
                published.append(_publish(store, folders[name], row, tests[name]))
            except (StoreAway, StoreRefused):
                raise
            except PrunefrontError as error:
                failures[name] = failure(error)
        return sorted(published, key=lambda row: (row.latency_ms, row.key)), failures


def _row(
    network: Trained,
    graph: ChannelGraph,
    metric: Metric,
    qualities: Mapping[str, Estimate],
    latency: Mapping[str, float],
) -> FrontRow:
    found = qualities[metric.name]
    price = cost(graph, network.job.plan)
    return FrontRow(
        key=network.name,
        quality=found.value,
        quality_low=found.low,
        quality_high=found.high,
        images=found.samples,
        metric=metric,
        latency_ms=latency["ms"],
        latency_ratio=latency["ratio"],
        latency_ratio_low=latency["ratio_low"],
        latency_ratio_high=latency["ratio_high"],
        dense_latency_ms=latency["dense_ms"],
        size_bytes=int(network.measurement["size_bytes"]),
        macs=price.macs,
        params=price.params,
        achieved={name: round(ratio, 6) for name, ratio in network.job.plan.achieved_ratios().items()},
        validation_quality=network.measurement[metric.name],
        origin=network.job.candidate.origin,
        control=network.job.control,
        of=network.job.of,
        epochs=network.epochs,
        made=describe_plan(network.job.plan),
    )


def _mark(rows: Mapping[str, FrontRow]) -> dict[str, FrontRow]:
    """Says of each row whether another one dominates it on the test figures, beyond their noise."""
    if not rows:
        return {}
    metric = next(iter(rows.values())).metric
    measurements = [
        Measurement(
            {
                metric.name: row.quality,
                "latency_ratio": row.latency_ratio,
                "size_bytes": float(row.size_bytes),
            },
            {
                metric.name: (row.quality_high - row.quality_low) / 2,
                "latency_ratio": (row.latency_ratio_high - row.latency_ratio_low) / 2,
            },
        )
        for row in rows.values()
    ]
    pairs = [minimised(m, front_objectives(metric)) for m in measurements]
    beats = dominance(np.stack([v for v, _ in pairs]), np.stack([n for _, n in pairs]))
    return {
        name: replace(row, on_test_front=not bool(beats[:, i].any()))
        for i, (name, row) in enumerate(rows.items())
    }


def _publish(store: ArtifactStore, folder: Path, row: FrontRow, tested: Tested) -> FrontRow:
    path = folder / "measurement.json"
    before: dict[str, Any] = read_json_file(path)
    after = {
        **before,
        **row.to_json(),
        "outputs": {"inputs": f"test[:{len(tested.outputs)}]", "logits": tested.outputs},
    }
    if tested.sampled is not None:
        after["sampled"] = {"samples": tested.sampled.samples, "quality": tested.sampled.value}
    path.write_text(json.dumps(after, indent=1, sort_keys=True) + "\n")
    plan: dict[str, Any] = read_json_file(folder / "plan.json")
    (folder / "card.md").write_text(card(plan, after, program=(folder / PROGRAM).exists()), encoding="utf-8")
    return replace(row, artifact=publish(store, folder, row.key).uri)
