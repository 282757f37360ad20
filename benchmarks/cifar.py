"""What the benchmarks on real CIFAR-10 share: the study of the trained ResNet-20, and its evaluator in this process."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.measure.accuracy import accuracy
from prunefront.pipelines.prepare.bench import make_bench
from prunefront.pipelines.prepare.knowledge import know
from prunefront.pipelines.prepare.network import Network, dense_network
from prunefront.pipelines.workers.bench import Job
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pruners.graph.plan import PruningPlan, Scores
from prunefront.pruners.statistics import collect
from prunefront.search.space.candidate import Candidate

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

STUDY: dict[str, Any] = {
    "name": "cifar",
    "model": {"factory": "resnet20", "weights": str(DATA / "resnet20-cifar10.safetensors")},
    "data": {
        "source": "parquet",
        "train": str(DATA / "cifar10-train.parquet"),
        "test": str(DATA / "cifar10-test.parquet"),
        "validation": 5000,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "augment": "crop_flip",
        "padding": 4,
    },
}


def silent(line: str) -> None:
    """Progress is not what a benchmark prints."""


class Cifar:
    """The dense network, its scores, and a worker's evaluator.

    sections: over those of STUDY. images: how many training images there are to train on; None = all. device: "cpu" or
    "cuda", where candidates are scored and trained.
    """

    def __init__(self, sections: dict[str, Any], images: int | None = None, device: str = "cpu") -> None:
        cluster = {"gpus_per_worker": 0.0 if device == "cpu" else 1.0}
        with tempfile.TemporaryDirectory(prefix="prunefront-") as folder:
            self.config: StudyConfig = parse(
                STUDY | {"folder": folder, "cluster": cluster} | sections, source="benchmark", base=Path()
            )
            self.network: Network = dense_network(self.config, silent)
            bench = make_bench(self.config, self.network)
            data = replace(bench.data, train=bench.data.train[:images])
            self.bench = replace(bench, data=data)
            model = self.network.model

            def gather(graph: Any, batches: Sequence[Any], needs: Any) -> Any:
                return collect(model, graph, batches, needs)

            self.scores: Scores = know(self.config, self.network, gather, silent).scores
        self.evaluator = Evaluator(self.bench)

    def on_test(self, model: Any, limit: int | None) -> float:
        """Accuracy on the (first) test images, in float32."""
        test = self.network.splits.test
        return accuracy(model, test if limit is None else test[:limit], self.network.splits.transform).value

    def train(self, plan: PruningPlan, epochs: int, say: Callable[[str], None] = silent) -> Any:
        """The trained network of a plan, in eval mode."""
        return trained(self.evaluator, plan, epochs, say)


def trained(
    worker: Evaluator, plan: PruningPlan, epochs: int, say: Callable[[str], None] = silent
) -> nn.Module:
    """The network that a worker makes of a plan, in eval mode."""
    work = worker.train(Job(plan.key(), Candidate({}), plan, epochs))
    while True:
        try:
            say(f"{next(work).measurement['accuracy']:.4f}")
        except StopIteration as done:
            model: nn.Module = done.value[0]
            return model
