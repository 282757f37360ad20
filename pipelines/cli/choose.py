"""Commands that help to decide: `pick` a network of a front, `compare` two of anything."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunefront.pipelines.cli.app import (
    AsJson,
    Best,
    Require,
    Study,
    Under,
    command,
    console,
    parse_bounds,
    print_json,
    say,
)

if TYPE_CHECKING:
    from prunefront.pipelines.fronts.row import FrontRow


@command(
    "pick",
    "pick digits",
    "pick digits --under latency_ms=2 --require 'accuracy >= -1pt'",
    "pick study.toml --best size_bytes --require 'accuracy >= 97%'",
)
def pick(
    study: Study,
    under: Under = None,
    require: Require = None,
    best: Best = None,
    as_json: AsJson = False,
) -> None:
    """Show which network of a front to take within bounds.

    It names the best one, the command that fetches it, what cannot be told apart from it, and the fastest, the knee and
    the best of the front. `fetch` takes the same bounds, and the study's report.html chooses alike.
    """
    from prunefront.pipelines.fronts.choice import alike, best_row, named
    from prunefront.pipelines.study.find import find, read_front

    rows = read_front(find(study).searched_folder())
    chosen = best_row(rows, parse_bounds(under or ()), best, require or ())
    names = named(rows, "latency_ms")
    near = alike(chosen, rows)
    fetch = fetch_command(study, under or (), require or (), best)
    if as_json:
        print_json(
            {
                "key": chosen.key,
                "row": chosen.to_json(),
                "names": {name: row.key for name, row in names.items()},
                "alike": [row.key for row in near],
                "fetch": fetch,
            }
        )
        return
    from prunefront.pipelines.fronts.table import table

    console().print(table(rows))
    lines = [("pick", chosen), *((LABELS[name], names[name]) for name in LABELS if name in names)]
    for label, row in lines:
        say(f"{label:<8} {row_line(row)}")
    if near:
        keys = ", ".join(row.key[:10] for row in near)
        metric = chosen.metric.name
        say(f"{metric} of {keys} cannot be told apart from that of the pick: the 95 % intervals overlap")
    say(f"fetch it: {fetch}")


LABELS = {"fastest": "fastest", "knee": "knee", "best": "best"}
"""Name of a row -> what a person reads before it, in this order."""


def row_line(row: "FrontRow") -> str:
    """Returns a row's figures on a line of at most 80 characters."""
    from prunefront.pipelines.fronts.table import format_count, format_quality, format_size

    unit = "%" if row.metric.scale == "share" else row.metric.unit or row.metric.name
    ratio = "" if row.is_dense else f" ({row.latency_ratio:.2f} × dense)"
    key = f"{row.control} of {row.of[:10]}" if row.control else row.key[:10]
    return (
        f"{key:<10}  {format_quality(row)} {unit}, {row.latency_ms:.3f} ms{ratio}, "
        f"{format_count(row.macs)} MACs, {format_size(row.size_bytes)}"
    )


def fetch_command(study: str, under: Sequence[str], require: Sequence[str], best: str | None) -> str:
    """Returns the `prunefront fetch` that chooses what these options choose."""
    words = ["prunefront", "fetch", study]
    for text in under:
        words += ["--under", text]
    for text in require:
        words += ["--require", text]
    if best is not None:
        words += ["--best", best]
    return shlex.join([*words, "-o", "best/"])
