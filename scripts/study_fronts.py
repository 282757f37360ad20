"""Fronts of finished studies as tables and one picture: `python scripts/study_fronts.py STUDY … -o docs/x.png`

STUDY: name or folder of a study, or "NAME=Title" for another title. The tables are printed as Markdown.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

import prunefront as pf
from prunefront.pipelines.fronts.row import FrontRow


def unit(row: FrontRow) -> str:
    return "%" if row.metric.scale == "share" else row.metric.unit


def markdown(rows: list[FrontRow], dense: FrontRow) -> str:
    """Returns a front as a table, with 95 % intervals in brackets."""
    lines = [
        f"| network | {dense.metric.name} {unit(dense)} of {dense.images:,} | MACs | size | latency of dense |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        middle, low, high = row.shown
        ratio, least, most = row.latency_ratio, row.latency_ratio_low, row.latency_ratio_high
        lines.append(
            f"| {row.key[:10]} | {middle:.4g} ({low:.4g}–{high:.4g}) | "
            f"{row.macs / 1e6:,.1f} M, {row.macs / dense.macs:.2f} | {row.size_bytes / 1e6:,.2f} MB | "
            f"{ratio:.2f} ({least:.2f}–{most:.2f}) |"
        )
    return "\n".join(lines)


def draw(axes: Axes, rows: list[FrontRow], dense: FrontRow, title: str) -> None:
    """Draws quality over MACs relative to the dense network's, with 95 % intervals."""
    for row in rows:
        middle, low, high = row.shown
        off = [[middle - low], [high - middle]]
        colour = "tab:orange" if row.key.startswith("dense") else "tab:blue"
        axes.errorbar([row.macs / dense.macs], [middle], off, fmt="o", color=colour, capsize=3)
    axes.set(
        title=title,
        xlabel="MACs, of the dense network's",
        ylabel=f"{dense.metric.name} {unit(dense)}".rstrip(),
    )
    axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="+", metavar="STUDY")
    parser.add_argument("-o", "--out", type=Path, required=True, help="PNG file")
    asked = parser.parse_args()
    across = min(3, len(asked.studies))
    down = -(-len(asked.studies) // across)
    figure, axes = plt.subplots(down, across, figsize=(4 * across, 3.2 * down), squeeze=False)
    for place, study in zip(axes.flat, asked.studies, strict=False):
        name, _, title = study.partition("=")
        rows = list(pf.load_front(name))
        dense = next(row for row in rows if row.is_dense)
        draw(place, rows, dense, title or name)
        print(f"{name}\n\n{markdown(rows, dense)}\n")
    for place in list(axes.flat)[len(asked.studies) :]:
        place.remove()
    figure.tight_layout()
    figure.savefig(asked.out, dpi=110)


if __name__ == "__main__":
    main()
