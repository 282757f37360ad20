"""CPU time and memory of tracing networks of ImageNet's time at 224 × 224, beside one forward pass and the cut.

For each network, in a process of its own with one thread: seconds of `torch.export`, of `pf.trace` as a whole, of one
forward pass, and of the cut of half of every group; the most memory that tracing took beside the model, as a share of
the model's size. A small network is traced before, since the first export of a process imports much of torch.

    python -m benchmarks.tracing [--quick] [--json] [--only ResNet-50,VGG-16-BN]
"""

import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.harness import arguments, choose, report, say, table
from benchmarks.imagenet import NETWORKS
from prunefront.choice import GroupChoice
from prunefront.pruners.cut.surgery import apply
from prunefront.pruners.graph.pruning_plan import GroupPlan, PruningPlan
from prunefront.pruners.trace.tracer import trace
from prunefront.pruners.units.eval_mode import eval_mode

QUICK = ("MobileNetV2",)


def cpu_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the CPU time of a call in seconds, and what it returned."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def peak_mib() -> float:
    """Returns the most memory that the process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str) -> dict[str, Any]:
    """Returns the figures of one network."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)), torch.randn(1, 3, 8, 8))
    model, x = NETWORKS[name]().eval(), torch.randn(1, 3, 224, 224)
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 2**20
    with torch.no_grad():
        model(x)
        forward, _ = cpu_seconds(lambda: model(x))
    before = peak_mib()
    total, graph = cpu_seconds(lambda: trace(model, x))
    after = peak_mib()
    with eval_mode(model):
        export, _ = cpu_seconds(lambda: torch.export.export(model, (x,)))
    half = [
        GroupPlan(g.name, GroupChoice("none"), g.units, tuple(range(g.units // 2)), 0.5) for g in graph.groups
    ]
    cut, _ = cpu_seconds(lambda: apply(model, graph, PruningPlan(tuple(half))))
    return {
        "network": name,
        "model_mib": size,
        "forward_s": forward,
        "export_s": export,
        "trace_s": total,
        "cut_s": cut,
        "memory": 1 + (after - before) / size,
        "groups": len(graph.groups),
        "frozen": len(graph.frozen),
    }


def main() -> None:
    parser = arguments(__doc__, quick="the smallest network alone")
    parser.add_argument("--only", help="networks, separated by commas")
    given = parser.parse_args()
    names = choose(parser, given.only, NETWORKS, QUICK if given.quick else NETWORKS)
    rows = []
    for name in names:
        say(name)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (name,)))
    head = ("network", "MiB", "forward", "export", "trace", "cut", "memory / model", "groups")
    cells = [
        (
            r["network"],
            f"{r['model_mib']:.0f}",
            *(f"{r[key]:.2f} s" for key in ("forward_s", "export_s", "trace_s", "cut_s")),
            f"{r['memory']:.1f}",
            r["groups"],
        )
        for r in rows
    ]
    report(given, {"networks": rows}, table(head, cells), ["torch"])


if __name__ == "__main__":
    main()
