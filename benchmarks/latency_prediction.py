"""Error of a latency table on unseen networks: a ResNet-20 for CIFAR-10, ONNX Runtime.

A table is measured as by `prunefront latency-table`. Then as many fresh networks are drawn with another seed and timed,
and four predictors are compared on them: the share of MACs, a straight line of it, a sum over groups (the saving of
each group by itself), and the table's. Weights do not matter, so no data is read.

    python -m benchmarks.latency_prediction [--quick] [--json] [--factory resnet20] [--round-to 4]
"""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.harness import arguments, report, seconds, table
from prunefront.pipelines.config.sections import MeasureSection
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.models import models
from prunefront.pipelines.stages.latency_table import (
    PointTimer,
    Subject,
    design,
    device,
    empty_table,
    exported,
    measure,
)
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan.cost import macs_of
from prunefront.pruners.plan.decide import keep_counts
from prunefront.pruners.trace.tracer import trace
from prunefront.search.prediction.latency import SHARP, Point
from prunefront.search.promotion.rank_correlation import spearman

SHAPE = (3, 32, 32)


def subject(factory: str) -> Subject:
    torch.manual_seed(0)
    model = models[factory]().eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.01 + 0.01 * torch.rand(tensor.shape))
    example = torch.randn(2, *SHAPE)
    return Subject(model, trace(model, example), exported(model, example), example)


def additive(points: Sequence[Point], kept: Mapping[str, int], units: Mapping[str, int]) -> float:
    """Returns 1 less the sum of each group's own saving, interpolated between its measured widths."""
    saved = 0.0
    for group, count in kept.items():
        alone = sorted(
            [(p.kept[group], p.ratio) for p in points if list(p.kept) == [group]] + [(units[group], 1.0)]
        )
        widths, ratios = zip(*alone, strict=True)
        saved += 1.0 - float(np.interp(count, widths, ratios))
    return 1.0 - saved


def judged(predicted: Sequence[float], fresh: Sequence[Point]) -> dict[str, float]:
    measured = np.array([p.ratio for p in fresh])
    off = np.abs(np.array(predicted) - measured) / measured
    return {
        "median": float(np.median(off)),
        "p95": float(np.quantile(off, 0.95)),
        "rank": spearman(np.array(predicted), measured),
    }


def run(factory: str, round_to: int, joint: int, pairs: int, display: Display) -> dict[str, Any]:
    network = subject(factory)
    graph: ChannelGraph = network.graph
    section = MeasureSection(pairs=pairs)
    keeps = {g.name: keep_counts(g, 0.9, round_to) for g in graph.groups}
    units = {g.name: g.units for g in graph.groups}
    timer = PointTimer(network, section)
    timer.time({})
    todo, unseen = design(keeps, joint=joint), design(keeps, single=0, joint=joint, seed=1)
    empty = empty_table(graph, network.onnx_file, device(section), keeps, todo)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        measured = measure(empty, Path(folder) / "t.json", todo, timer.time, say=display.say)
        took = time.perf_counter() - started
    known = [dict(p.kept) for p in measured.points]
    timed = [timer.time(kept)[0] for kept in unseen if kept not in known]
    fresh = [p for p in timed if p.spread <= SHARP]
    predictor = measured.predictor()
    dense = macs_of(graph, {})
    shares = [macs_of(graph, p.kept) / dense for p in fresh]
    slope, offset = np.polyfit(
        [macs_of(graph, p.kept) / dense for p in measured.points], [p.ratio for p in measured.points], 1
    )
    inside = [
        low <= p.ratio <= high for p in fresh for low, high in [predictor.interval(predictor.ratio(p.kept))]
    ]
    rows = np.array(
        [[k.get(g, units[g]) for g in units] for k in design(keeps, single=0, joint=2000)], dtype=float
    )
    return {
        "factory": factory,
        "round_to": round_to,
        "device": dict(measured.device),
        "dense_ms": measured.dense_ms,
        "table_points": len(measured.points),
        "table_seconds": took,
        "fresh_points": len(fresh),
        "fresh_too_noisy": len(timed) - len(fresh),
        "fresh_noise": float(np.median([p.spread for p in fresh])),
        "leave_one_out": None if predictor.joint is None else predictor.joint.to_json(),
        "interval": predictor.half_width if math.isfinite(predictor.half_width) else None,
        "interval_held": float(np.mean(inside)),
        "ms_per_2000_predictions": 1000 * seconds(lambda: predictor.predict(rows)),
        "fresh": {
            "share of MACs": judged(shares, fresh),
            "line of MACs": judged([offset + slope * s for s in shares], fresh),
            "sum over groups": judged([additive(measured.points, p.kept, units) for p in fresh], fresh),
            "table": judged([predictor.ratio(p.kept) for p in fresh], fresh),
        },
    }


def main() -> None:
    parser = arguments(__doc__, quick="a table of 12 joint networks of 20 pairs")
    parser.add_argument("--factory", default="resnet20")
    parser.add_argument("--round-to", type=int, default=4)
    given = parser.parse_args()
    joint, pairs = (12, 20) if given.quick else (48, 100)
    found = run(given.factory, given.round_to, joint, pairs, Display(Console(stderr=True)))
    device = found["device"]
    cells = [
        (name, f"{row['median']:.1%}", f"{row['p95']:.1%}", f"{row['rank']:.3f}")
        for name, row in found["fresh"].items()
    ]
    text = (
        f"{table(('predictor', 'median error', '95th percentile', 'rank'), cells)}\n\n"
        f"{given.factory}, widths in steps of {given.round_to}; {device['runtime']} {device['onnxruntime']}, "
        f"{device['threads']} thread, batch {device['batch_size']}; dense {found['dense_ms']:.3f} ms; table of "
        f"{found['table_points']} networks in {found['table_seconds']:.0f} s\n"
        f"{found['fresh_points']} fresh networks, measured to ± {found['fresh_noise']:.1%} (median; "
        f"{found['fresh_too_noisy']} more were too noisy); the table's interval ± "
        f"{found['interval'] or math.nan:.1%} held {found['interval_held']:.0%}; 2,000 predictions in "
        f"{found['ms_per_2000_predictions']:.1f} ms\nleave-one-out error: {found['leave_one_out']}"
    )
    report(given, found, text, ("torch", "onnxruntime", "prunefront"))


if __name__ == "__main__":
    main()
