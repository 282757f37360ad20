"""Table of docs/networks.md: `python -m tests.corpus.table docs/networks.md` writes it anew."""

import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import warnings
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from prunefront.pruners.graph.channel_graph import ChannelGraph
from tests.corpus.chain import chain
from tests.corpus.networks import FAMILIES

HEAD = """# What can be pruned of which networks

One small network per family (`tests/corpus/`): traced, cut at random, compared with the masked one (the statistics of
norms held where they change), trained a step, saved and loaded by the tests; `make long` also exports them to ONNX and
compares. `make docs` writes this table anew.

*Reached* is the share of the multiply-accumulates of convolutions and products that some cut takes part in. *Trace* is
CPU time, *MiB* what the whole chain added to the peak of its process. What reaches the output always stays, and is left
out here.
"""
COSTS = """## What tracing costs

CPU seconds of one thread for the chain of the tests (without ONNX), by part. Two passes over all families on a busy
machine of two cores (AMD EPYC; n = 1 each; 2026-12-01, Python 3.11.7, torch 2.13.0, transformers 5.24.0), before and
after sizes were tried on numbers. A busy core counts up to twice the seconds of an idle one; `torch.export`, which is
the same in both, says that they were equally busy. `python -m tests.corpus.table FILE` writes the column *trace* anew.

| | before | now |
|---|---|---|
| the chain, 100 families that CI runs | 97 s | 63 s |
| of that tracing | 86 s | 53 s |
| of that `torch.export` | 37 s | 37 s |
| families whose trace takes more than 5 exports | 15 of 111 | 0 of 117 |
| trace of gpt2 | 9.8 s | 1.4 s |
| trace of whisper | 11.0 s | 2.4 s |
| trace of hiera | 14.7 s | 2.4 s |
| trace of swin_v2 | 15.7 s | 3.8 s |
| trace of pvt_v2 | 17.2 s | 2.3 s |
| trace of mobilevit | 53.0 s | 15.7 s |

A cut, a save, a load or a training step takes some 0.01 to 0.03 s each. Networks at 224 × 224, with memory:
[decisions/0001](decisions/0001-channel-graph.md), `python -m benchmarks.tracing`.
"""
COLUMNS = """
| family | groups | reached | trace, s | MiB | attributes set | what else stays, and why |
|---|---|---|---|---|---|---|
"""


def row(name: str) -> dict[str, Any]:
    """Returns what the chain says of one network."""
    warnings.simplefilter("ignore")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        outcome = chain(FAMILIES[name].make, Path(folder), onnx=False)
    return {
        "groups": len(outcome.graph.groups),
        "reached": outcome.reached,
        "seconds": outcome.seconds,
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "attributes": sorted({a.name for a in outcome.graph.attributes}),
        "why": reasons(outcome.graph),
    }


def reasons(graph: ChannelGraph) -> str:
    """Returns what stays and why, in one line."""
    found: dict[str, list[str]] = defaultdict(list)
    for frozen in graph.frozen:
        if frozen.reason != "reaches the output":
            found[frozen.reason].append(frozen.name)
    return "; ".join(
        f"{', '.join(list(dict.fromkeys(names))[:3])}{' …' if len(set(names)) > 3 else ''}: {reason}"
        for reason, names in found.items()
    ).replace("|", "/")


def _child(name: str, place: Path) -> None:
    place.write_text(json.dumps(row(name)))


def rows() -> dict[str, dict[str, Any]]:
    """Runs every family in a process of its own, so that the peak of its memory is its own."""
    import transformers

    assert transformers.__version__
    row(next(iter(FAMILIES)))  # what is loaded at the first use is loaded before the processes part
    found = {}
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "row.json"
            process = multiprocessing.get_context("fork").Process(target=_child, args=(name, place))
            process.start()
            process.join()
            if not place.exists():
                raise SystemExit(
                    f"{name} does not go through the chain; tests/corpus/test_corpus.py says why"
                )
            found[name] = json.loads(place.read_text())
            print(name, f"{found[name]['reached']:.0%}", flush=True)  # noqa: T201
    return found


def page(found: dict[str, dict[str, Any]]) -> str:
    """Returns the whole page."""
    reached = [r["reached"] for r in found.values()]
    low = [name for name, r in found.items() if r["reached"] < 0.8]
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "transformers"))
    text = HEAD + (
        f"\n{len(found)} families; the median that is reached is {statistics.median(reached):.0%}, and below 80 % are "
        + ("; ".join(f"{name} ({FAMILIES[name].why})" for name in low) or "none")
        + f".\n{datetime.now(UTC):%Y-%m-%d}, {versions}, one thread of {os.cpu_count()}, {platform.machine()}.\n"
    )
    for kind in dict.fromkeys(family.kind for family in FAMILIES.values()):
        text += f"\n## {kind.capitalize()}\n{COLUMNS}"
        for name, r in found.items():
            if FAMILIES[name].kind == kind:
                text += (
                    f"| {name} | {r['groups']} | {r['reached']:.0%} | {r['seconds']:.1f} | {r['mib']:.0f} | "
                    f"{', '.join(r['attributes'])} | {r['why']} |\n"
                )
    return f"{text}\n{COSTS}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(sys.argv[1]).write_text(page(rows()))
