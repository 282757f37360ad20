"""Table of docs/networks.md: `python -m tests.corpus.table docs/networks.md` writes it anew."""

import sys
from collections import defaultdict
from pathlib import Path

from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan.cost import cost, locked_macs
from prunefront.pruners.trace.tracer import trace
from tests.corpus.plain import PLAIN

HEAD = """# What can be pruned of which networks

One small network per family (`tests/corpus/`), traced, cut at random, compared with the masked one, trained a step,
saved and loaded by the tests. `make docs` writes this table anew. *Reached* is the share of the multiply-accumulates of
convolutions and products that some cut takes part in. What reaches the output always stays, and is left out here.

| family | groups | reached | attributes set | what else stays, and why |
|---|---|---|---|---|
"""


def row(name: str, graph: ChannelGraph) -> str:
    """Returns the table's line for one network."""
    total, locked = cost(graph).macs, locked_macs(graph)
    reasons: dict[str, list[str]] = defaultdict(list)
    for frozen in graph.frozen:
        if frozen.reason != "reaches the output":
            reasons[frozen.reason].append(frozen.name)
    why = "; ".join(f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in reasons.items())
    numbers = ", ".join(dict.fromkeys(a.name for a in graph.attributes))
    return f"| {name} | {len(graph.groups)} | {1 - sum(locked) / total:.0%} | {numbers} | {why} |"


def table() -> str:
    """Returns the whole page."""
    return HEAD + "".join(f"{row(name, trace(*make()))}\n" for name, make in PLAIN.items())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(table())
