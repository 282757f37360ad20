"""Every criterion against the true change of the loss: ResNet-20 on real CIFAR-10, no search.

rank:    Spearman's ρ of a criterion's scores with |ΔL|, the true change of the loss when a unit is masked: on images
         that the criterion saw (mean over the inner groups, and all their units together), and on others.
seconds: CPU time of the criterion's statistics, alone, on one core.
cut:     accuracy with 10, 30 and 50 % of the units of each inner group gone and batch norms estimated anew.
train:   the same at 50 % after two passes over a part of the training images.

    python -m benchmarks.criteria [--quick] [--json] [--seeds 3] [--workers 2] [--keep FOLDER] [--write docs]

Without --quick it takes hours of one core; results are kept in FOLDER and not measured again. --write makes the table
of criteria.md and criteria.png anew. --quick: a small network on handwritten digits, one seed.
"""

import copy
import json
import os
import statistics as stats
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.accuracy import accuracy
from benchmarks.cifar import IMAGES, WEIGHTS
from benchmarks.harness import arguments, report, say, spread, table
from prunefront.choice import GroupChoice
from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import DataSection, ModelSection
from prunefront.pipelines.data import SearchData, batches, load
from prunefront.pipelines.formats.weights import load_weights
from prunefront.pipelines.models import build
from prunefront.pipelines.workers.train import Recipe, begin, carry_out, train
from prunefront.pruners.criteria import criteria
from prunefront.pruners.cut.prune import prune
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.procedures import procedures
from prunefront.pruners.scoring import available, rank
from prunefront.pruners.statistics import Batch, collect
from prunefront.pruners.trace.tracer import trace
from prunefront.pruners.units.view import producers
from prunefront.search.promotion.rank_correlation import spearman

RATIOS = (0.1, 0.3, 0.5)


@dataclass(frozen=True, slots=True)
class Scale:
    """Amount of work. train: images of a pass. passes: number of passes. batch: images per step."""

    calibration: int = 1024
    validation: int = 2000
    train: int = 2000
    passes: int = 2
    batch: int = 128
    learning_rate: float = 0.02


FULL, QUICK = Scale(), Scale(calibration=128, validation=300, train=512, passes=1, batch=64)


