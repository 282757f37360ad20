"""CPU time of a candidate's first score, cut by `obs` and fitted from moments, over cut by `l1` and not fitted.

The same share of every group goes; batch norms are estimated anew on 1,024 images, accuracy is taken on 2,000. Both in
turn, median of per-pair ratios of CPU time, one thread. Fits are solved anew each time, as for a kept set that no
candidate had before. `gather` is the CPU time of moments and order once per study, in scores of a candidate by `l1`.

Images are those of CIFAR-10 in ../shared/data; ResNet-20 has its trained weights, other networks fresh ones. --quick
takes a small network on scikit-learn's digits.

    python -m benchmarks.repair_cost [--quick] [--json] [--only resnet20,mobilenet_v2]
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.cifar import IMAGES, STUDY, WEIGHTS
from benchmarks.harness import alternate, arguments, choose, report, say, seconds, table
from benchmarks.local_study import LocalStudy
from prunefront.choice import GroupChoice
from prunefront.pipelines.prepare.knowledge import calibration
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pruners.cut.refit import Refit
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.statistics import collect

NETWORKS = ("resnet20", "mobilenet_v2", "resnet56", "vgg16_bn")
RATIOS = (0.25, 0.5, 0.75)


def study(network: str, folder: Path) -> LocalStudy:
    """Returns the network's study, scored and with its moments."""
    weights = {"weights": str(WEIGHTS)} if network == "resnet20" else {}
    space = {"criteria": ["l1", "obs"], "calibration_images": 1024, "repair": "moments"}
    sections: dict[str, Any] = {
        "model": {"factory": network, **weights},
        "data": IMAGES | {"train_limit": 1100},
        "dense": {"epochs": 1},
        "space": space,
        "search": {"validation_limit": 2000},
    }
    if network == "digits_cnn":
        sections |= {"data": {"source": "digits"}, "space": space | {"calibration_images": 128}}
    return LocalStudy(STUDY | sections, folder)


def fresh(worker: Evaluator, aim: PruningPlan) -> None:
    """Scores a plan with nothing solved before."""
    moments = worker.bench.moments
    assert moments is not None
    worker._repaired = Refit(moments, 0)
    worker.score(aim)


def measure(network: str, pairs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="prunefront-") as folder:
        here = study(network, Path(folder))
        fitted = Evaluator(here.bench)
        plain = Evaluator(replace(here.bench, repair="none"))
        found: dict[str, Any] = {"ratios": {}}
        for ratio in RATIOS:
            aims = {
                name: plan(here.graph, {g: GroupChoice(name, ratio) for g in here.scores["obs"]}, here.scores)
                for name in ("l1", "obs")
            }
            cost = alternate(
                lambda aims=aims: fresh(fitted, aims["obs"]),
                lambda aims=aims: plain.score(aims["l1"]),
                pairs,
                time.process_time,
            )
            found["ratios"][str(ratio)] = cost
            say(f"{network}, {ratio:.0%} gone: {cost['ratio']:.3f} ({cost['from']:.3f} to {cost['to']:.3f})")
        images = calibration(1024, here.network, 0)
        needs = frozenset({"moments", "removal_error"})
        gather = seconds(lambda: collect(here.network.model, here.graph, images, needs), time.process_time)
        one = seconds(lambda: plain.score(aims["l1"]), time.process_time)
        held = sum(array.nbytes for array in here.knowledge.moments.values()) if here.knowledge.moments else 0
        found |= {"gather_seconds": gather, "gather_in_scores": gather / one, "moments_bytes": held}
    return found


def main() -> None:
    parser = arguments(__doc__, quick="a small network on digits, 3 pairs")
    parser.add_argument("--only", help="comma-separated networks; default: resnet20")
    parser.add_argument("--pairs", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = choose(parser, given.only, (*NETWORKS, "digits_cnn"), ["resnet20"])
    pairs = given.pairs
    if given.quick:
        names, pairs = ["digits_cnn"], 3
    found = {name: measure(name, pairs) for name in names}
    rows = [
        (
            name,
            *(f"{c['ratio']:.2f} ({c['from']:.2f} to {c['to']:.2f})" for c in costs["ratios"].values()),
            f"{costs['gather_seconds']:.1f}",
            f"{costs['moments_bytes'] / 2**20:.1f}",
        )
        for name, costs in found.items()
    ]
    head = ("network", *(f"{ratio:.0%} gone" for ratio in RATIOS), "gather, s", "moments, MiB")
    text = table(head, rows) + f"\n\nCPU time over that of l1 without a fit, median of {pairs} pairs (range)"
    report(given, found, text, ("torch", "numpy", "prunefront"))


if __name__ == "__main__":
    main()
