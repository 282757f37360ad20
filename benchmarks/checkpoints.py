"""Cost of a checkpoint between two epochs, beside a training step.

make:  milliseconds in which a network and its momenta become bytes.
keep:  milliseconds until Ray's actor has them on disk, fsync included, as a trial waits for it; --here: until this
       process has.
step:  milliseconds of a training step of 128 images of 3 × 32 × 32, float32, on one thread.

Medians over n. A study spends at most 5 % of its training time on checkpoints: if an epoch is short, it makes fewer.

    python -m benchmarks.checkpoints [--quick] [--json] [--here]
"""

import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import arguments, report, seconds, table
from prunefront.pipelines.cluster.connect import connect
from prunefront.pipelines.config.sections import ClusterSection, ModelSection
from prunefront.pipelines.data import SearchData, Split, Transform
from prunefront.pipelines.models import build
from prunefront.pipelines.workers.checkpoints import Folder
from prunefront.pipelines.workers.on_ray.checkpoints import Checkpoints, kept_in
from prunefront.pipelines.workers.train import NO_GRAPH, Recipe, begin, carry_out
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.procedures import Phase
from prunefront.pruners.procedures.snapshot import Sums, take_snapshot

NETWORKS = ("resnet20", "resnet56", "vgg16_bn")
QUICK = ("resnet20",)
BATCH = 128


def images(steps: int) -> SearchData:
    """Returns random images for `steps` training steps."""
    rng = np.random.default_rng(0)
    split = Split(
        rng.integers(0, 256, size=(steps * BATCH, 3, 32, 32), dtype=np.uint8),
        rng.integers(0, 10, size=steps * BATCH),
    )
    return SearchData(split, split[:2], Transform((0.5,) * 3, (0.25,) * 3), 10)


def milliseconds(call: Callable[[], object], n: int) -> float:
    return 1e3 * statistics.median(seconds(call) for _ in range(n))


def measure(name: str, n: int, checkpoints: Folder | Checkpoints) -> dict[str, Any]:
    """Returns the times and the number of bytes of one network's checkpoint."""
    data = images(steps=3)
    model = build(ModelSection(factory=name), classes=10, input_shape=(3, 32, 32))
    run = begin(
        model, NO_GRAPH, PruningPlan(()), data, Recipe(epochs=2, learning_rate=0.01, batch_size=BATCH)
    )
    reports = list(carry_out(run, [Phase(run.steps)], data, Recipe(2, 0.01, BATCH)))
    content = take_snapshot(run, Sums(), None).to_bytes()
    return {
        "network": name,
        "bytes": len(content),
        "make_ms": milliseconds(lambda: take_snapshot(run, Sums(), None).to_bytes(), n),
        "keep_ms": milliseconds(lambda: checkpoints.write(name, content), n),
        "step_ms": 1e3 * min(report.seconds for report in reports) / 3,
    }


def main() -> None:
    parser = arguments(__doc__, quick="one network, fewer repeats")
    parser.add_argument(
        "--here", action="store_true", help="checkpoints are written by this process, without Ray's actor"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    networks, n = (QUICK, 5) if given.quick else (NETWORKS, 21)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, ExitStack() as stack:
        checkpoints: Folder | Checkpoints = Folder(Path(folder))
        if not given.here:
            stack.enter_context(connect(None, ClusterSection(workers=1)))
            checkpoints = stack.enter_context(kept_in(Path(folder), "benchmark", networks, remote=False))
        rows = [measure(name, n, checkpoints) for name in networks]
        for name in networks:
            checkpoints.drop(name)
    cells = [
        (r["network"], f"{r['bytes']:,}", f"{r['make_ms']:.1f}", f"{r['keep_ms']:.1f}", f"{r['step_ms']:.0f}")
        for r in rows
    ]
    text = table(("network", "bytes", "make, ms", "keep, ms", "step, ms"), cells) + f"\nmedians, n = {n}"
    report(given, {"rows": rows, "n": n}, text, ("torch", "ray", "safetensors"))


if __name__ == "__main__":
    main()