@dataclass(frozen=True, slots=True)
class Bench:
    """The dense network, its graph, and the images; everything is float32 on one core."""

    model: nn.Module
    graph: ChannelGraph
    data: SearchData
    scale: Scale

    def calibration(self, seed: int) -> list[Batch]:
        """Returns augmented training images, different ones for each seed."""
        rng = np.random.default_rng([seed, 2])
        stream = batches(self.data.train, self.data.transform, 64, augment=rng, shuffle=rng)
        return list(islice(stream, self.scale.calibration // 64))

    def held_out(self) -> list[Batch]:
        """Returns plain validation images, on which the true change of the loss is measured."""
        count = min(512, self.scale.validation)
        return list(batches(self.data.validation[:count], self.data.transform, 128))

    def inner(self) -> list[str]:
        """Returns the groups that one layer makes, which every criterion fits, so that criteria compare."""
        return [g.name for g in self.graph.groups if len(producers(g, self.graph.shapes)) == 1]

    def right(self, model: nn.Module) -> float:
        """Returns the accuracy on validation images."""
        return accuracy(model, self.data.validation[: self.scale.validation], self.data.transform).value


@cache
def bench(quick: bool) -> Bench:
    """Makes the material of a process, once."""
    torch.set_num_threads(1)
    if quick:
        data = load(DataSection()).for_search()
        model = build(
            ModelSection(factory="digits_cnn", options={"width": 8}), classes=10, input_shape=(1, 8, 8)
        )
        for _ in train(model, data, Recipe(epochs=8, learning_rate=0.1, batch_size=64, warmup=0.2)):
            continue
        return Bench(model.eval(), trace(model, torch.zeros(2, 1, 8, 8)), data, QUICK)
    model = build(ModelSection(factory="resnet20"), classes=10, input_shape=(3, 32, 32))
    load_weights(model, WEIGHTS)
    data = load(DataSection(**IMAGES)).for_search()
    return Bench(model.eval(), trace(model, torch.zeros(2, 3, 32, 32)), data, FULL)


Scores = Mapping[str, NDArray[np.float64]]
"""Score per unit, by group."""


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement. kind: one of KINDS. method: criterion."""

    kind: str
    method: str
    seed: int
    ratio: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.method}-{self.seed}-{self.ratio:g}"


def measure(job: Job, quick: bool, folder: Path) -> dict[str, Any]:
    """Does one job and returns plain numbers. Scores are kept in the folder for later jobs."""
    here = bench(quick)
    return KINDS[job.kind](here, job, folder)


def _scores(here: Bench, method: str, seed: int, folder: Path) -> tuple[Scores, float]:
    """Returns a criterion's scores, from the folder if they were computed before, and their seconds."""
    path = folder / f"scores-{method}-{seed}.npz"
    if not path.exists():
        started = time.process_time()
        calibration = here.calibration(seed)
        found = collect(here.model, here.graph, calibration, criteria[method].needs)
        scores = rank(here.model, here.graph, [method], found)[method]
        new = path.with_name(f"new-{os.getpid()}.npz")
        np.savez(new, **scores, seconds=np.array(time.process_time() - started))
        new.replace(path)
    with np.load(path) as kept:
        return {name: kept[name] for name in kept.files if name != "seconds"}, float(kept["seconds"])


def _truth(here: Bench, job: Job, folder: Path) -> dict[str, Any]:
    path = folder / "truth.npz"
    found = collect(here.model, here.graph, here.held_out(), {"loss_change"}).values["loss_change"]
    np.savez(path, **{name: tensor.numpy() for name, tensor in found.items()})
    return {"units": sum(len(t) for t in found.values())}


def _rank(here: Bench, job: Job, folder: Path) -> dict[str, Any]:
    scores, seconds = _scores(here, job.method, job.seed, folder)
    return {"seconds": seconds, "groups": len(scores)}


def agreement(here: Bench, method: str, seed: int, folder: Path) -> dict[str, float]:
    """Returns the rank correlation of a criterion's scores with |ΔL|, on the images that it saw and on others."""
    scores, _ = _scores(here, method, seed, folder)
    same, _ = _scores(here, "oracle", seed, folder)
    with np.load(folder / "truth.npz") as kept:
        held = {name: np.abs(kept[name]) for name in kept.files}
    names = [g for g in here.inner() if g in scores]

    def within(truth: Scores) -> float:
        return stats.fmean(spearman(scores[g], truth[g]) for g in names)

    together = (np.concatenate([found[g] for g in names]) for found in (scores, same))
    return {"within": within(same), "across": spearman(*together), "held_out": within(held)}


def _goal(here: Bench, job: Job, folder: Path) -> PruningPlan:
    scores, _ = _scores(here, job.method, job.seed, folder)
    choices = {g: GroupChoice(job.method, job.ratio) for g in here.inner() if g in scores}
    return plan(here.graph, choices, {job.method: scores})


def _cut(here: Bench, job: Job, folder: Path) -> dict[str, Any]:
    aim = _goal(here, job, folder)
    return {"accuracy": here.right(prune(here.model, here.graph, aim, here.calibration(job.seed)))}


def _train(here: Bench, job: Job, folder: Path) -> dict[str, Any]:
    scale = here.scale
    data = replace(here.data, train=here.data.train[: scale.train])
    recipe = Recipe(scale.passes, scale.learning_rate, scale.batch, seed=job.seed)
    goal = _goal(here, job, folder)
    run = begin(copy.deepcopy(here.model), here.graph, goal, data, recipe, here.calibration(job.seed))
    for _ in carry_out(run, procedures["one_shot"](run), data, recipe):
        continue
    return {"accuracy": here.right(run.model)}


KINDS: dict[str, Callable[[Bench, Job, Path], dict[str, Any]]] = {
    "truth": _truth,
    "rank": _rank,
    "cut": _cut,
    "train": _train,
}


def fitting(here: Bench) -> list[str]:
    """Returns the criteria that fit every inner group."""
    fits = available(here.graph)
    return [name for name in criteria if all(name in fits[g] for g in here.inner())]


def jobs(here: Bench, seeds: int, quick: bool) -> Iterator[list[Job]]:
    """Yields rounds of jobs; each needs the files that the earlier ones left in the folder."""
    names = fitting(here)
    yield [Job("truth", "", 0)]
    slow_first = sorted(names, key=lambda n: n not in ("dcp", "oracle", "spectral_radius", "sosp_i", "chip"))
    yield [Job("rank", name, seed) for seed in range(seeds) for name in slow_first]
    ratios = RATIOS[-1:] if quick else RATIOS
    yield [Job("cut", name, seed, r) for seed in range(seeds) for name in names for r in ratios]
    trained = ["taylor", "random"] if quick else names
    yield [Job("train", name, seed, 0.5) for seed in range(seeds) for name in trained]


def run(quick: bool, seeds: int, workers: int, folder: Path) -> dict[str, Any]:
    """Does all jobs that the folder does not hold yet, and returns the summary of all."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "results.jsonl"
    done = _done(log)
    with ProcessPoolExecutor(workers) as pool:
        for batch in jobs(bench(quick), seeds, quick):
            pending = {job: pool.submit(_safely, job, quick, folder) for job in batch if job.name not in done}
            for job, future in pending.items():
                result = future.result()
                done[job.name] = {**asdict(job), **result}
                with log.open("a") as file:
                    file.write(json.dumps(done[job.name]) + "\n")
                say(f"{job.name}: {result}")
    results = list(done.values())
    for result in results:
        if result["kind"] == "rank" and "error" not in result:
            result |= agreement(bench(quick), result["method"], result["seed"], folder)
    return summary(results, quick)


def _safely(job: Job, quick: bool, folder: Path) -> dict[str, Any]:
    try:
        return measure(job, quick, folder)
    except PrunefrontError as error:
        return {"error": str(error)}


def _done(log: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return {Job(r["kind"], r["method"], r["seed"], r["ratio"]).name: r for r in lines if "error" not in r}


def summary(results: Sequence[Mapping[str, Any]], quick: bool) -> dict[str, Any]:
    """Returns `harness.spread` over seeds of every figure, by criterion; None without a value."""

    def over(kind: str, method: str, key: str, ratio: float = 0.0) -> dict[str, float] | None:
        of = (kind, method, ratio)
        found = [r[key] for r in results if (r["kind"], r["method"], r["ratio"]) == of and key in r]
        return spread(found) if found else None

    names = sorted({r["method"] for r in results if r["kind"] == "rank"})
    return {
        "network": "digits_cnn, width 8, on digits" if quick else "ResNet-20 on CIFAR-10",
        "criteria": {
            name: {
                "within": over("rank", name, "within"),
                "across": over("rank", name, "across"),
                "held_out": over("rank", name, "held_out"),
                "seconds": over("rank", name, "seconds"),
                **{f"cut_{int(100 * r)}": over("cut", name, "accuracy", r) for r in RATIOS},
                "train_50": over("train", name, "accuracy", 0.5),
            }
            for name in names
        },
        "errors": sorted({f"{r['method']}: {r['error']}" for r in results if "error" in r}),
    }


def _cell(value: Mapping[str, float] | None, scale: float, digits: int) -> str:
    if value is None:
        return "–"
    deviation = f" ± {scale * value['std']:.{digits}f}" if value["n"] > 1 else ""
    return f"{scale * value['mean']:.{digits}f}{deviation}"


def _best_last(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns the criteria by accuracy with 50 % of the units gone."""
    return sorted(
        found["criteria"].items(), key=lambda kv: kv[1]["cut_50"]["mean"] if kv[1]["cut_50"] else 0.0
    )


def criteria_table(found: Mapping[str, Any]) -> str:
    """Writes the criteria, best first at 50 % gone, in Markdown."""
    shown = [("within", 1, 2), ("across", 1, 2), ("held_out", 1, 2), ("seconds", 1, 1)]
    shown += [(name, 100, 1) for name in ("cut_10", "cut_30", "cut_50", "train_50")]
    return table(
        (
            "criterion",
            "ρ within",
            "ρ across",
            "ρ others",
            "seconds",
            "10 % gone",
            "30 %",
            "50 %",
            "50 %, trained",
        ),
        [
            (f"`{method}`", *(_cell(row[name], scale, digits) for name, scale, digits in shown))
            for method, row in reversed(_best_last(found))
        ],
    )


def into(page: str, found: Mapping[str, Any]) -> str:
    """Returns the page with the present table between its marks."""
    head, mark, rest = page.partition("<!-- results: criteria -->\n")
    return head + mark + criteria_table(found) + "\n" + rest[rest.index("<!-- end -->") :]


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draws the criteria as rows: correlation, accuracy after the cut and after training, seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = _best_last(found)
    places = range(len(rows))
    canvas = Figure(figsize=(11, 0.27 * len(rows) + 1.4), dpi=130, layout="constrained")
    FigureCanvasAgg(canvas)
    panels = canvas.subplots(1, 3, sharey=True, width_ratios=(1, 1.4, 0.8))
    series: list[tuple[int, str, float, str, str, str]] = [
        (0, "within", 1, "#1f5fa8", "o", "within a layer"),
        (0, "across", 1, "#9ca3af", "s", "across layers"),
        (1, "cut_10", 100, "#a6cee3", "o", "10 % gone"),
        (1, "cut_30", 100, "#1f78b4", "o", "30 % gone"),
        (1, "cut_50", 100, "#08306b", "o", "50 % gone"),
        (1, "train_50", 100, "#d95f02", "D", "50 %, trained on"),
        (2, "seconds", 1, "#4b5563", "o", "seconds"),
    ]
    for panel, key, scale, colour, marker, label in series:
        known = [(at, row[key]) for at, (_, row) in zip(places, rows, strict=True) if row[key] is not None]
        panels[panel].errorbar(
            [scale * value["mean"] for _, value in known],
            [at for at, _ in known],
            xerr=[scale * value["std"] for _, value in known],
            fmt=marker,
            color=colour,
            markersize=4.5,
            elinewidth=1,
            label=label,
        )
    panels[0].set_yticks(list(places), [name for name, _ in rows], fontsize=8)
    panels[0].set_xlabel("Spearman's ρ with the true change of the loss")
    panels[1].set_xlabel("validation accuracy [%]")
    panels[2].set_xlabel("CPU seconds")
    panels[2].set_xscale("log")
    for axes in panels:
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[:2]:
        axes.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    canvas.savefig(path, metadata={"Software": "prunefront"})


def main() -> None:
    parser = arguments(__doc__, quick="a small network on digits, under a minute")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="the folder with the results so far")
    parser.add_argument(
        "--write", type=Path, help="the folder whose criteria.md and criteria.png are written anew"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prunefront-") as temporary:
        folder = given.keep or Path(temporary)
        found = run(given.quick, 1 if given.quick else given.seeds, given.workers, folder)
    if given.write:
        draw(found, given.write / "criteria.png")
        page = given.write / "criteria.md"
        page.write_text(into(page.read_text(), found))
    report(given, found, criteria_table(found), ("torch",))


if __name__ == "__main__":
    main()
