"""Accuracy by every structured procedure for the same goal: a small network on scikit-learn's digits, no search.

steps: accuracy on validation images when all procedures have equally many steps in all, cuts included.
after: the same when Tick-Tock and its ablation have as many steps after their last cut as one_shot, as in the authors'
       comparison; they then take 2.5 and 1.7 times the steps.

    python -m benchmarks.procedures [--quick] [--json] [--seeds 3] [--workers 2]
"""

import copy
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import islice

import numpy as np
import torch
from torch import nn

from benchmarks.accuracy import accuracy
from benchmarks.harness import arguments, plus_minus, report, table
from prunefront.choice import GroupChoice
from prunefront.pipelines.config.sections import DataSection, ModelSection
from prunefront.pipelines.data import SearchData, batches, load
from prunefront.pipelines.models import build
from prunefront.pipelines.workers.train import Recipe, begin, carry_out, train
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.procedures import procedures
from prunefront.pruners.scoring import score
from prunefront.pruners.trace.tracer import trace

STRUCTURED = (
    "one_shot",
    "iterative",
    "cubic_ramp",
    "tick_only",
    "tick_tock",
    "soft_filter",
    "gdp",
    "network_slimming",
    "group_lasso",
    "spectral_radius",
)
AFTER = {"one_shot": 1.0, "tick_only": 0.6, "tick_tock": 0.4}
"""Share of a procedure's steps that follow its last cut."""

RATIO = 0.8
BATCH = 64


@cache
def material() -> tuple[nn.Module, ChannelGraph, SearchData]:
    """Returns the dense network, its graph and the images; the same in each process."""
    torch.set_num_threads(1)
    data = load(DataSection()).for_search()
    section = ModelSection(factory="digits_cnn", options={"width": 16})
    model = build(section, classes=10, input_shape=(1, 8, 8))
    for _ in train(model, data, Recipe(epochs=12, learning_rate=0.1, batch_size=BATCH, warmup=0.2)):
        continue
    return model.eval(), trace(model, torch.zeros(2, 1, 8, 8)), data


def measure(name: str, seed: int, epochs: int) -> float:
    """Returns the accuracy after `epochs` of the network without 80 % of every group's units, by taylor."""
    model, graph, data = material()
    rng = np.random.default_rng([seed, 2])
    calibration = list(islice(batches(data.train, data.transform, BATCH, augment=rng, shuffle=rng), 8))
    scores = score(model, graph, ["taylor"], calibration)
    goal = plan(graph, {g.name: GroupChoice("taylor", RATIO) for g in graph.groups}, scores)
    recipe = Recipe(epochs, learning_rate=0.05, batch_size=BATCH, seed=seed)
    run = begin(copy.deepcopy(model), graph, goal, data, recipe, calibration)
    for _ in carry_out(run, procedures[name](run), data, recipe):
        continue
    return accuracy(run.model, data.validation, data.transform).value


def main() -> None:
    parser = arguments(__doc__, quick="two seeds and few epochs, under a minute")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    epochs, seeds = (3, range(2)) if given.quick else (60, range(given.seeds))
    with ProcessPoolExecutor(given.workers) as pool:
        steps = {name: [pool.submit(measure, name, seed, epochs) for seed in seeds] for name in STRUCTURED}
        after = {
            name: [pool.submit(measure, name, seed, round(epochs / share)) for seed in seeds]
            for name, share in AFTER.items()
            if share < 1.0
        }
        found = {
            kind: {name: [100 * f.result() for f in each] for name, each in futures.items()}
            for kind, futures in (("steps", steps), ("after", after))
        }
    found["after"]["one_shot"] = found["steps"]["one_shot"]
    text = table(
        ("procedure", "equally many steps", "equally many after the last cut"),
        [
            (f"`{name}`", plus_minus(points, 1), plus_minus(found["after"].get(name, ()), 1))
            for name, points in sorted(found["steps"].items(), key=lambda kv: -statistics.fmean(kv[1]))
        ],
    )
    report(given, {"epochs": epochs, **found}, text, ("torch",))


if __name__ == "__main__":
    main()
