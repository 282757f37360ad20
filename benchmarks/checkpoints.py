"""What it costs to keep a training between two epochs, beside a training step.

make:  milliseconds in which a network and its momenta become bytes.
keep:  milliseconds until Ray's actor has them on disk, fsync included, as a trial waits for it; --here: until this
       process has.
step:  milliseconds of a training step of 128 images of 3 × 32 × 32, float32, on one thread.

Medians over n. What a study pays is at most 5 % of its training time: where an epoch is shorter, fewer are kept.

    python benchmarks/checkpoints.py [--quick] [--here] [--json]
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunefront.pipelines.cluster.connect import connect
from prunefront.pipelines.config.sections import ClusterSection, ModelSection
from prunefront.pipelines.data import SearchData, Split, Transform
from prunefront.pipelines.models import build
from prunefront.pipelines.workers.checkpoints import Checkpoints, Folder, kept_in
from prunefront.pipelines.workers.train import NO_GRAPH, Recipe, begin, carry_out
from prunefront.pruners.graph.plan import PruningPlan
from prunefront.pruners.procedures import Phase
from prunefront.pruners.procedures.snapshot import Sums, take

NETWORKS = ("resnet20", "resnet56", "vgg16_bn")
QUICK = ("resnet20",)
BATCH = 128


def images(steps: int) -> SearchData:
    """As many random ones as make so many steps."""
    rng = np.random.default_rng(0)
    split = Split(
        rng.integers(0, 256, size=(steps * BATCH, 3, 32, 32), dtype=np.uint8),
        rng.integers(0, 10, size=steps * BATCH),
    )
    return SearchData(split, split[:2], Transform((0.5,) * 3, (0.25,) * 3), 10)


def milliseconds(call: Callable[[], object], n: int) -> float:
    taken = []
    for _ in range(n):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(taken)


def measured(name: str, n: int, checkpoints: Folder | Checkpoints) -> dict[str, Any]:
    """One network: the times, and how many bytes are kept."""
    data = images(steps=3)
    model = build(ModelSection(factory=name), classes=10, input_shape=(3, 32, 32))
    run = begin(
        model, NO_GRAPH, PruningPlan(()), data, Recipe(epochs=2, learning_rate=0.01, batch_size=BATCH)
    )
    reports = list(carry_out(run, [Phase(run.steps)], data, Recipe(2, 0.01, BATCH)))
    content = take(run, Sums(), None).to_bytes()
    return {
        "network": name,
        "bytes": len(content),
        "make_ms": milliseconds(lambda: take(run, Sums(), None).to_bytes(), n),
        "keep_ms": milliseconds(lambda: checkpoints.write(name, content), n),
        "step_ms": 1e3 * min(report.seconds for report in reports) / 3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one network, fewer repeats")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument(
        "--here", action="store_true", help="keep: written by this process, without Ray's actor"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    networks, n = (QUICK, 5) if arguments.quick else (NETWORKS, 21)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, ExitStack() as stack:
        checkpoints: Folder | Checkpoints = Folder(Path(folder))
        if not arguments.here:
            stack.enter_context(connect(None, ClusterSection(workers=1)))
            checkpoints = stack.enter_context(kept_in(Path(folder), "benchmark", networks, remote=False))
        rows = [measured(name, n, checkpoints) for name in networks]
        for name in networks:
            checkpoints.drop(name)
    found = {
        "rows": rows,
        "n": n,
        "versions": {p: version(p) for p in ("torch", "ray", "safetensors")}
        | {"python": platform.python_version()},
    }
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    for row in rows:
        print(
            f"{row['network']}: {row['bytes']:,} bytes, made in {row['make_ms']:.1f} ms, kept in {row['keep_ms']:.1f} "
            f"ms; a step takes {row['step_ms']:.0f} ms (n = {n})"
        )
    print(found["versions"])


if __name__ == "__main__":
    main()
