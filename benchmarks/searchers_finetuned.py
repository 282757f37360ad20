"""How much of the front each searcher covers per training image, where a network counts only once it was trained.

The problem of benchmarks/searchers.py (ResNet-20 on CIFAR-10, nine channel groups, L1, ratios up to 0.93), but each
network is fine-tuned by the product's recipe with distillation. An epoch is one pass over the same 10,000 training
images, rows 0 to 9,999; accuracy on rows 45,000 to 46,999 afterwards. Hypervolume: area of
(accuracy above 0.1, MACs ratio below 1) of the trained networks after 6, 12 and 24 epochs in all, whichever they
went into. A network that goes on from a rung starts a schedule of its own, so it is worth as much there as one that
ends there.

Scores without training cost no epoch (they estimate batch norms on 1,024 images); only `ours` and `EagleEye` take any.

    python benchmarks/searchers_finetuned.py [--quick] [--json] [--only auto,random] [--seeds 3] [--images 10000]
                                             [--jobs 1] [--device cpu] [--cache FILE] [--trained FILE] [--plot FILE]

--cache is the file of benchmarks/searchers.py; --trained keeps trained results, so that a run can be interrupted.
"""

import argparse
import fcntl
import importlib.metadata
import importlib.util
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cifar import trained
from benchmarks.peers import MAX_RATIO, Moasha, Optuna, Peer, at_ratios, random, tpe
from benchmarks.reference import CHANCE, Reference
from prunefront.pipelines.measure.accuracy import accuracy
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.train import train
from prunefront.pruners.graph.plan import PruningPlan
from prunefront.pruners.plan.cost import macs
from prunefront.pruners.plan.decide import plan
from prunefront.search.outcomes.measurement import OBJECTIVES, Measurement
from prunefront.search.promotion.halving import Rungs
from prunefront.search.promotion.promotion import promote
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.heuristics import van_der_corput

POINTS = (6, 12, 24)
SCORED = 100
"""Networks that are scored without training before any is trained."""

RUNGS = (1, 2, 4)
"""Epochs after which Syne Tune's MOASHA compares."""

Parts = tuple[int, ...]
"""Epochs of each schedule that a network went through, one after the other."""

Method = Callable[["Trainer", int, int], Generator[tuple[Candidate, Parts], Measurement, None]]
"""Trainer, seed, epochs in all -> networks to train, each answered with what it measures then."""


class Trainer:
    """Candidates -> accuracy after fine-tuning, and MACs. The same plan, trained the same way, is paid for once.

    images: of an epoch, the first ones of the training rows. file: keeps what was measured from run to run.
    """

    def __init__(self, reference: Reference, images: int, file: Path | None) -> None:
        self.reference = reference
        bench = reference.cifar.bench
        self.data = replace(bench.data, train=bench.data.train[:images])
        self.recipe = replace(bench.recipe, precision="float32")
        self.images = len(self.data.train)
        self._evaluator = Evaluator(replace(bench, data=self.data, recipe=self.recipe))
        self._validation = bench.data.validation[:2000]
        self._file = file
        self._known: dict[str, float] = {}
        self._models: dict[str, tuple[Parts, nn.Module]] = {}  # of the networks that may go on
        self.seconds: list[float] = []  # of each epoch that was trained here
        if file is not None and file.exists():
            self._known = dict(json.loads(line) for line in file.read_text().splitlines())

    def plan(self, candidate: Candidate) -> PruningPlan:
        return plan(self.reference.graph, candidate.choices, self.reference.cifar.scores)

    def measure(self, candidate: Candidate, parts: Parts) -> Measurement:
        """Of the candidate's network after schedules of so many epochs each."""
        aim = self.plan(candidate)
        name = self.name(aim.key(), parts)
        if name not in self._known:
            model = self._trained(aim, parts)
            value = accuracy(model, self._validation, self.data.transform).value
            self._known[name] = value
            if self._file is not None:
                with self._file.open("a") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    file.write(json.dumps([name, value]) + "\n")
        share = self._known[name]
        noise = 1.96 * (share * (1 - share) / len(self._validation)) ** 0.5
        price = float(macs(self.reference.graph, aim))
        return Measurement({"accuracy": share, "macs": price}, {"accuracy": noise})

    def name(self, key: str, parts: Parts) -> str:
        """Under which a result is kept: plan, epochs, images of an epoch and seed of training."""
        return f"{key} {'+'.join(map(str, parts))} x {self.images} seed {self.recipe.seed}"

    def _trained(self, aim: PruningPlan, parts: Parts) -> nn.Module:
        done, model = self._models.get(aim.key(), ((), None))
        if model is None or done != parts[: len(done)]:
            done, model = (), None
        for number in range(len(done), len(parts)):
            started = time.perf_counter()
            epochs = parts[number]
            if model is None:
                model = trained(self._evaluator, aim, epochs)
            else:  # other batches than before
                recipe = replace(self.recipe, epochs=epochs, seed=self.recipe.seed + number)
                for _ in train(model, self.data, recipe, teacher=self._evaluator.dense):
                    pass
            self.seconds += [(time.perf_counter() - started) / epochs] * epochs
        assert model is not None
        self._models[aim.key()] = parts, model
        return model


