"""The trained ResNet-20 on CIFAR-10 of ../shared/data, as a study in this process."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.accuracy import accuracy
from benchmarks.local_study import LocalStudy
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.workbench import Job
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.search.space.candidate import Candidate

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

IMAGES: dict[str, Any] = {
    "source": "parquet",
    "train": str(DATA / "cifar10-train.parquet"),
    "test": str(DATA / "cifar10-test.parquet"),
    "validation": 5000,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "augment": "crop_flip",
    "padding": 4,
}
WEIGHTS = DATA / "resnet20-cifar10.safetensors"
STUDY: dict[str, Any] = {
    "name": "cifar",
    "model": {"factory": "resnet20", "weights": str(WEIGHTS)},
    "data": IMAGES,
    "training": {"precision": "float32"},  # "auto" would time both precisions for 20 seconds
}


class Cifar(LocalStudy):
    """The dense network, its scores, and a worker's evaluator.

    sections: replace those of STUDY. images: number of training images, None = all. device: "cpu" or "cuda", on which
    candidates are scored and trained.
    """

    def __init__(self, sections: dict[str, Any], images: int | None = None, device: str = "cpu") -> None:
        # published figures are of a criterion's own repair, unless a benchmark asks for another
        sections = sections | {"space": {"repair": "criterion"} | sections.get("space", {})}
        cluster = {"gpus_per_worker": 0.0 if device == "cpu" else 1.0}
        with tempfile.TemporaryDirectory(prefix="prunefront-") as folder:
            super().__init__(STUDY | {"cluster": cluster} | sections, Path(folder))
        self.bench = replace(self.bench, data=replace(self.bench.data, train=self.bench.data.train[:images]))
        self.evaluator = Evaluator(self.bench)

    def on_test(self, model: nn.Module, limit: int | None) -> float:
        """Returns the accuracy on the first `limit` test images, in float32; None = all."""
        splits = self.network.splits
        return accuracy(model, splits.test[:limit], splits.transform).value


def train_plan(worker: Evaluator, plan: PruningPlan, epochs: int) -> nn.Module:
    """Returns the network that a worker trains from a plan, in eval mode."""
    work = worker.train(Job(plan.key(), Candidate({}), plan, epochs))
    while True:
        try:
            next(work)
        except StopIteration as done:
            model: nn.Module = done.value[0]
            return model
