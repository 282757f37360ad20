"""The frame of every benchmark: arguments, alternating pairs, statistics, a record of the machine, output.

A benchmark is started in the root of the repository, as `python -m benchmarks.NAME [--quick] [--json] …`. It prints
tables, or with --json exactly one JSON object. Progress goes to stderr.
"""

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def arguments(description: str | None, quick: str) -> argparse.ArgumentParser:
    """Returns a parser with --quick and --json. description: the benchmark's docstring. quick: what --quick does."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of tables")
    return parser


def choose(
    parser: argparse.ArgumentParser,
    asked: str | None,
    known: Collection[str],
    default: Iterable[str],
    separator: str = ",",
) -> list[str]:
    """Returns the names in `asked`, or the default ones if it is None. Ends the program at an unknown name."""
    names = list(default) if asked is None else asked.split(separator)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{unknown[0]!r} is unknown; choose among: {f'{separator} '.join(known)}")
    return names


def say(line: str) -> None:
    """Prints a line of progress."""
    print(line, file=sys.stderr, flush=True)


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns the time of a call, in seconds. clock: `time.process_time` counts CPU time alone."""
    start = clock()
    call()
    return clock() - start


def alternate(
    mine: Callable[[], object],
    other: Callable[[], object],
    pairs: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Times two calls in turn, after a first pair that warms up, and compares them pair by pair.

    The order within a pair is swapped from pair to pair. Returns seconds: median of `mine`. ratio: median of the pairs'
    `mine` over `other`. low, high: its 95 % interval, or the range for fewer than six pairs. from, to: the range.
    """
    times: list[tuple[float, float]] = []
    for pair in range(pairs + 1):
        if pair % 2:
            times.append((seconds(mine, clock), seconds(other, clock)))
        else:
            times.append((seconds(other, clock), seconds(mine, clock))[::-1])
    del times[0]
    ratios = [a / b for a, b in times]
    low, high = min(ratios), max(ratios)
    if pairs >= 6:
        from scipy.stats import quantile_test  # slow to import

        low, high = map(float, quantile_test(ratios, p=0.5).confidence_interval(0.95))
    return {
        "seconds": statistics.median(a for a, _ in times),
        "ratio": statistics.median(ratios),
        "low": low,
        "high": high,
        "from": min(ratios),
        "to": max(ratios),
        "pairs": pairs,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns mean, standard deviation (0 for a single value) and number of values."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "n": len(values)}


def plus_minus(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    """Writes mean ± standard deviation of the values; the mean alone for a single value, "–" for none."""
    if not values:
        return "–"
    found = spread([scale * v for v in values])
    deviation = f" ± {found['std']:.{digits}f}" if len(values) > 1 else ""
    return f"{found['mean']:.{digits}f}{deviation}"


def where(packages: Iterable[str], device: str = "cpu") -> dict[str, Any]:
    """Returns a record of the machine, Python and the versions of packages; of the GPU, too, for a CUDA device."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(
        r"^model name\s*: (.+)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE
    )
    record: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }
    if device.startswith("cuda"):
        import torch

        record["gpu"] = torch.cuda.get_device_name()
    return record


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Writes a Markdown table with aligned columns: the first one to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = [
        [cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in cells
    ]
    padded.insert(1, ["-" * w for w in widths])
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def report(
    given: argparse.Namespace,
    found: Mapping[str, Any],
    text: str,
    packages: Iterable[str],
    device: str = "cpu",
) -> None:
    """Prints the result: `found` as JSON with the machine's record, or `text` and a line about the machine."""
    record = where(packages, device)
    if given.json:
        print(json.dumps({**found, "where": record}))
        return
    versions = ", ".join(f"{name} {number}" for name, number in record.pop("versions").items())
    machine = ", ".join(str(value) for key, value in record.items() if key not in ("cores", "python"))
    print(f"{text}\n\n{machine}, {record['cores']} cores; Python {record['python']}, {versions}")