def each(make: Callable[[Reference, int, int], Peer]) -> Method:
    """A peer whose every proposal is trained for one epoch, and told."""

    def method(trainer: Trainer, seed: int, epochs: int) -> Generator[tuple[Candidate, Parts], Measurement]:
        peer = make(trainer.reference, seed, epochs)
        while (candidate := peer.ask()) is not None:
            peer.tell(candidate, (yield candidate, (1,)))

    return method


def sweep(trainer: Trainer, seed: int, epochs: int) -> Generator[tuple[Candidate, Parts], Measurement]:
    """One ratio for all groups, as many of them as there are epochs, every prefix spread over them."""
    space = trainer.reference.problem().space
    ratios = np.linspace(0.0, MAX_RATIO, epochs + 1)[1:]
    for i in van_der_corput(epochs):
        yield at_ratios(space, [ratios[i]] * len(space.groups)), (1,)


def scored(trainer: Trainer, seed: int, name: str) -> dict[str, tuple[Candidate, Measurement]]:
    """Plan key -> candidate and its score without training, of SCORED different networks."""
    reference = trainer.reference
    peer: Any = random(reference, seed, 10 * SCORED)
    if name != "EagleEye":
        peer = searchers[name](reference.problem(), seed=seed)
    found: dict[str, tuple[Candidate, Measurement]] = {}
    while len(found) < SCORED:
        candidate = peer.ask()
        if candidate is None:
            break
        key, measured = reference.measure(candidate)
        peer.tell(candidate, measured)
        found.setdefault(key, (candidate, measured))
    return found


def promoted(found: dict[str, tuple[Candidate, Measurement]], count: int, dense: float) -> list[str]:
    """Keys that deserve training, every prefix spread over their costs: `promote` gives the dearest first."""
    measured = {key: m for key, (_, m) in found.items() if m["macs"] < dense}
    keys = sorted(promote(measured, count, chance=CHANCE), key=lambda k: (measured[k]["macs"], k))
    return [keys[i] for i in van_der_corput(len(keys))]


def two_stages(name: str) -> Method:
    """Scores without training, then one epoch for each of those that were promoted."""

    def method(trainer: Trainer, seed: int, epochs: int) -> Generator[tuple[Candidate, Parts], Measurement]:
        found = scored(trainer, seed, name)
        for key in promoted(found, epochs, trainer.reference.dense_macs):
            yield found[key][0], (1,)

    return method


