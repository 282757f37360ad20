"""Commands that help to decide: `pick` a network of a front, `compare` two of anything."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cli.app import (
    AsJson,
    Best,
    EndpointUrl,
    Require,
    Study,
    Under,
    command,
    console,
    parse_bounds,
    print_json,
    say,
)
from prunefront.pipelines.cli.complete import studies

if TYPE_CHECKING:
    from rich.table import Table

    from prunefront.pipelines.fronts.row import FrontRow

Compared = Annotated[
    str,
    typer.Argument(
        metavar="STUDY|URI|DIR",
        help="A study, the address of an artifact store, or the folder of a fetched network.",
        show_default=False,
        autocompletion=studies,
    ),
]


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


@command(
    "compare",
    "compare digits digits-long",
    "compare studies/a s3://bucket/prefix --json",
    "compare best/ dense/",
)
def compare(
    first: Compared, second: Compared, endpoint_url: EndpointUrl = None, as_json: AsJson = False
) -> None:
    """Compare two fronts, or two fetched networks.

    Each is a study, the address of an artifact store, or the folder of a fetched network. Of fronts it says whose
    hypervolume is larger and whether that is more than noise, which networks are behind one of the other front, and in
    which settings the studies differ. Of networks it says which figures cannot be told apart.
    """
    from prunefront.pipelines.artifacts.manifest import MANIFEST

    artifacts = [(Path(source) / MANIFEST).exists() for source in (first, second)]
    if all(artifacts):
        compare_artifacts(first, second, as_json=as_json)
    elif any(artifacts):
        one, other = (first, second) if artifacts[0] else (second, first)
        raise PrunefrontError(
            f"{one} is one network and {other} is not; compare two fronts, or two fetched networks"
        )
    else:
        compare_two_fronts(first, second, endpoint_url, as_json=as_json)


def compare_two_fronts(first: str, second: str, endpoint_url: str | None, *, as_json: bool) -> None:
    """Prints two fronts as one table, the difference of their hypervolumes, and of their studies."""
    from prunefront.pipelines.config.differences import between
    from prunefront.pipelines.fronts.comparison import beaten_by, compare_fronts
    from prunefront.pipelines.study.fetch import is_store, rows_of
    from prunefront.pipelines.study.find import find

    names, fronts = (first, second), [rows_of(source, endpoint_url) for source in (first, second)]
    found = compare_fronts(fronts[0], fronts[1])
    behind = [beaten_by(fronts[0], fronts[1]), beaten_by(fronts[1], fronts[0])]
    both_studies = not any(map(is_store, names))
    changed = between(find(first).config, find(second).config) if both_studies else {}
    if as_json:
        print_json(
            {
                "hypervolume": {
                    "first": found.first,
                    "second": found.second,
                    "difference": found.value,
                    "noise": found.noise,
                    "clear": found.clear,
                },
                "behind": {"first": behind[0], "second": behind[1]},
                "settings": {key: list(values) for key, values in changed.items()},
            }
        )
        return
    console().print(overlaid(fronts, behind))
    say(f"A: {first}, hypervolume {found.first:.4f}; B: {second}, hypervolume {found.second:.4f}")
    verdict = (
        f"{'B' if found.value > 0 else 'A'} is ahead"
        if found.clear
        else "that is within the noise: neither is ahead"
    )
    say(f"B less A: {found.value:+.4f} ±{found.noise:.4f} (95 %); {verdict}")
    say("(quality, latency relative to the own dense network, and size, as a share of the ideal)")
    for key, (ours, theirs) in changed.items():
        say(f"{key}: {ours} in A, {theirs} in B")


def overlaid(fronts: "Sequence[Sequence[FrontRow]]", behind: Sequence[dict[str, list[str]]]) -> "Table":
    """Returns the networks of two fronts in one table, fastest first, for a terminal of 80 columns or more."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from prunefront.pipelines.fronts.table import format_quality, format_size, quality_header

    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in ("of", "key", quality_header(fronts[0]), "ms", "× dense", "size", "behind"):
        left = header in ("of", "key", "behind")
        drawn.add_column(Text(header), justify="left" if left else "right", no_wrap=True)
    rows = [(row, i) for i, front in enumerate(fronts) for row in front if not row.control]
    for row, i in sorted(rows, key=lambda pair: (pair[0].latency_ratio, pair[1], pair[0].key)):
        ahead = [key[:10] for key in behind[i][row.key]]
        more = f" +{len(ahead) - 1}" if len(ahead) > 1 else ""
        cells = (
            "AB"[i],
            row.key[:10],
            format_quality(row),
            f"{row.latency_ms:.3f}",
            "1" if row.is_dense else f"{row.latency_ratio:.3f}",
            format_size(row.size_bytes),
            f"{ahead[0]}{more}" if ahead else "",
        )
        drawn.add_row(*map(Text, cells), style="bold" if row.is_dense else "dim" if ahead else "")
    return drawn


def compare_artifacts(first: str, second: str, *, as_json: bool) -> None:
    """Prints two fetched networks side by side."""
    from prunefront.pipelines.artifacts.manifest import check_digests
    from prunefront.pipelines.artifacts.record import read_record
    from prunefront.pipelines.fronts.comparison import overlap
    from prunefront.pipelines.fronts.row import FrontError, FrontRow
    from prunefront.pipelines.stores.store import read_json_file

    rows, ratios = [], []
    for folder in map(Path, (first, second)):
        check_digests(folder)
        rows.append(FrontRow.from_json(read_json_file(folder / "measurement.json")))
        ratios.append(read_record(folder).planned)
    if rows[0].metric != rows[1].metric:
        raise FrontError(f"the networks are judged by {rows[0].metric.name} and {rows[1].metric.name}")
    same = overlap(rows[0], rows[1])
    groups = {name: [r.get(name, 0.0) for r in ratios] for name in sorted({*ratios[0], *ratios[1]})}
    changed = {name: pair for name, pair in groups.items() if pair[0] != pair[1]}
    if as_json:
        print_json({"rows": [row.to_json() for row in rows], "overlap": same, "dropped": changed})
        return
    for label, source, row in zip("AB", (first, second), rows, strict=True):
        say(f"{label}: {source}: {row_line(row)}")
    for name, overlaps in same.items():
        say(f"{name}: {'cannot be told apart: the 95 % intervals overlap' if overlaps else 'differ'}")
    for name, (ours, theirs) in changed.items():
        say(f"{name}: {ours:.0%} dropped in A, {theirs:.0%} in B")
