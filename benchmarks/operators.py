"""Is a granularity's compact operator really faster than the dense layer, and where does it break even?

For every granularity × density × layer shape × batch × runtime: time over dense (median of pair ratios of alternating
runs), beside the ratio of MACs. Layers are 3×3 and 1×1 convolutions of ResNet-56 (CIFAR-10), ResNet-50 and VGG-16
(ImageNet sizes). int8 is the whole layer in ONNX Runtime's integer kernels, over the same in float32 there.

    python benchmarks/operators.py [--quick] [--json] [--threads 1] [--only kernel,int8] [--runtimes eager,onnxruntime]
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.int8 import quantise_onnx

from pipelines.exclusive import exclusive
from pipelines.latency import compare
from pipelines.onnx_export import export, open_session
from pipelines.runtimes import runtimes
from pruners.granularities import layer_granularities
from pruners.layers import Layer
from pruners.like import like
from pruners.within import nearest_count

DENSITIES = (0.75, 0.5, 0.25)
BATCHES = (1, 32)


@dataclass(frozen=True)
class Shape:
    """A convolution: C_in → C_out, k×k at stride 1, on maps of side × side."""

    network: str
    inputs: int
    outputs: int
    kernel: int
    side: int

    @property
    def name(self) -> str:
        return f"{self.inputs}→{self.outputs} {self.kernel}×{self.kernel} @{self.side}²"

    def conv(self) -> nn.Conv2d:
        torch.manual_seed(0)
        return nn.Conv2d(self.inputs, self.outputs, self.kernel, padding=self.kernel // 2, bias=False).eval()


SHAPES = (
    Shape("ResNet-56", 16, 16, 3, 32),
    Shape("ResNet-56", 32, 32, 3, 16),
    Shape("ResNet-56", 64, 64, 3, 8),
    Shape("ResNet-50", 64, 64, 3, 56),
    Shape("ResNet-50", 128, 128, 3, 28),
    Shape("ResNet-50", 256, 256, 3, 14),
    Shape("ResNet-50", 512, 512, 3, 7),
    Shape("ResNet-50", 256, 64, 1, 56),
    Shape("ResNet-50", 1024, 256, 1, 14),
    Shape("VGG-16", 64, 64, 3, 224),
    Shape("VGG-16", 128, 128, 3, 112),
    Shape("VGG-16", 256, 256, 3, 56),
    Shape("VGG-16", 512, 512, 3, 28),
    Shape("VGG-16", 512, 512, 3, 14),
)
QUICK = (SHAPES[2], SHAPES[4])


@dataclass(frozen=True)
class Cell:
    """One measurement. time, macs: over dense. low, high: 95 % interval of the median of pairs."""

    granularity: str
    density: float
    network: str
    layer: str
    kernel: int
    maps: int
    batch: int
    runtime: str
    time: float
    low: float
    high: float
    macs: float
    dense_ms: float
    pairs: int


def narrower(shape: Shape, density: float) -> nn.Conv2d:
    """Channels: inputs and outputs each cut to the square root of the density, as two pruned neighbours leave it."""
    root = density**0.5
    weight = shape.conv().weight.detach()
    kept = weight[: round(shape.outputs * root), : round(shape.inputs * root)]
    made = like(shape.conv(), kept)
    assert isinstance(made, nn.Conv2d)
    return made.eval()


def variants(
    shape: Shape, density: float, only: Sequence[str]
) -> Iterable[tuple[str, nn.Module, nn.Module, float]]:
    """Granularity, dense module, compact module, ratio of MACs."""
    conv = shape.conv()
    layer = Layer("weight", "", tuple(conv.weight.shape), shape.side**2, norm="n", reads=True, writes=True)
    if "channel" in only:
        small = narrower(shape, density)
        yield "channel", conv, small, small.weight.numel() / conv.weight.numel()
    for name in layer_granularities:
        entry = layer_granularities[name]
        if name not in only or entry.why_not(layer):
            continue
        count = nearest_count(entry, layer, 1.0 - density)
        module: nn.Module = nn.Sequential(conv, nn.BatchNorm2d(shape.outputs)) if entry.fuses_norm else conv
        module.eval()
        scores = entry.units(layer, conv.weight.detach().double()).square().sum(1)
        pattern = entry.pattern(layer, count, scores)
        compact = entry.compact(layer, count, pattern, module).eval()
        yield name, module, compact, entry.macs(layer, count) / layer.macs


def timed(
    runtime: str,
    dense: nn.Module,
    compact: nn.Module,
    shape: Shape,
    compact_inputs: int,
    batch: int,
    threads: int,
    budget: float,
) -> tuple[float, float, float, float, int]:
    """Median ratio with its interval, dense milliseconds, pairs."""
    example = torch.randn(batch, shape.inputs, shape.side, shape.side)
    small = example[:, :compact_inputs].contiguous()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "dense.onnx", Path(folder) / "compact.onnx"]
        if runtime != "eager":
            export(dense, example, paths[0])
            export(compact, small, paths[1])
        make = runtimes[runtime]
        calls = [
            make(dense, paths[0], example, threads),
            make(compact, paths[1], small, threads),
        ]
        return measured(calls[0], calls[1], budget)


def measured(
    dense: Callable[[], None], compact: Callable[[], None], budget: float
) -> tuple[float, float, float, float, int]:
    dense()
    start = time.perf_counter()
    dense()
    compact()
    once = time.perf_counter() - start
    pairs = int(min(60, max(7, budget / max(once, 2e-3))))
    with exclusive():
        found = compare(dense, compact, pairs=pairs, warmup=1)
    return found.ratio, found.ratio_low, found.ratio_high, found.dense_ms, pairs


def int8_cell(shape: Shape, batch: int, threads: int, budget: float) -> Cell:
    """The layer with a ReLU behind it, as networks have it, in integers over in floats."""
    model = nn.Sequential(shape.conv(), nn.ReLU()).eval()
    example = torch.randn(batch, shape.inputs, shape.side, shape.side)
    with tempfile.TemporaryDirectory() as folder:
        path, short = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        export(model, example, path)
        quantise_onnx(path, [example[:4].abs()], short)
        calls = [_session_call(p, example, threads) for p in (path, short)]
        ratio, low, high, dense_ms, pairs = measured(calls[0], calls[1], budget)
    return Cell(
        "int8",
        1.0,
        shape.network,
        shape.name,
        shape.kernel,
        shape.inputs,
        batch,
        "onnxruntime",
        ratio,
        low,
        high,
        1.0,
        dense_ms,
        pairs,
    )


def _session_call(path: Path, example: Tensor, threads: int) -> Callable[[], None]:
    session = open_session(path, threads)
    feed = {session.get_inputs()[0].name: example.numpy()}
    return lambda: session.run(None, feed)


@dataclass(frozen=True)
class Aim:
    """What the project aims at: the median over cells of time, or of time over the ratio of MACs, stays below."""

    text: str
    limit: float
    cells: Callable[[Cell], bool]
    value: Callable[[Cell], float]


def wide(cell: Cell) -> bool:
    return cell.kernel == 3 and cell.maps >= 64


AIMS = (
    Aim(
        "channel: time over MACs ratio ≤ 1.25",
        1.25,
        lambda c: c.granularity == "channel",
        lambda c: c.time / c.macs,
    ),
    Aim(
        "intra_kernel at 0.5, 3×3, ≥ 64 maps: ≤ 0.7 of dense",
        0.7,
        lambda c: c.granularity == "intra_kernel" and c.density == 0.5 and wide(c),
        lambda c: c.time,
    ),
    Aim(
        "kernel at 0.25, 3×3, ≥ 64 maps: ≤ 0.6 of dense",
        0.6,
        lambda c: c.granularity == "kernel" and c.density == 0.25 and wide(c),
        lambda c: c.time,
    ),
    Aim(
        "low_rank: time over MACs ratio ≤ 1.4",
        1.4,
        lambda c: c.granularity == "low_rank",
        lambda c: c.time / c.macs,
    ),
    Aim("int8 ≤ 0.5 of float32", 0.5, lambda c: c.granularity == "int8", lambda c: c.time),
)


def aims(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Each aim by runtime: median, worst, how many of the cells reach it."""
    found = []
    for aim in AIMS:
        for runtime in dict.fromkeys(c.runtime for c in cells):
            values = [aim.value(c) for c in cells if c.runtime == runtime and aim.cells(c)]
            if values:
                found.append(
                    {
                        "aim": aim.text,
                        "runtime": runtime,
                        "median": round(statistics.median(values), 3),
                        "worst": round(max(values), 3),
                        "reached": sum(v <= aim.limit for v in values),
                        "cells": len(values),
                    }
                )
    return found


