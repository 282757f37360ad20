"""Time of each granularity's compact operator over the dense layer, and the density at which it breaks even.

For every granularity × density × layer shape × batch × runtime: time over dense (median of pair ratios of alternating
runs), beside the ratio of MACs. Layers are 3×3 and 1×1 convolutions of ResNet-56 (CIFAR-10), ResNet-50 and VGG-16
(ImageNet sizes). int8 is the whole layer in ONNX Runtime's integer kernels, over the same layer in float32 there.

    python -m benchmarks.operators [--quick] [--json] [--threads 1] [--only kernel,int8]
                                   [--runtimes eager,onnxruntime]
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import arguments, choose, report, say, table
from prunefront.errors import RatioError
from prunefront.pipelines.formats.int8 import quantise_onnx
from prunefront.pipelines.formats.onnx_export import export
from prunefront.pipelines.formats.onnx_runtime import open_session
from prunefront.pipelines.measure.latency import compare
from prunefront.pipelines.measure.runtimes import runtimes
from prunefront.pipelines.measure.timing_lock import exclusive
from prunefront.pruners.granularities import layer_granularities
from prunefront.pruners.granularities.dynamic import GatedLayer
from prunefront.pruners.granularities.new_layer import new_layer
from prunefront.pruners.graph.layers import Layer
from prunefront.pruners.plan.layer_counts import nearest_count

VARIANTS = ("channel", *layer_granularities, "int8")
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
    Shape("VGG-16", 128, 128, 3, 112),
    Shape("VGG-16", 256, 256, 3, 56),
    Shape("VGG-16", 512, 512, 3, 28),
    Shape("VGG-16", 512, 512, 3, 14),
)
QUICK = (SHAPES[2],)

MOST = 32 * 56**2 * 64
"""Most input elements of a batch."""


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
    """Returns the layer with inputs and outputs cut to the square root of the density, as between two pruned layers.

    Widths are multiples of 16 from 64 channels on, of 4 below, as with `space.round_to`.
    """
    root = density**0.5
    step = 16 if shape.inputs >= 64 else 4
    weight = shape.conv().weight.detach()
    rows, columns = (step * max(1, round(n * root / step)) for n in weight.shape[:2])
    made = new_layer(shape.conv(), weight[:rows, :columns])
    assert isinstance(made, nn.Conv2d)
    return made.eval()


@dataclass(frozen=True)
class Variant:
    """A compact module beside the dense one. inputs: number of channels that it reads. macs: over dense."""

    granularity: str
    dense: nn.Module
    compact: nn.Module
    inputs: int
    macs: float


def variants(shape: Shape, density: float, only: Sequence[str]) -> Iterator[Variant]:
    """Yields every granularity that the layer can take, at its nearest density."""
    conv = shape.conv()
    layer = Layer("weight", "", tuple(conv.weight.shape), shape.side**2, norm="n", reads=True, writes=True)
    if "channel" in only:
        small = narrower(shape, density)
        share = small.weight.numel() / conv.weight.numel()
        yield Variant("channel", conv, small, small.in_channels, share)
    for name in layer_granularities:
        entry = layer_granularities[name]
        if name not in only or entry.why_not(layer):
            continue
        try:
            count = nearest_count(entry, layer, 1.0 - density)
        except RatioError:
            continue
        module: nn.Module = nn.Sequential(conv, nn.BatchNorm2d(shape.outputs)) if entry.fuses_norm else conv
        module.eval()
        scores = entry.units(layer, conv.weight.detach().double()).square().sum(1)
        pattern = entry.pattern(layer, count, scores)
        compact = entry.compact(layer, count, pattern, module).eval()
        yield Variant(name, module, compact, shape.inputs, entry.macs(layer, count) / layer.macs)


class Bench:
    """A bench that times pairs; a module is exported once for all batches."""

    def __init__(self, folder: Path, threads: int, budget: float) -> None:
        self.folder, self.threads, self.budget = folder, threads, budget
        self._files: dict[str, Path] = {}

    def cell(self, shape: Shape, density: float, variant: Variant, batch: int, runtime: str) -> Cell:
        x = torch.randn(batch, shape.inputs, shape.side, shape.side)
        fused = "norm" if isinstance(variant.dense, nn.Sequential) else "plain"
        calls = [
            self._call(runtime, variant.dense, x, f"{shape}{fused}"),
            self._call(
                runtime,
                variant.compact,
                x[:, : variant.inputs].contiguous(),
                f"{shape}{variant.granularity}{density}",
            ),
        ]
        return self._cell(shape, density, variant.granularity, variant.macs, batch, runtime, calls)

    def int8(self, shape: Shape, batch: int) -> Cell:
        """Times the layer with a ReLU behind it, as in networks, in integers over in floats."""
        x = torch.randn(batch, shape.inputs, shape.side, shape.side)
        path = self._exported(nn.Sequential(shape.conv(), nn.ReLU()).eval(), x, f"{shape}relu")
        short = path.with_suffix(".int8")
        if not short.exists():
            quantise_onnx(path, [x[:4].abs()], short)
        calls = [_session(p, x, self.threads) for p in (path, short)]
        return self._cell(shape, 1.0, "int8", 1.0, batch, "onnxruntime", calls)

    def _call(self, runtime: str, module: nn.Module, x: Tensor, key: str) -> Callable[[], None]:
        path = None if runtime == "eager" else self._exported(module, x, key)
        return runtimes[runtime](module, path, x, self.threads)

    def _exported(self, module: nn.Module, x: Tensor, key: str) -> Path:
        if key not in self._files:
            path = self.folder / f"{len(self._files)}.onnx"
            export(module, x, path)
            self._files[key] = path
        return self._files[key]

    def _cell(
        self,
        shape: Shape,
        density: float,
        granularity: str,
        macs: float,
        batch: int,
        runtime: str,
        calls: Sequence[Callable[[], None]],
    ) -> Cell:
        start = time.perf_counter()
        for call in calls:
            call()
        once = time.perf_counter() - start
        pairs = int(min(60, max(7, self.budget / max(once, 2e-3))))
        with exclusive():
            found = compare(*calls, pairs=pairs, warmup=2)
        return Cell(
            granularity,
            density,
            shape.network,
            shape.name,
            shape.kernel,
            shape.inputs,
            batch,
            runtime,
            found.ratio,
            found.ratio_low,
            found.ratio_high,
            macs,
            found.dense_ms,
            pairs,
        )


class Pair(nn.Module):
    """A gated layer, ReLU, and a second convolution that reads the chosen channels only (methods, §2.4)."""

    def __init__(self, first: GatedLayer, second: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        made, index = self.first.chosen_outputs(x)
        return self.second._conv_forward(torch.relu(made), self.second.weight[:, index], self.second.bias)


def dynamic_pair(shape: Shape, density: float) -> Variant:
    """Returns two 3×3 convolutions of the shape, the first one gated, for a batch of one in eager mode."""
    gated = next(v for v in variants(shape, density, ["dynamic"]))
    second, share = shape.conv(), round(shape.outputs * density) / shape.outputs
    dense = nn.Sequential(gated.dense, nn.ReLU(), second).eval()
    assert isinstance(gated.compact, GatedLayer)
    return Variant("dynamic_pair", dense, Pair(gated.compact, second).eval(), shape.inputs, share)


def _session(path: Path, x: Tensor, threads: int) -> Callable[[], None]:
    session = open_session(path, threads)
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


@dataclass(frozen=True)
class Aim:
    """An aim of the project: an upper limit of a value's median over some cells."""

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
    """Returns each aim by runtime: median, worst, and the number of cells that reach it."""
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
    """Returns, by granularity, runtime and batch, the median time over dense at each density.

    faster_from: largest density at which it is below 1.
    """
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
    parser = arguments(__doc__, quick="one layer, density 0.5, batch 1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.4, help="for each cell")
    parser.add_argument("--only", help=f"comma-separated granularities; default: {','.join(VARIANTS)}")
    parser.add_argument("--runtimes", help="comma-separated; default: eager,onnxruntime")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    only = choose(parser, given.only, VARIANTS, VARIANTS)
    names = choose(parser, given.runtimes, runtimes, ("eager", "onnxruntime"))
    shapes, densities, batches = (QUICK, (0.5,), (1,)) if given.quick else (SHAPES, DENSITIES, BATCHES)
    cells: list[Cell] = []

    def add(cell: Cell) -> None:
        cells.append(cell)
        say(
            f"{cell.granularity} {cell.density:4.2f} {cell.network} {cell.layer} batch {cell.batch} {cell.runtime}: "
            f"{cell.time:5.2f} of dense ({cell.low:.2f}–{cell.high:.2f}), MACs {cell.macs:4.2f}, dense "
            f"{cell.dense_ms:.3f} ms, {cell.pairs} pairs"
        )

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.threads, 0.1 if given.quick else given.seconds)
        for shape in shapes:
            # larger activations take gigabytes and show nothing new
            possible = [b for b in batches if b * shape.side**2 * shape.inputs <= MOST]
            for density in densities:
                for variant in variants(shape, density, only):
                    for batch, runtime in product(possible, names):
                        add(bench.cell(shape, density, variant, batch, runtime))
                if "dynamic" in only and "eager" in names and shape.inputs == shape.outputs:
                    add(bench.cell(shape, density, dynamic_pair(shape, density), 1, "eager"))
            if "int8" in only:
                for batch in possible:
                    add(bench.int8(shape, batch))
    found = {
        "cells": [asdict(c) for c in cells],
        "aims": aims(cells),
        "break_even": break_even(cells),
        "threads": given.threads,
    }
    medians = table(
        ("granularity", "runtime", "batch", "median time over dense, by density"),
        [(r["granularity"], r["runtime"], r["batch"], r["median_time"]) for r in found["break_even"]],
    )
    reached = table(
        ("aim", "runtime", "median", "reached"),
        [(r["aim"], r["runtime"], r["median"], f"{r['reached']} of {r['cells']}") for r in found["aims"]],
    )
    report(given, found, f"{medians}\n\n{reached}", ("torch", "onnxruntime"))


if __name__ == "__main__":
    main()
