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
from prunefront.pipelines.artifacts.verify import CHECKED_INPUTS, onnx_accuracy, onnx_outputs
from prunefront.pipelines.data import Split, Transform
from prunefront.pipelines.fronts.row import FRONT_OBJECTIVES, FrontRow, describe_plan
from prunefront.pipelines.measure.accuracy import Accuracy
from prunefront.pipelines.stores.store import ArtifactStore, StoreAway, StoreRefused
from prunefront.pipelines.workers.failures import failure
from prunefront.pipelines.workers.workbench import Job
from prunefront.pipelines.workers.workers import Workers
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import DENSE
from prunefront.pruners.plan.cost import cost
from prunefront.search.outcomes.constraints import Bound, describe_violations
from prunefront.search.outcomes.dominance import dominance
from prunefront.search.outcomes.front import ParetoFront, minimised, violation
from prunefront.search.outcomes.measurement import Constraint, Failure, Measurement


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


def chosen(trained: Iterable[Trained], constraints: Sequence[Constraint]) -> list[Trained]:
    """The front on validation figures, and the dense network whether it is on it or not."""
    networks = {t.name: t for t in trained}
    front = ParetoFront(FRONT_OBJECTIVES, constraints)
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
    onnx: bytes, test: Split, transform: Transform, threads: int
) -> tuple[Accuracy, list[list[float]]] | Failure:
    """Returns a network's accuracy on test images and its outputs for the first of them, or why there are none."""
    first = Split(test.images[:CHECKED_INPUTS], test.labels[:CHECKED_INPUTS])
    try:
        return onnx_accuracy(onnx, test, transform, threads=threads), onnx_outputs(onnx, first, transform)
    except Exception as error:  # noqa: BLE001 - one network's failure is recorded, the others are reported
        return failure(error)


def report(
    networks: Sequence[Trained],
    graph: ChannelGraph,
    test: Split,
    transform: Transform,
    store: ArtifactStore,
    workers: Workers,
    *,
    threads: int,
) -> tuple[list[FrontRow], dict[str, Failure]]:
    """Scores each network's ONNX file on the test images and publishes it again with that measurement.

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
        files = [(folder / "model.onnx").read_bytes() for folder in folders.values()]
        found = dict(zip(folders, workers.each(on_test, files, (test, transform, threads)), strict=True))
        rows, logits = {}, {}
        for network in networks:
            if network.name not in found:
                continue
            tested = found[network.name]
            if isinstance(tested, Failure):
                failures[network.name] = tested
                continue
            accuracy, logits[network.name] = tested
            latency = json.loads((folders[network.name] / "measurement.json").read_text())["latency"]
            rows[network.name] = _row(network, graph, accuracy, latency)
        published = []
        for name, row in _mark(rows).items():
            try:
                published.append(_publish(store, folders[name], row, logits[name]))
            except (StoreAway, StoreRefused):
                raise
            except PrunefrontError as error:
                failures[name] = failure(error)
        return sorted(published, key=lambda row: (row.latency_ms, row.key)), failures


def _row(network: Trained, graph: ChannelGraph, accuracy: Accuracy, latency: Mapping[str, float]) -> FrontRow:
    price = cost(graph, network.job.plan)
    return FrontRow(
        key=network.name,
        accuracy=accuracy.value,
        accuracy_low=accuracy.low,
        accuracy_high=accuracy.high,
        images=accuracy.images,
        latency_ms=latency["ms"],
        latency_ratio=latency["ratio"],
        latency_ratio_low=latency["ratio_low"],
        latency_ratio_high=latency["ratio_high"],
        dense_latency_ms=latency["dense_ms"],
        size_bytes=int(network.measurement["size_bytes"]),
        macs=price.macs,
        params=price.params,
        achieved={name: round(ratio, 6) for name, ratio in network.job.plan.achieved_ratios().items()},
        validation_accuracy=network.measurement["accuracy"],
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
    measurements = [
        Measurement(
            {o.name: float(getattr(row, o.name)) for o in FRONT_OBJECTIVES},
            {
                "accuracy": (row.accuracy_high - row.accuracy_low) / 2,
                "latency_ratio": (row.latency_ratio_high - row.latency_ratio_low) / 2,
            },
        )
        for row in rows.values()
    ]
    pairs = [minimised(m, FRONT_OBJECTIVES) for m in measurements]
    beats = dominance(np.stack([v for v, _ in pairs]), np.stack([n for _, n in pairs]))
    return {
        name: replace(row, on_test_front=not bool(beats[:, i].any()))
        for i, (name, row) in enumerate(rows.items())
    }


def _publish(store: ArtifactStore, folder: Path, row: FrontRow, logits: list[list[float]]) -> FrontRow:
    path = folder / "measurement.json"
    before: dict[str, Any] = json.loads(path.read_text())
    after = {
        **before,
        **row.to_json(),
        "outputs": {"inputs": f"test[:{len(logits)}]", "logits": logits},
    }
    path.write_text(json.dumps(after, indent=1, sort_keys=True) + "\n")
    plan: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    (folder / "card.md").write_text(card(plan, after), encoding="utf-8")
    return replace(row, artifact=publish(store, folder, row.key).uri)
