"""How well a latency table predicts networks that it has never seen: ResNet-20 of ../shared/data's shape, ONNX Runtime.

A table is measured as `prunefront latency-table` does, then as many fresh networks are drawn with another seed and
timed, and four predictors are compared on them: the share of MACs, a straight line of it, a sum over groups (what
each group saves by itself), and the table's. Weights do not matter, so no data is read.

    python benchmarks/latency_prediction.py [--quick] [--json] [--round-to 4]
"""

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

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
    return Subject(model, trace(model, torch.randn(2, *SHAPE)), exported(model, SHAPE), SHAPE)


def additive(points: Sequence[Point], kept: Mapping[str, int], units: Mapping[str, int]) -> float:
    """What every group saves by itself, added up; between its measured widths, a straight line."""
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
        table = measure(empty, Path(folder) / "t.json", todo, timer.time, say=display.say)
        seconds = time.perf_counter() - started
    known = [dict(p.kept) for p in table.points]
    timed = [timer.time(kept)[0] for kept in unseen if kept not in known]
    fresh = [p for p in timed if p.spread <= SHARP]
    predictor = table.predictor()
    dense = macs_of(graph, {})
    shares = [macs_of(graph, p.kept) / dense for p in fresh]
    slope, offset = np.polyfit(
        [macs_of(graph, p.kept) / dense for p in table.points], [p.ratio for p in table.points], 1
    )
    inside = [
        low <= p.ratio <= high for p in fresh for low, high in [predictor.interval(predictor.ratio(p.kept))]
    ]
    rows = np.array(
        [[k.get(g, units[g]) for g in units] for k in design(keeps, single=0, joint=2000)], dtype=float
    )
    started = time.perf_counter()
    predictor.predict(rows)
    return {
        "factory": factory,
        "round_to": round_to,
        "device": dict(table.device),
        "dense_ms": table.dense_ms,
        "table_points": len(table.points),
        "table_seconds": seconds,
        "fresh_points": len(fresh),
        "fresh_too_noisy": len(timed) - len(fresh),
        "fresh_noise": float(np.median([p.spread for p in fresh])),
        "leave_one_out": None if predictor.joint is None else predictor.joint.to_json(),
        "interval": predictor.half_width if math.isfinite(predictor.half_width) else None,
        "interval_held": float(np.mean(inside)),
        "ms_per_2000_predictions": 1000 * (time.perf_counter() - started),
        "fresh": {
            "share of MACs": judged(shares, fresh),
            "line of MACs": judged([offset + slope * s for s in shares], fresh),
            "sum over groups": judged([additive(table.points, p.kept, units) for p in fresh], fresh),
            "table": judged([predictor.ratio(p.kept) for p in fresh], fresh),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="24 joint networks of 40 pairs")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--factory", default="resnet20")
    parser.add_argument("--round-to", type=int, default=4)
    args = parser.parse_args()
    joint, pairs = (24, 40) if args.quick else (48, 100)
    found = run(args.factory, args.round_to, joint, pairs, Display(Console(stderr=True)))
    if args.json:
        print(json.dumps(found))
        return
    where = found["device"]
    print(
        f"{args.factory}, widths in steps of {args.round_to}; {where['processor'] or platform.machine()}, "
        f"{where['runtime']} {where['onnxruntime']}, {where['threads']} thread, batch {where['batch_size']}; dense "
        f"{found['dense_ms']:.3f} ms; table of {found['table_points']} networks in {found['table_seconds']:.0f} s"
    )
    print(
        f"{found['fresh_points']} fresh networks, measured to ± {found['fresh_noise']:.1%} (median; "
        f"{found['fresh_too_noisy']} more were too noisy); the table's interval ± "
        f"{found['interval'] or math.nan:.1%} held {found['interval_held']:.0%}; "
        f"2,000 predictions in {found['ms_per_2000_predictions']:.1f} ms"
    )
    print(f"  leave-one-out had said: {found['leave_one_out']}")
    print(f"  {'predictor':<18}{'median':>9}{'95th':>9}{'rank':>8}")
    for name, row in found["fresh"].items():
        print(f"  {name:<18}{row['median']:>9.1%}{row['p95']:>9.1%}{row['rank']:>8.3f}")


if __name__ == "__main__":
    sys.exit(main())