def break_even(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """By granularity, runtime and batch: median time over dense at each density, and at which it is below 1."""
    found = []
    keys = dict.fromkeys((c.granularity, c.runtime, c.batch) for c in cells)
    for granularity, runtime, batch in keys:
        mine = [c for c in cells if (c.granularity, c.runtime, c.batch) == (granularity, runtime, batch)]
        medians = {
            d: round(statistics.median(c.time for c in mine if c.density == d), 2)
            for d in sorted({c.density for c in mine}, reverse=True)
        }
        wins = [d for d, t in medians.items() if t < 1.0]
        found.append(
            {
                "granularity": granularity,
                "runtime": runtime,
                "batch": batch,
                "median_time": medians,
                "faster_from": max(wins) if wins else None,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two layers, density 0.25 and 0.5, batch 1")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.6, help="for each cell")
    parser.add_argument("--only", default=",".join(["channel", *layer_granularities, "int8"]))
    parser.add_argument("--runtimes", default="eager,onnxruntime")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    only, names = given.only.split(","), given.runtimes.split(",")
    shapes, densities, batches = (QUICK, (0.5, 0.25), (1,)) if given.quick else (SHAPES, DENSITIES, BATCHES)
    budget = 0.15 if given.quick else given.seconds
    cells: list[Cell] = []
    for shape in shapes:
        for batch in batches:
            if batch * shape.side**2 * shape.inputs > 32 * 112**2 * 64:
                continue  # gigabytes of activations say nothing new
            for density in densities:
                for name, dense, compact, macs in variants(shape, density, only):
                    inputs = next(compact.parameters()).shape[1] if name == "channel" else shape.inputs
                    for runtime in names:
                        ratio, low, high, dense_ms, pairs = timed(
                            runtime, dense, compact, shape, inputs, batch, given.threads, budget
                        )
                        cells.append(
                            Cell(
                                name,
                                density,
                                shape.network,
                                shape.name,
                                shape.kernel,
                                shape.inputs,
                                batch,
                                runtime,
                                ratio,
                                low,
                                high,
                                macs,
                                dense_ms,
                                pairs,
                            )
                        )
                        if not given.json:
                            show(cells[-1])
            if "int8" in only:
                cells.append(int8_cell(shape, batch, given.threads, budget))
                if not given.json:
                    show(cells[-1])
    result = {
        "cells": [asdict(c) for c in cells],
        "aims": aims(cells),
        "break_even": break_even(cells),
        "threads": given.threads,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    if given.json:
        print(json.dumps(result))
        return
    print()
    for row in result["break_even"]:
        print(f"{row['granularity']:13} {row['runtime']:12} batch {row['batch']:<3} {row['median_time']}")
    print()
    for row in result["aims"]:
        print(
            f"{row['aim']} [{row['runtime']}]: median {row['median']}, {row['reached']} of {row['cells']} cells"
        )


def show(cell: Cell) -> None:
    print(
        f"{cell.granularity:13} {cell.density:4.2f}  {cell.network:9} {cell.layer:20} batch {cell.batch:<3} "
        f"{cell.runtime:12} {cell.time:5.2f} of dense ({cell.low:.2f}–{cell.high:.2f}), MACs {cell.macs:4.2f}, "
        f"dense {cell.dense_ms:8.3f} ms, {cell.pairs} pairs",
        flush=True,
    )


if __name__ == "__main__":
    main()
