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
from prunefront.pipelines.artifacts.publish import publish
from prunefront.pipelines.artifacts.verify import CHECKED_INPUTS, onnx_outputs, onnx_quality
from prunefront.pipelines.config.sections import TaskSection
from prunefront.pipelines.data import Samples
from prunefront.pipelines.formats.onnx_file import read_model
from prunefront.pipelines.fronts.row import FrontRow, describe_plan, front_objectives
from prunefront.pipelines.measure.time_limit import TimedOut, time_limit
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


def on_test(
    onnx: bytes,
    test: Samples,
    section: TaskSection,
    dense: bytes | None,
    threads: int,
    seconds: float | None = None,
) -> tuple[Mapping[str, Estimate], list[list[float]]] | Failure:
    """Returns a network's quality on test data and its outputs for the first of them, or why there are none.

    dense: the dense network, which a task without labels compares it with. seconds: most that it may take.
    """
    try:
        task = make_task(section)
        with time_limit(seconds, "the test"):
            return (
                onnx_quality(onnx, test, task, dense=dense, threads=threads),
                onnx_outputs(onnx, test.first(CHECKED_INPUTS)),
            )
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
) -> tuple[list[FrontRow], dict[str, Failure]]:
    """Scores each network's ONNX file on the test data and publishes it again with that measurement.

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
        dense = None if task.labels else files[[*folders].index(DENSE)] if DENSE in folders else None
        found = dict(
            zip(folders, workers.each(on_test, files, (test, section, dense, threads, seconds)), strict=True)
        )
        rows, logits = {}, {}
        for network in networks:
            if network.name not in found:
                continue
            tested = found[network.name]
            if isinstance(tested, Failure):
                failures[network.name] = tested
                continue
            qualities, logits[network.name] = tested
            latency = read_json_file(folders[network.name] / "measurement.json")["latency"]
            rows[network.name] = _row(network, graph, task.quality, qualities, latency)
        published = []
        for name, row in _mark(rows).items():
            try:
                published.append(_publish(store, folders[name], row, logits[name]))
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


def _publish(store: ArtifactStore, folder: Path, row: FrontRow, logits: list[list[float]]) -> FrontRow:
    path = folder / "measurement.json"
    before: dict[str, Any] = read_json_file(path)
    after = {
        **before,
        **row.to_json(),
        "outputs": {"inputs": f"test[:{len(logits)}]", "logits": logits},
    }
    path.write_text(json.dumps(after, indent=1, sort_keys=True) + "\n")
    plan: dict[str, Any] = read_json_file(folder / "plan.json")
    (folder / "card.md").write_text(card(plan, after), encoding="utf-8")
    return replace(row, artifact=publish(store, folder, row.key).uri)
