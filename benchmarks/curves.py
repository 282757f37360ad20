"""A picture of curves over seeds."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean

Curve = Sequence[float]
"""A value after 1, 2, … steps."""


def draw(
    curves: Mapping[str, Sequence[Curve]],
    path: Path,
    *,
    solid: Collection[str],
    points: Mapping[str, Mapping[int, float]] | None = None,
    **axes_options: object,
) -> None:
    """Writes an image of each method's mean curve, with the range over its seeds.

    solid: methods whose curve is not dashed. points: step -> value of methods without a curve. axes_options: of
    matplotlib's `Axes.set`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    colours = [plt.get_cmap("tab20")(i % 20) for i in range(len(curves) + len(points or {}))]
    for (name, runs), colour in zip(curves.items(), colours, strict=False):
        columns = list(zip(*(run[: min(map(len, runs))] for run in runs), strict=True))
        steps = range(1, len(columns) + 1)
        style = "-" if name in solid else "--"
        axes.plot(steps, [fmean(c) for c in columns], style, color=colour, label=name)
        axes.fill_between(
            steps, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.15
        )
    for (name, values), colour in zip((points or {}).items(), colours[len(curves) :], strict=True):
        axes.plot(list(values), list(values.values()), "x", color=colour, label=name)
    axes.set(ylabel="hypervolume (accuracy, MACs)", **axes_options)
    axes.legend(fontsize=7, ncols=2)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
