"""Hypervolume of each searcher per training image, if only trained networks count.

The problem is that of benchmarks/searchers.py (ResNet-20 on CIFAR-10, nine channel groups, L1, ratios up to 0.93), but
each network is fine-tuned by the product's recipe with distillation. An epoch is one pass over the same 10,000 training
images, rows 0 to 9,999; accuracy is taken on rows 45,000 to 46,999 afterwards. Hypervolume: area of (accuracy above
0.1, MACs ratio below 1) of the trained networks after 6, 12 and 24 epochs in all. A network that goes on from a rung
starts a schedule of its own, so it is worth as much there as one that ends there.

Scores without training cost no epoch (they estimate batch norms on 1,024 images); only `auto` and `EagleEye` use any.

    python -m benchmarks.searchers_finetuned [--quick] [--json] [--only auto,random] [--seeds 3] [--images 10000]
                                             [--jobs 1] [--device cpu] [--cache FILE] [--trained FILE] [--plot FILE]

--cache is the file of benchmarks/searchers.py; --trained keeps trained results, so that a run can be interrupted.
"""

import fcntl
import importlib.util
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from torch import nn

from benchmarks.accuracy import accuracy
from benchmarks.cifar import train_plan
from benchmarks.curves import draw
from benchmarks.harness import arguments, choose, report, say, table
from benchmarks.peers import MAX_RATIO, Moasha, Optuna, Peer, at_ratios, random, tpe
from benchmarks.reference import CHANCE, Reference
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.train import train
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.plan.cost import macs
from prunefront.pruners.plan.decide import plan
from prunefront.search.outcomes.measurement import OBJECTIVES, Measurement
from prunefront.search.promotion.choose_for_training import promote
from prunefront.search.promotion.halving import Rungs
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.heuristics import van_der_corput

POINTS = (6, 12, 24)
SCORED = 100
"""Number of networks that are scored without training before any is trained."""

RUNGS = (1, 2, 4)
"""Epochs after which Syne Tune's MOASHA compares."""

Parts = tuple[int, ...]
"""Epochs of each schedule that a network went through, one after the other."""

Method = Callable[["Trainer", int, int], Generator[tuple[Candidate, Parts], Measurement, None]]
"""Function from trainer, seed and epochs in all to networks to train, each answered with its measurement."""


class Trainer:
    """Accuracy after fine-tuning, and MACs, of candidates. The same plan, trained the same way, is paid for once.

    images: number of an epoch, the first ones of the training rows. file: keeps results from run to run.
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
        self._models: dict[str, tuple[Parts, nn.Module]] = {}  # networks that may go on
        self.seconds: list[float] = []  # duration of each epoch trained here
        if file is not None and file.exists():
            self._known = dict(json.loads(line) for line in file.read_text().splitlines())

    def plan(self, candidate: Candidate) -> PruningPlan:
        return plan(self.reference.graph, candidate.choices, self.reference.cifar.scores)

    def measure(self, candidate: Candidate, parts: Parts) -> Measurement:
        """Returns the measurement of the candidate's network after schedules of `parts` epochs."""
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
        """Returns the name of a result in the file: plan, epochs, images of an epoch and seed of training."""
        return f"{key} {'+'.join(map(str, parts))} x {self.images} seed {self.recipe.seed}"

    def _trained(self, aim: PruningPlan, parts: Parts) -> nn.Module:
        done, model = self._models.get(aim.key(), ((), None))
        if model is None or done != parts[: len(done)]:
            done, model = (), None
        for number in range(len(done), len(parts)):
            started = time.perf_counter()
            epochs = parts[number]
            if model is None:
                model = train_plan(self._evaluator, aim, epochs)
            else:  # other batches than before
                recipe = replace(self.recipe, epochs=epochs, seed=self.recipe.seed + number)
                for _ in train(model, self.data, recipe, teacher=self._evaluator.dense):
                    pass
            self.seconds += [(time.perf_counter() - started) / epochs] * epochs
        assert model is not None
        self._models[aim.key()] = parts, model
        return model


