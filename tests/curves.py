"""Learning curves on formulas that stand for pruned networks in fine-tuning, and a clock that trains them by rungs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunefront.search.outcomes.front import ParetoFront
from prunefront.search.outcomes.measurement import OBJECTIVES, Measurement
from prunefront.search.promotion.choose_for_training import promote
from prunefront.search.promotion.halving import Rungs

OBJECTIVE_PAIR = (OBJECTIVES["accuracy"], OBJECTIVES["macs"])


@dataclass(frozen=True, slots=True)
class Curves:
    """Networks whose accuracy rises from what surgery left to a limit, the smaller the steeper (decision 0003).

    costs: MACs [n], dense = 1e8. limits: accuracies [n] that training tends to; they fall with cost, and networks of
    the same cost differ (some cut the wrong layers). gaps: what training brings back, more for the small ones, and by
    chance. damage: what the first epoch mends at once. pace: epochs in which the gap falls to 1/e. images: of
    validation, hence the noise.
    """

    costs: np.ndarray
    limits: np.ndarray
    gaps: np.ndarray
    damage: np.ndarray
    pace: float
    images: int
    seed: int

    def measure(self, key: str, epochs: int) -> Measurement:
        """After `epochs` of training, as `images` validation images show it: the same images, the same answer."""
        i = int(key)
        true = self.true(key, epochs)
        rng = np.random.default_rng([self.seed, i, epochs])
        seen = rng.binomial(self.images, true) / self.images
        half = 1.96 * np.sqrt(max(seen * (1 - seen), 1e-4) / self.images)
        return Measurement({"accuracy": float(seen), "macs": float(self.costs[i])}, {"accuracy": float(half)})

    def true(self, key: str, epochs: int) -> float:
        """Without the noise of counting images."""
        i = int(key)
        return float(
            np.clip(
                self.limits[i] - self.gaps[i] * np.exp(-epochs / self.pace) - self.damage[i] * (epochs == 0),
                0.1,
                1.0,
            )
        )

    def hypervolume(self, keys: Sequence[str], epochs: int) -> float:
        """Of the true accuracies of those that look non-dominated in the end, as a share of what is thinkable."""
        seen, real = ParetoFront(OBJECTIVE_PAIR), ParetoFront(OBJECTIVE_PAIR)
        for key in keys:
            seen.add(key, self.measure(key, epochs))
        for key in seen.members:
            real.add(
                key, Measurement({"accuracy": self.true(key, epochs), "macs": float(self.costs[int(key)])})
            )
        return real.relative_hypervolume({"accuracy": 0.1, "macs": 1.1e8})


def curves(
    count: int = 120,
    seed: int = 0,
    images: int = 5000,
    pace: float = 2.0,
    spread: float = 0.04,
    luck: float = 0.1,
    damage: float = 0.0,
) -> Curves:
    """Networks over two decades of cost. spread: standard deviation of the limits among networks of one cost."""
    rng = np.random.default_rng([seed, 97])
    size = rng.uniform(-2.0, 0.0, count)  # log10 of the share of the dense network
    limits = 0.93 - 0.04 * size**2 - spread * np.abs(rng.standard_normal(count))
    gaps = np.clip(0.05 - 0.25 * size + luck * rng.standard_normal(count), 0.02, 0.8)
    return Curves(1e8 * 10.0**size, limits, gaps, damage * rng.random(count), pace, images, seed)


def train(
    problem: Curves, rungs: Rungs | None, count: int, epochs: int, workers: int = 4, seed: int = 0
) -> tuple[list[str], int]:
    """The networks that reached the end, and the epochs spent on all: `count` promoted by their untrained scores,
    `workers` at a time, whose epochs end in random order. rungs: None = nothing is stopped."""
    rng = np.random.default_rng(seed)
    scores = {str(i): problem.measure(str(i), 0) for i in range(len(problem.costs))}
    waiting, running = promote(scores, count, chance=0.1), dict[str, int]()
    finished: list[str] = []
    spent = 0
    while waiting or running:
        while waiting and len(running) < workers:
            running[waiting.pop(0)] = 0
        key = list(running)[int(rng.integers(len(running)))]
        running[key] += 1
        spent += 1
        measured = problem.measure(key, running[key])
        if running[key] == epochs:
            finished.append(key)
            if rungs:
                rungs.end(key, measured)
        elif not rungs or running[key] not in rungs.levels or rungs.report(running[key], key, measured).go_on:
            continue
        del running[key]
    return finished, spent