def two_rungs(name: str) -> Method:
    """As `two_stages`, but two thirds as many are promoted, and half of them go on from a rung to a second epoch."""

    def method(trainer: Trainer, seed: int, epochs: int) -> Generator[tuple[Candidate, Parts], Measurement]:
        found = scored(trainer, seed, name)
        objectives = (OBJECTIVES["accuracy"], OBJECTIVES["macs"])
        rungs = Rungs(objectives, levels=(1,), keep=0.5, seed=seed, probes=0)
        for key in promoted(found, -(-2 * epochs // 3), trainer.reference.dense_macs):
            candidate, untrained = found[key]
            rungs.observe(0, key, untrained)
            if rungs.report(1, key, (yield candidate, (1,))).go_on:
                rungs.end(key, (yield candidate, (1, 1)))

    return method


def moasha(trainer: Trainer, seed: int, epochs: int) -> Generator[tuple[Candidate, Parts], Measurement]:
    """Syne Tune's MOASHA with rungs after 1, 2 and 4 epochs."""
    scheduler = Moasha(trainer.reference, seed, max_epochs=RUNGS[-1])
    while True:
        number, candidate = scheduler.start()
        parts: Parts = ()
        for level in RUNGS:
            parts = (*parts, level - sum(parts))
            if not scheduler.goes_on(number, level, (yield candidate, parts)):
                break


def nsga2(reference: Reference, seed: int, evaluations: int) -> Peer:
    return Optuna(reference, optuna.samplers.NSGAIISampler(population_size=8, seed=seed))


METHODS: dict[str, Method] = {
    "auto": two_stages("auto"),
    "auto, two rungs": two_rungs("auto"),
    "EagleEye": two_stages("EagleEye"),
    "random": each(random),
    "Optuna TPE": each(tpe),
    "Optuna NSGA-II": each(nsga2),
    "uniform sweep": sweep,
}
if importlib.util.find_spec("syne_tune"):
    METHODS["Syne Tune MOASHA"] = moasha

DRAWS_NOTHING = ("uniform sweep",)


def run(trainer: Trainer, name: str, seed: int, epochs: int) -> list[float]:
    """Hypervolume after each epoch that was spent; a network already trained this way in this run costs none."""
    work = METHODS[name](trainer, seed, epochs)
    measured: dict[str, Measurement] = {}
    volumes: list[float] = []
    repeats = 0
    try:
        candidate, parts = next(work)
        while repeats < 200:
            known = trainer.name(trainer.plan(candidate).key(), parts)
            if known in measured:
                repeats += 1
            elif len(volumes) + parts[-1] > epochs:
                break
            else:
                repeats = 0
                before = volumes[-1] if volumes else 0.0
                measured[known] = trainer.measure(candidate, parts)
                volume = trainer.reference.hypervolume(measured.values())
                volumes += [before] * (parts[-1] - 1) + [volume]
            candidate, parts = work.send(measured[known])
    except StopIteration:
        pass
    return volumes + [volumes[-1]] * (epochs - len(volumes))


_trainer: Trainer | None = None


def _begin(cache: Path | None, images: int, trained: Path | None, device: str) -> None:
    global _trainer
    _trainer = Trainer(Reference(cache=cache, device=device), images, trained)


def _run(name: str, seed: int, epochs: int) -> tuple[list[float], list[float]]:
    """In a process of the pool: `run`, and the seconds of each epoch that it trained."""
    assert _trainer is not None
    before = len(_trainer.seconds)
    return run(_trainer, name, seed, epochs), _trainer.seconds[before:]


def plot(found: dict[str, list[list[float]]], path: Path) -> None:
    """Mean curves with their spread over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for number, (name, curves) in enumerate(found.items()):
        colour = plt.get_cmap("tab10")(number % 10)
        columns = list(zip(*curves, strict=True))
        steps = range(1, len(columns) + 1)
        style = "-" if name.startswith("auto") else "--"
        axes.plot(steps, [statistics.fmean(c) for c in columns], style, color=colour, label=name)
        axes.fill_between(
            steps, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.15
        )
    axes.set(xlabel="epochs spent in all", ylabel="hypervolume (accuracy, MACs)")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def means(runs: Sequence[list[float]], points: Sequence[int]) -> dict[str, float]:
    return {str(p): round(statistics.fmean(r[p - 1] for r in runs), 4) for p in points}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="random and the sweep, one seed, 3 epochs of 256 images"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--only", help="semicolon-separated methods; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000, help="of an epoch")
    parser.add_argument("--jobs", type=int, default=1, help="processes that search and train")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--cache", type=Path, help="keeps scores without training from run to run")
    parser.add_argument("--trained", type=Path, help="keeps trained results from run to run")
    parser.add_argument("--plot", type=Path, help="writes the curves as an image")
    given = parser.parse_args()
    names = given.only.split(";") if given.only else list(METHODS)
    if unknown := [n for n in names if n not in METHODS]:
        parser.error(f"no method is called {unknown[0]!r}; there are: {'; '.join(METHODS)}")
    points, seeds, images = POINTS, given.seeds, given.images
    if given.quick:
        names = given.only.split(";") if given.only else ["random", "uniform sweep"]
        points, seeds, images = (3,), 1, 256
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    seconds: list[float] = []
    context = multiprocessing.get_context("spawn")
    begin = (given.cache, images, given.trained, given.device)
    with ProcessPoolExecutor(given.jobs, mp_context=context, initializer=_begin, initargs=begin) as pool:
        runs = {
            (name, seed): pool.submit(_run, name, seed, points[-1])
            for seed in range(seeds)
            for name in names
            if seed == 0 or name not in DRAWS_NOTHING
        }
        for (name, seed), done in runs.items():
            volumes, took = done.result()
            found[name].append(volumes)
            seconds += took
            if not given.json:
                values = "  ".join(f"{p}: {volumes[p - 1]:.4f}" for p in points)
                print(f"{name:22} seed {seed}  {values}", flush=True)
    if given.plot:
        plot(found, given.plot)
    versions = {n: importlib.metadata.version(n) for n in ("torch", "numpy", "optuna", "prunefront")}
    where = {"machine": platform.machine(), "python": platform.python_version(), **versions}
    if given.device == "cuda":
        where["gpu"] = torch.cuda.get_device_name()
    table = {name: means(runs, points) for name, runs in found.items()}
    if given.json:
        settings = {"seeds": seeds, "images": images, "where": where}
        curves = {name: [[round(v, 4) for v in r] for r in runs] for name, runs in found.items()}
        print(json.dumps({"hypervolume": table, **settings, "runs": curves}))
        return
    print("\n" + ", ".join(f"{k} {v}" for k, v in where.items()) + f"; {images:,} images an epoch")
    for name, volumes in table.items():
        print(f"{name:22} " + "  ".join(f"{p}: {v:.4f}" for p, v in volumes.items()))
    if seconds:
        print(f"{len(seconds)} epochs trained, {statistics.median(seconds):.1f} s each (median)")


if __name__ == "__main__":
    main()
