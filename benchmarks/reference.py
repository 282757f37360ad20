"""The searchers' reference problem: the trained ResNet-20 on CIFAR-10, nine channel groups, no training."""

import fcntl
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.cifar import Cifar
from prunefront.pruners.plan.cost import macs
from prunefront.search.outcomes.measurement import Measurement
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem

CHANCE = 0.1
SECTIONS: dict[str, Any] = {
    "space": {"criteria": ["l1"], "max_ratio": 0.93, "frozen": ["conv1"], "calibration_images": 1024},
    # rows 45,000 to 46,999 of the training file
    "scoring": {"validation_limit": 2000},
    "goal": {"objectives": ["accuracy", "macs"]},
    "start": {"seeds": 1},
}


class Reference:
    """Accuracy after batch norms are estimated anew, and MACs, of candidates; the same plan is paid for once.

    criteria: names that may rank a group's channels. cache: a file that keeps measurements from run to run. device: as
    in Cifar. repair: of the weights that read what is cut, as space.repair of a study.
    """

    def __init__(
        self,
        criteria: Iterable[str] = ("l1",),
        cache: Path | None = None,
        device: str = "cpu",
        repair: str = "criterion",
    ) -> None:
        torch.set_num_threads(1)
        space = SECTIONS["space"] | {"criteria": list(criteria), "repair": repair}
        self._repair = repair
        self.cifar = Cifar(SECTIONS | {"space": space}, device=device)
        self.graph = self.cifar.graph
        self.dense_macs = macs(self.graph)
        self._cache = cache
        self._known: dict[str, float] = {}
        if cache is not None and cache.exists():
            self._known = dict(json.loads(line) for line in cache.read_text().splitlines())

    def problem(self) -> Problem:
        """Returns the searcher's problem; its only seed is the dense network, and the budget is unknown."""
        found = self.cifar.problem(chance=CHANCE)
        assert len(found.seeds) == 1
        return replace(found, evaluations=0)

    def measure(self, candidate: Candidate) -> tuple[str, Measurement]:
        """Returns the key of the realised architecture, and its measurement."""
        aim = self.cifar.plan(candidate)
        images = len(self.cifar.evaluator.bench.data.validation[:2000])
        key = aim.key() if self._repair == "criterion" else f"{self._repair} {aim.key()}"
        if key not in self._known:
            self._known[key] = self.cifar.evaluator.score(aim)["accuracy"]
            if self._cache is not None:
                with self._cache.open("a") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    file.write(json.dumps([key, self._known[key]]) + "\n")
        accuracy = self._known[key]
        noise = 1.96 * (accuracy * (1 - accuracy) / images) ** 0.5
        return key, Measurement(
            {"accuracy": accuracy, "macs": float(macs(self.graph, aim))}, {"accuracy": noise}
        )

    def hypervolume(self, measured: Iterable[Measurement]) -> float:
        """Returns the area of (accuracy above chance, MACs ratio below 1) that the measurements cover."""
        points = sorted((m["macs"] / self.dense_macs, m["accuracy"]) for m in measured)
        area, top = 0.0, CHANCE
        for ratio, accuracy in points:
            if ratio < 1.0 and accuracy > top:
                area += (accuracy - top) * (1.0 - ratio)
                top = accuracy
        return area
