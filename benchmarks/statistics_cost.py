"""Cost of the statistics of calibration images.

first_order:  time of the shared first-order pass with all its fields over one plain forward and backward pass, the
              same network and the same images, run in turn; median of per-pair ratios. And each field by itself.
--all:        each other statistic alone, all its fields, in plain forward passes per image that it reads.

Network and images are the trained ResNet-20 and CIFAR-10 in ../shared/data. Without these, --quick measures a fresh
small network on scikit-learn's digits.

    python -m benchmarks.statistics_cost [--quick] [--json] [--all]
"""

import statistics as middle
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.cifar import DATA, IMAGES, WEIGHTS
from benchmarks.harness import alternate, arguments, report, seconds, table
from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import DataSection, ModelSection
from prunefront.pipelines.data import batches, load
from prunefront.pipelines.formats.weights import load_weights
from prunefront.pipelines.models import build
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.statistics import Batch, collect, statistics
from prunefront.pruners.trace.tracer import trace


def material(quick: bool) -> tuple[str, nn.Module, list[Batch]]:
    """Returns name, network and 1,000 images (200 with quick) in batches of 100."""
    images = 200 if quick else 1000
    there = WEIGHTS.exists()
    if not there and not quick:
        raise SystemExit(f"no network and images in {DATA}; run with --quick to measure on digits instead")
    if there:
        model = ModelSection(factory="resnet20", weights=WEIGHTS)
        files = {name: IMAGES[name] for name in ("source", "train", "test")}
        data = DataSection(**files, validation=2, train_limit=images, test_limit=2)
    else:
        model, data = ModelSection(factory="digits_cnn"), DataSection(source="digits", train_limit=images)
    splits = load(data)
    shape = splits.train.images.shape[1:]
    network = build(model, classes=splits.classes, input_shape=shape)
    if model.weights is not None:
        load_weights(network, model.weights)
    return model.factory, network, list(batches(splits.train, splits.transform, 100))


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
    """Times all fields together, then each alone, over one forward and backward pass."""
    fields = statistics["first_order"].fields
    collect(model, graph, data[:1], frozenset(fields))  # warms up
    wanted = {"all": frozenset(fields)} | {name: frozenset({name}) for name in sorted(fields)}
    return {
        name: alternate(
            lambda needs=needs: collect(model, graph, data, needs),
            lambda: forward_backward(model, data),
            pairs if name == "all" else (pairs + 2) // 5,
        )
        for name, needs in wanted.items()
    }


def others(model: nn.Module, graph: ChannelGraph, data: Sequence[Batch]) -> dict[str, Any]:
    """Times each other statistic once, over plain forward passes over the images that it reads."""
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
    parser = arguments(__doc__, quick="less than a minute; figures are rough")
    parser.add_argument("--all", action="store_true", help="also every other statistic, once (minutes)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, model, data = material(given.quick)
    graph = trace(model, data[0][0][:2])
    images = sum(len(inputs) for inputs, _ in data)
    passes = first_order(model, graph, data, 3 if given.quick else 7)
    found: dict[str, Any] = {"network": name, "images": images, "first_order": passes}
    text = table(
        ("first_order", "over a forward and backward pass", "range", "seconds"),
        [
            (field, f"{c['ratio']:.3f}", f"{c['from']:.3f} to {c['to']:.3f}", f"{c['seconds']:.3f}")
            for field, c in passes.items()
        ],
    )
    if given.all:
        found["others"] = others(model, graph, data)
        rows = [
            (name, c.get("forward_passes", c.get("refused")), c.get("images", ""), c.get("seconds", ""))
            for name, c in found["others"].items()
        ]
        text += "\n\n" + table(("statistic", "forward passes per image", "images", "seconds"), rows)
    text += f"\n\n{name}, {images} images, one thread"
    report(given, found, text, ("torch", "prunefront"))


if __name__ == "__main__":
    main()
