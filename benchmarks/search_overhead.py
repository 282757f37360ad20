"""Overhead of a search beside the work itself.

share:  part of the search's wall time, times workers, that workers spend on pruning, training and measuring. The clock
        runs from the first ask to the last tell, the start of worker processes included. Publishing is no work in this
        sense. `all stages` divides the same work by the whole run's time: nothing that the driver does alone counts,
        not even the dense network's training.
beside: seconds that a network costs beside its training and timing: its files written, checked and sent, and the wait
        for the machine's turn to be timed; median and most.
score:  time of one first score (surgery, batch norm statistics, validation) over its bare forward passes, the same
        network and the same images, run in turn; median of per-pair ratios.

    python -m benchmarks.search_overhead [--quick] [--json]
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.harness import alternate, arguments, report
from prunefront.choice import GroupChoice
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import ModelSection
from prunefront.pipelines.data import SearchData, Split, Transform
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.journal.journal import read_events
from prunefront.pipelines.journal.layout import JOURNAL
from prunefront.pipelines.models import build
from prunefront.pipelines.study.run import run
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.train import Recipe
from prunefront.pipelines.workers.workbench import Workbench, arrays
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.scoring import score as score_units
from prunefront.pruners.trace.tracer import trace

STUDY: dict[str, Any] = {
    "name": "overhead",
    "model": {"factory": "digits_cnn"},
    "data": {"source": "digits"},
    "dense": {"epochs": 2},
    "search": {"candidates": 96},
    "training": {"candidates": 14, "epochs": 10},
    "cluster": {"workers": 2},
}
QUICK: dict[str, Any] = {
    "model": {"factory": "digits_cnn", "options": {"width": 16}},
    "dense": {"epochs": 1},
    "search": {"candidates": 12},
    "training": {"candidates": 1, "epochs": 1},
    "measure": {"pairs": 20},
}


def share(quick: bool) -> dict[str, Any]:
    """Runs a study and returns its record of times."""
    with tempfile.TemporaryDirectory() as folder:
        settings = STUDY | {"folder": folder} | (QUICK if quick else {})
        config = parse(settings, source="benchmark", base=Path())
        run(config, display=Display(Console(stderr=True)))
        timing = json.loads((config.path / "timing.json").read_text())
        trained = [e for e in read_events(config.path / JOURNAL) if e["event"] == "trained"]
    stages = ("screen", "finetune")
    beside = [event.get("publish_seconds", 0.0) for event in trained]
    busy = {**timing["busy"], "finetune": timing["busy"]["finetune"] - sum(beside)}
    return {
        "workers": timing["workers"],
        "seconds": {name: round(timing["seconds"][name], 1) for name in stages},
        "busy_seconds": {name: round(busy[name], 1) for name in stages},
        "share_by_stage": {
            name: round(busy[name] / timing["seconds"][name] / timing["workers"], 3) for name in stages
        },
        "share": _share(busy, timing, stages),
        "share_of_all_stages": _share(busy, timing, timing["seconds"]),
        "beside_seconds": {"median": round(median(beside), 3), "most": round(max(beside), 3)},
        "exported": sum(bool(event.get("exported")) for event in trained),
    }


def _share(busy: Mapping[str, float], timing: Mapping[str, Any], stages: Iterable[str]) -> float:
    """Returns the workers' busy time as part of the time of these stages."""
    wall: float = sum(timing["seconds"][name] for name in stages)
    return round(sum(busy.values()) / wall / timing["workers"], 3)


def bench(images: int) -> Workbench:
    """Returns a ResNet-20 on random images, as costs do not depend on the content."""
    model = build(ModelSection(factory="resnet20"), classes=10, input_shape=(3, 32, 32))
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        return Split(
            rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8),
            rng.integers(0, 10, count, dtype=np.int64),
        )

    transform = Transform((0.5,) * 3, (0.25,) * 3, "crop_flip", 4)
    return Workbench(
        study="bench",
        seed=0,
        model=ModelSection(factory="resnet20"),
        classes=10,
        input_shape=(3, 32, 32),
        weights=arrays(model),
        graph=trace(model, torch.randn(2, 3, 32, 32)),
        data=SearchData(split(1024), split(images), transform, 10),
        calibration_images=1024,
        validation_limit=None,
        recipe=Recipe(epochs=1, learning_rate=0.01, batch_size=128),
        scratch=Recipe(epochs=1, learning_rate=0.1, batch_size=128),
        initial=None,
        procedure="one_shot",
        options={},
        measure=parse(STUDY, source="benchmark", base=Path()).measure,
        dense_onnx=b"",
        artifact_uri="",
        artifacts=parse(STUDY, source="benchmark", base=Path()).artifacts,
        description={},
    )


def score_overhead(quick: bool) -> dict[str, Any]:
    """Times first scores against bare forward passes over the same batches."""
    images, pairs = (256, 3) if quick else (2048, 12)
    evaluator = Evaluator(bench(images))
    made, graph = evaluator.bench, evaluator.bench.graph
    scores = score_units(evaluator.dense, graph, ("l1",))
    chosen = plan(graph, {g.name: GroupChoice("l1", 0.5) for g in graph.groups}, scores)
    network = evaluator.prune(chosen)
    calibration = [inputs for inputs, _ in evaluator._calibration]
    validation = torch.randn(images, 3, 32, 32).split(256)

    def bare() -> None:
        network.train()
        with torch.no_grad():
            for batch in calibration:
                network(batch)
        network.eval()
        with torch.inference_mode():
            for batch in validation:
                network(batch)

    return {
        "network": "resnet20 at ratio 0.5",
        "images": {"calibration": made.calibration_images, "validation": images},
        "over_bare_forwards": alternate(lambda: evaluator.score(chosen), bare, pairs),
    }


def main() -> None:
    given = arguments(__doc__, quick="less than a minute; figures are rough").parse_args()
    torch.set_num_threads(1)
    scored, search = score_overhead(given.quick), share(given.quick)
    over = scored["over_bare_forwards"]
    beside = search["beside_seconds"]
    stages = ", ".join(
        f"{n} {s:.0%} of {search['seconds'][n]} s" for n, s in search["share_by_stage"].items()
    )
    text = (
        f"score:  {over['ratio']:.3f}x its bare forward passes (95 % {over['low']:.3f} to {over['high']:.3f}, "
        f"{over['pairs']} pairs, {over['seconds']:.3f} s each)\n"
        f"share:  {search['share']:.0%} of {search['workers']} workers' time: {stages}; "
        f"{search['share_of_all_stages']:.0%} of all stages\n"
        f"beside: {beside['median']:.2f} s a network, {beside['most']:.2f} s at most; exported: {search['exported']}"
    )
    report(given, {"score": scored, "search": search}, text, ("torch", "ray", "prunefront"))


if __name__ == "__main__":
    main()
