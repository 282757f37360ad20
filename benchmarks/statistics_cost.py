"""What it costs to look at calibration images.

first_order:  time of the shared first-order pass with all its fields over one plain forward and backward pass, the
              same network and the same images, run in turn; median of per-pair ratios. And each field by itself.
--all:        each other statistic alone, all its fields, in plain forward passes per image that it looks at.

Network and images are the trained ResNet-20 and CIFAR-10 in ../shared/data where they are; else, with --quick, a fresh
small network on scikit-learn's digits.

    python benchmarks/statistics_cost.py [--quick] [--all] [--json]
"""

import argparse
import json
import platform
import statistics as middle
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import DataSection, ModelSection
from prunefront.pipelines.data import batches, load
from prunefront.pipelines.formats.weights import load_weights
from prunefront.pipelines.models import build
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.statistics import Batch, collect, statistics
from prunefront.pruners.trace.tracer import trace

SHARED = Path(__file__).parents[2] / "shared" / "data"


def material(quick: bool) -> tuple[str, nn.Module, list[Batch]]:
    """Name, network and 1,000 images (200 with quick) in batches of 100."""
    images = 200 if quick else 1000
    there = (SHARED / "resnet20-cifar10.safetensors").exists()
    if not there and not quick:
        raise SystemExit(f"no network and images in {SHARED}; run with --quick to measure on digits instead")
    if there:
        model = ModelSection(factory="resnet20", weights=SHARED / "resnet20-cifar10.safetensors")
        data = DataSection(
            source="parquet",
            train=SHARED / "cifar10-train.parquet",
            test=SHARED / "cifar10-test.parquet",
            validation=2,
            train_limit=images,
            test_limit=2,
        )
    else:
        model, data = ModelSection(factory="digits_cnn"), DataSection(source="digits", train_limit=images)
    splits = load(data)
    shape = splits.train.images.shape[1:]
    network = build(model, classes=splits.classes, input_shape=shape)
    if model.weights is not None:
        load_weights(network, model.weights)
    return model.factory, network, list(batches(splits.train, splits.transform, 100))


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def against(mine: Callable[[], object], plain: Callable[[], object], pairs: int) -> dict[str, float]:
    """Both in turn. Median seconds of mine, and of the ratios per pair."""
    found = []
    for pair in range(pairs):
        order = (mine, plain) if pair % 2 else (plain, mine)
        times = [seconds(call) for call in order]
        found.append(tuple(times) if pair % 2 else tuple(reversed(times)))
    ratios = [a / b for a, b in found]
    return {
        "seconds": round(middle.median(a for a, _ in found), 3),
        "ratio": round(middle.median(ratios), 3),
        "from": round(min(ratios), 3),
        "to": round(max(ratios), 3),
    }


def forward(model: nn.Module, data: Sequence[Batch]) -> None:
    with torch.inference_mode():
        for inputs, _ in data:
            model(inputs)


def forward_backward(model: nn.Module, data: Sequence[Batch]) -> None:
    parameters = list(model.parameters())
    for inputs, target in data:
        torch.autograd.grad(F.cross_entropy(model(inputs), target), parameters)


def first_order(
    model: nn.Module, graph: ChannelGraph, data: Sequence[Batch], pairs: int
) -> dict[str, dict[str, float]]:
    """All fields together, then each alone, over one forward and backward pass."""
    fields = statistics["first_order"].fields
    collect(model, graph, data[:1], frozenset(fields))  # warms up
    wanted = {"all": frozenset(fields)} | {name: frozenset({name}) for name in sorted(fields)}
    return {
        name: against(
            lambda needs=needs: collect(model, graph, data, needs),
            lambda: forward_backward(model, data),
            pairs if name == "all" else (pairs + 2) // 5,
        )
        for name, needs in wanted.items()
    }


def others(model: nn.Module, graph: ChannelGraph, data: Sequence[Batch]) -> dict[str, Any]:
    """Once each: time over that of plain forward passes over the images that it looks at."""
    found: dict[str, Any] = {}
    for name in statistics:
        entry = statistics[name]
        if name == "first_order":
            continue
        images, looked_at = 0, 0
        for inputs, _ in data:
            if entry.images is None or images < entry.images:
                images, looked_at = images + len(inputs), looked_at + 1
        mine = data[:looked_at]
        plain = middle.median(seconds(lambda mine=mine: forward(model, mine)) for _ in range(3))
        try:
            took = seconds(
                lambda mine=mine, entry=entry: collect(model, graph, mine, frozenset(entry.fields))
            )
        except PrunefrontError as error:
            found[name] = {"refused": str(error)}
            continue
        found[name] = {"images": images, "seconds": round(took, 2), "forward_passes": round(took / plain, 1)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less than a minute; figures are rough")
    parser.add_argument("--all", action="store_true", help="also every other statistic, once (minutes)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, model, data = material(arguments.quick)
    graph = trace(model, data[0][0][:2])
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {package: version(package) for package in ("torch", "prunefront")},
        "network": name,
        "images": sum(len(inputs) for inputs, _ in data),
        "first_order": first_order(model, graph, data, 3 if arguments.quick else 7),
    }
    if arguments.all:
        result["others"] = others(model, graph, data)
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{result['network']}, {result['images']} images, one thread")
    for field, cost in result["first_order"].items():
        print(
            f"first_order, {field}: {cost['ratio']}x a forward and backward pass "
            f"({cost['from']}-{cost['to']}, {cost['seconds']} s)"
        )
    for name, cost in result.get("others", {}).items():
        said = cost.get("refused") or (
            f"{cost['forward_passes']} forward passes per image ({cost['images']} images, {cost['seconds']} s)"
        )
        print(f"{name}: {said}")


if __name__ == "__main__":
    main()
