"""Repeatability of estimators of a network's relative latency, on a quiet and on a busy machine.

A network is timed against itself, so the right answer is a ratio of 1. For each estimator, the benchmark prints the
coefficient of variation (CV) of its ratio over repeats, and how often the 95 % interval of the median of pair ratios
holds 1.

    python -m benchmarks.latency_noise [--quick] [--json]
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness import arguments, report, table
from prunefront.pipelines.formats.onnx_export import export
from prunefront.pipelines.measure.latency import compare, runtimes
from prunefront.pipelines.measure.timing_lock import exclusive

RUNTIME = "onnxruntime, 1 thread, batch 1"


def network(width: int) -> nn.Module:
    """Makes six convolutions with batch norm, up to `width` channels."""
    layers: list[nn.Module] = []
    widths = (3, width // 4, width // 4, width // 2, width // 2, width, width)
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        stride = 2 if i in (2, 4) else 1
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def spin() -> None:
    """Keeps one core busy until its parent ends it."""
    while True:
        sum(range(10_000))


@contextmanager
def busy(processes: int) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=spin, daemon=True) for _ in range(processes)]
    for child in children:
        child.start()
    try:
        if children:
            time.sleep(1.0)  # spawned interpreters import first
        yield
    finally:
        for child in children:
            child.terminate()
            child.join()


def repeat(call: Callable[[], None], other: Callable[[], None], repeats: int, pairs: int) -> dict[str, float]:
    """Returns the figures of all estimators, each of which has the same number of timed samples per repeat."""
    by_pairs, by_medians, by_minima, holds, widths = [], [], [], [], []
    for _ in range(repeats):
        with exclusive():
            latency = compare(call, other, pairs=pairs, warmup=5)
            calls = latency.calls_per_sample
            # what most benchmarks do: first all of one, then all of the other
            mine, theirs = (samples(c, calls, pairs) for c in (call, other))
        by_pairs.append(latency.ratio)
        by_medians.append(statistics.median(mine) / statistics.median(theirs))
        by_minima.append(min(mine) / min(theirs))
        holds.append(latency.ratio_low <= 1.0 <= latency.ratio_high)
        widths.append(latency.ratio_high - latency.ratio_low)
    return {
        "cv_pair_ratios_percent": round(100 * variation(by_pairs), 2),
        "cv_ratio_of_medians_percent": round(100 * variation(by_medians), 2),
        "cv_ratio_of_minima_percent": round(100 * variation(by_minima), 2),
        "interval_holds_1_percent": round(100 * statistics.mean(holds), 1),
        "median_interval_width": round(statistics.median(widths), 4),
        "latency_ms": round(latency.ms, 4),
        "calls_per_sample": calls,
        "repeats": repeats,
        "pairs": pairs,
    }


def samples(call: Callable[[], None], calls: int, n: int) -> list[float]:
    times = []
    for _ in range(n):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls)
    return times


def variation(values: list[float]) -> float:
    return statistics.stdev(values) / statistics.mean(values)


def measure(repeats: int, pairs: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for label, model, example in (
            ("small", network(64), torch.randn(1, 3, 32, 32)),
            ("tiny", network(16), torch.randn(1, 3, 8, 8)),
        ):
            path = Path(folder) / f"{label}.onnx"
            export(model, example, path)
            call, other = (runtimes["onnxruntime"](model, path, example, 1) for _ in range(2))
            for processes in (0, 1, 2):
                with busy(processes):
                    row = repeat(call, other, repeats, pairs)
                rows.append({"network": label, "busy_processes": processes, **row})
    return rows


def main() -> None:
    parser = arguments(__doc__, quick="8 repeats of 20 pairs; under a minute")
    given = parser.parse_args()
    torch.set_num_threads(1)
    repeats, pairs = (8, 20) if given.quick else (60, 100)
    rows = measure(repeats, pairs)
    head = ("network", "busy", "ms", "CV of pairs", "of medians", "of minima", "holds 1", "width")
    cells = [
        (
            row["network"],
            row["busy_processes"],
            row["latency_ms"],
            f"{row['cv_pair_ratios_percent']} %",
            f"{row['cv_ratio_of_medians_percent']} %",
            f"{row['cv_ratio_of_minima_percent']} %",
            f"{row['interval_holds_1_percent']} %",
            row["median_interval_width"],
        )
        for row in rows
    ]
    text = table(head, cells) + f"\n\n{repeats} repeats of {pairs} pairs; {RUNTIME}"
    report(given, {"runtime": RUNTIME, "rows": rows}, text, ("torch", "onnxruntime"))


if __name__ == "__main__":
    main()
