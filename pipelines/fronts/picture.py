"""The front as a picture, front.png."""

from collections.abc import Sequence
from pathlib import Path

from prunefront.pipelines.fronts.marks import (
    BLUE,
    accuracy_interval,
    latency_interval,
    mark_of,
    rgb,
    stairs,
)
from prunefront.pipelines.fronts.row import FrontRow


def write_png(rows: Sequence[FrontRow], path: Path, title: str = "Pareto front") -> None:
    """Writes accuracy over latency and over MACs, side by side; also over size where bit widths differ.

    rows: fastest first.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    sized = any("bit" in row.made for row in rows)
    canvas = Canvas(figsize=(15 if sized else 11, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(canvas)
    left, *others = canvas.subplots(1, 3 if sized else 2, sharey=True)
    right = others[-1]
    left.plot(*zip(*stairs(rows), strict=True), drawstyle="steps-post", color=BLUE, alpha=0.45, linewidth=1.2)
    panels = [
        (left, "latency [ms]", [(row.latency_ms, *latency_interval(row)) for row in rows]),
        (others[0], "MACs [million]", [(row.macs / 1e6, 0.0, 0.0) for row in rows]),
    ]
    if sized:
        panels.append((right, "weights [kB]", [(row.size_bytes / 1e3, 0.0, 0.0) for row in rows]))
    for axes, label, horizontal in panels:
        for row, (x, below, above) in zip(rows, horizontal, strict=True):
            mark, (worse, better) = mark_of(row), accuracy_interval(row)
            red, green, blue = (level / 255 for level in rgb(mark.colour))
            axes.errorbar(
                x,
                100 * row.accuracy,
                xerr=[[below], [above]],
                yerr=[[worse], [better]],
                fmt=mark.marker,
                color=mark.colour,
                markerfacecolor=mark.colour if mark.filled else "white",
                markersize=6.5,
                ecolor=(red, green, blue, 0.45),
                elinewidth=1,
                capsize=2,
                label=mark.name,
                zorder=3,
            )
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#9ca3af")
        axes.tick_params(color="#9ca3af")
    left.set_ylabel(f"accuracy on {rows[0].images:,} test images [%]")
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    right.legend(handles.values(), handles.keys(), loc="lower right", frameon=False)
    canvas.suptitle(title, x=0.01, ha="left", fontweight="bold")
    canvas.savefig(path, metadata={"Software": "prunefront"})