def each(make: Callable[[Reference, int, int], Peer]) -> Method:
    """Returns the method that trains every proposal of a peer for one epoch, and tells it."""

    def method(trainer: Trainer, seed: int, epochs: int) -> Generator[tuple[Candidate, Parts], Measurement]:
        peer = make(trainer.reference, seed, epochs)
        while (candidate := peer.ask()) is not None:
            peer.tell(candidate, (yield candidate, (1,)))

    return method


def sweep(trainer: Trainer, seed: int, epochs: int) -> Generator[tuple[Candidate, Parts], Measurement]:
    """Yields one ratio for all groups, as many as there are epochs, every prefix spread over them."""
    space = trainer.reference.problem().space
    ratios = np.linspace(0.0, MAX_RATIO, epochs + 1)[1:]
    for i in van_der_corput(epochs):
        yield at_ratios(space, [ratios[i]] * len(space.groups)), (1,)


def scored(trainer: Trainer, seed: int, name: str) -> dict[str, tuple[Candidate, Measurement]]:
    """Returns, by plan key, SCORED different candidates with their score without training."""
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
    """Returns the keys that deserve training, every prefix spread over costs (`promote` gives the dearest first)."""
    measured = {key: m for key, (_, m) in found.items() if m["macs"] < dense}
    keys = sorted(promote(measured, count, chance=CHANCE), key=lambda k: (measured[k]["macs"], k))
    return [keys[i] for i in van_der_corput(len(keys))]


def two_stages(name: str) -> Method:
    """Returns the method that scores without training, then trains each promoted network for one epoch."""

    def method(trainer: Trainer, seed: int, epochs: int) -> Generator[tuple[Candidate, Parts], Measurement]:
        found = scored(trainer, seed, name)
        for key in promoted(found, epochs, trainer.reference.dense_macs):
            yield found[key][0], (1,)

    return method


def two_rungs(name: str) -> Method:
    """Returns the method of `two_stages` with a rung: two thirds as many are promoted, half go on to a second epoch."""

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
    """Returns the hypervolume after each epoch; a network already trained this way in this run costs none."""
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
    """Runs a method in a process of the pool; returns `run` and the seconds of each epoch that it trained."""
    assert _trainer is not None
    before = len(_trainer.seconds)
    return run(_trainer, name, seed, epochs), _trainer.seconds[before:]


def main() -> None:
    parser = arguments(__doc__, quick="random and the sweep, one seed, 3 epochs of 256 images")
    parser.add_argument("--only", help="semicolon-separated methods; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000, help="of an epoch")
    parser.add_argument("--jobs", type=int, default=1, help="processes that search and train")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--cache", type=Path, help="keeps scores without training from run to run")
    parser.add_argument("--trained", type=Path, help="keeps trained results from run to run")
    parser.add_argument("--plot", type=Path, help="writes the curves as an image")
    given = parser.parse_args()
    default = ["random", "uniform sweep"] if given.quick else METHODS
    names = choose(parser, given.only, METHODS, default, separator=";")
    points, seeds, images = ((3,), 1, 256) if given.quick else (POINTS, given.seeds, given.images)
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
            say(f"{name} seed {seed}  " + "  ".join(f"{p}: {volumes[p - 1]:.4f}" for p in points))
    if given.plot:
        ours = [name for name in found if name.startswith("auto")]
        draw(found, given.plot, solid=ours, xlabel="epochs spent in all")
    means = {
        name: {str(p): round(statistics.fmean(r[p - 1] for r in runs), 4) for p in points}
        for name, runs in found.items()
    }
    text = table(
        ("method", *(f"after {p} epochs" for p in points)),
        [(name, *row.values()) for name, row in means.items()],
    )
    text += f"\n\n{images:,} images an epoch"
    if seconds:
        text += f"; {len(seconds)} epochs trained, {statistics.median(seconds):.1f} s each (median)"
    curves = {name: [[round(v, 4) for v in run] for run in runs] for name, runs in found.items()}
    result = {"hypervolume": means, "seeds": seeds, "images": images, "runs": curves}
    report(given, result, text, ("torch", "numpy", "optuna", "prunefront"), given.device)


if __name__ == "__main__":
    main()
