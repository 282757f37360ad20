"""The front for people: a table, a picture, a page; and the choice of one point of it."""

import html
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.plan import PruningPlan
from prunefront.search.outcomes.measurement import OBJECTIVES

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.table import Table

Row = Mapping[str, Any]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds what cannot be printed")
    return text


Label = Annotated[str, Field(max_length=300), AfterValidator(_printable)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0, le=1 << 62, strict=False)]  # 1e6 is a count too

FRONT_OBJECTIVES = tuple(OBJECTIVES[name] for name in ("accuracy", "latency_ratio", "size_bytes"))
"""What a person chooses by. Latency as a ratio to the dense network's, which is steadier than milliseconds."""

DENSE = "dense"
BLUE, ORANGE, GREY, PURPLE = "#1f5fa8", "#d95f02", "#6b7280", "#7b3294"


class ReportError(PrunefrontError):
    """The front cannot be read, or nothing in it is what was asked."""


class FrontRow(BaseModel):
    """One network of the front: accuracies as fractions, 95 % intervals, latencies on the study's runtime.

    control: what it is for the network whose key is `of`; "" = it was found by the search. made: what it has besides
    fewer channels, in a few words (`made_of`).
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    key: Label
    accuracy: Fraction
    accuracy_low: Fraction
    accuracy_high: Fraction
    images: Count
    latency_ms: Positive
    latency_ratio: Positive
    latency_ratio_low: Positive
    latency_ratio_high: Positive
    dense_latency_ms: Positive
    size_bytes: Count
    macs: Count
    params: Count
    achieved: dict[Label, float]
    artifact: Annotated[str, Field(max_length=2000), AfterValidator(_printable)] | None = None
    validation_accuracy: float | None = None
    origin: Label = ""
    epochs: Count = 0
    on_test_front: bool = True
    control: Label = ""
    of: Label = ""
    made: Label = ""

    @classmethod
    def from_json(cls, data: object) -> "FrontRow":
        """Raises ReportError, one line, for anything that is not a row. Unknown fields are left out."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            key = data.get("key") if isinstance(data, Mapping) else None
            message = f"{where}: {first['msg']}" if where else first["msg"]
            raise ReportError(f"row {key!r:.80} of the front is not valid: {message}") from None

    def to_json(self) -> dict[str, Any]:
        return self.model_dump()


COLUMNS = (*OBJECTIVES, "accuracy_low", "accuracy_high", "latency_ratio_high", "epochs")
"""What a row can be bounded by."""


def read(data: object) -> list[FrontRow]:
    """The rows of a front.json, fastest first. Raises ReportError when it is something else, or empty."""
    if not isinstance(data, Sequence) or isinstance(data, str) or not data:
        raise ReportError("the front must be a list of at least one row")
    rows = sorted((FrontRow.from_json(row) for row in data), key=lambda r: (r.latency_ms, r.key))
    keys = [row.key for row in rows]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise ReportError(f"the front holds {', '.join(sorted(twice))} more than once")
    return rows


def to_json(rows: Sequence[Row]) -> str:
    """The rows as text, fastest first."""
    return json.dumps([row.to_json() for row in read(rows)], indent=1)


def select(rows: Sequence[Row], under: Mapping[str, float], best: str) -> Row:
    """The row that is best in one objective among those with `row[name] <= bound` for every bound.

    Raises ReportError: a column that there is not; no row within the bounds, and the smallest possible value.
    """
    for name in under:
        _known(name, COLUMNS, "column")
    objective = OBJECTIVES[_known(best, tuple(OBJECTIVES), "objective")]
    parsed = {row.key: row for row in read(rows)}
    fit = [row for row in parsed.values() if all(getattr(row, n) <= bound for n, bound in under.items())]
    if not fit:
        raise ReportError(_nothing(list(parsed.values()), under))
    sign = -1 if objective.direction == "max" else 1
    chosen = min(fit, key=lambda r: (sign * getattr(r, best), r.latency_ms, r.size_bytes, r.key))
    return next(row for row in rows if row["key"] == chosen.key)


def _known(name: str, known: Sequence[str], kind: str) -> str:
    if name in known:
        return name
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ReportError(f"the front has no {kind} {name!r}; {hint}known: {', '.join(known)}")


def _nothing(rows: Sequence[FrontRow], under: Mapping[str, float]) -> str:
    """Bounds may be possible one by one and not together: the smallest value is told given the others."""
    smallest = []
    for name, bound in under.items():
        others = [r for r in rows if all(getattr(r, n) <= b for n, b in under.items() if n != name)]
        if others:
            value = min(getattr(r, name) for r in others)
            given = " with the other bounds" if len(under) > 1 else ""
            smallest.append(f"the smallest {name} possible{given} is {value:g} (asked: {bound:g})")
        else:
            value = min(getattr(r, name) for r in rows)
            smallest.append(f"the smallest {name} is {value:g} (asked: {bound:g})")
    return f"no point of the front is within the bounds: {'; '.join(smallest)}"


def made_of(plan: PruningPlan) -> str:
    """What a plan does besides taking channels, short for tables: blocks gone, compact layers, word lengths."""
    found = []
    if gone := sum(s.units - len(s.kept) for s in plan.stacks):
        found.append(f"−{gone} block{'s' * (gone > 1)}")
    kinds = Counter(p.choice.granularity for p in plan.layers if p.count is not None)
    found += [f"{kinds[name]} {name}" for name in sorted(kinds)]
    if bits := sorted({*plan.bit_widths().values()}):
        found.append(f"{bits[0]} bit" if len(bits) == 1 else f"{bits[0]}–{bits[-1]} bit")
    return ", ".join(found)


def headers(rows: Sequence[FrontRow]) -> tuple[str, ...]:
    """Names of the columns, which take 80 characters in all: what networks are made of says more than their params."""
    made = "made of" if any(row.made for row in rows) else "params"
    return "key", "accuracy %", "ms", "× dense", "MACs", "size", made


def _cells(row: FrontRow, dense: FrontRow | None, last: str) -> tuple[str, ...]:
    half = 50 * (row.accuracy_high - row.accuracy_low)
    spread = (row.latency_ratio_high - row.latency_ratio_low) / 2
    return (
        f"{row.control} of {row.of}" if row.control else row.key,
        f"{100 * row.accuracy:.2f} ±{half:.2f}",
        f"{row.latency_ms:.3f}",
        "1" if row.key == DENSE else f"{row.latency_ratio:.3f} ±{spread:.3f}",
        count(row.macs) + _fold(row.macs, dense),
        size(row.size_bytes),
        row.made if last == "made of" else count(row.params),
    )


def _fold(value: int, dense: FrontRow | None) -> str:
    """How many times fewer than dense."""
    return f" ÷{dense.macs / value:.3g}" if dense and value and dense.macs != value else ""


def count(value: float) -> str:
    """Three digits and a unit, such as 10.2 M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:g}"


def size(value: float) -> str:
    """Of so many bytes, such as 275 kB."""
    return f"{count(value)}B" if value >= 1000 else f"{value:g} B"


def table(rows: Sequence[Row], title: str | None = None) -> "Table":
    """The front without its controls, fastest first, for a terminal of 80 columns or more; ± is half a 95 % interval.

    The dense network is bold; a point that the test images put behind another one is dim and marked with *.
    """
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    front = [row for row in read(rows) if not row.control]
    dense = next((row for row in front if row.key == DENSE), None)
    behind = any(not row.on_test_front for row in front if row.key != DENSE)
    drawn = Table(
        box=SIMPLE_HEAD,
        title=title,
        title_justify="left",
        padding=(0, 1, 0, 0),
        caption="* behind another point on the test images" if behind else None,
        caption_justify="left",
    )
    columns = headers(front)
    for header in columns:
        left = header in ("key", "made of")
        drawn.add_column(header, justify="left" if left else "right", no_wrap=header != "made of")
    for row in front:
        key, *rest = _cells(row, dense, columns[-1])
        key = escape(key[:10]) + ("" if row.on_test_front or row.key == DENSE else "*")
        style = "bold" if row.key == DENSE else "" if row.on_test_front else "dim"
        drawn.add_row(key, *map(escape, rest), style=style)
    return drawn


def controls_table(rows: Sequence[Row]) -> "Table | None":
    """Each control beside the network that it is compared with; None where the study had none."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    front = {row.key: row for row in read(rows)}
    found = [row for row in front.values() if row.control]
    if not found:
        return None
    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title="controls", title_justify="left")
    for header in ("control", "of", "accuracy %", "points over it", "ms", "MACs", "epochs"):
        drawn.add_column(header, justify="left" if header in ("control", "of") else "right", no_wrap=True)
    for row in sorted(found, key=lambda r: (r.of, -r.accuracy)):
        half = 50 * (row.accuracy_high - row.accuracy_low)
        gain = f"{100 * (row.accuracy - front[row.of].accuracy):+.2f}" if row.of in front else "?"
        drawn.add_row(
            row.control,
            row.of[:10],
            f"{100 * row.accuracy:.2f} ±{half:.2f}",
            gain,
            f"{row.latency_ms:.3f}",
            count(row.macs),
            str(row.epochs),
        )
    return drawn


def figure(rows: Sequence[Row], images: str | None = None) -> "Figure":
    """The front as an interactive figure: accuracy over latency, intervals as bars, bigger for more params.

    images: what accuracies were measured on, where that is not the test images.
    """
    import plotly.graph_objects as go

    front = read(rows)
    pruned = [row for row in front if row.key != DENSE and not row.control]
    steps = [row for row in pruned if row.on_test_front]
    biggest = max(row.params for row in front)
    drawn = go.Figure()
    drawn.add_scatter(
        x=[x for x, _ in _stairs(front)],
        y=[y for _, y in _stairs(front)],
        mode="lines",
        line={"color": BLUE, "width": 1.5, "shape": "hv"},
        opacity=0.45,
        hoverinfo="skip",
        showlegend=False,
    )
    for name, members, colour, symbol in (
        ("on the front", steps, BLUE, "circle"),
        ("behind it on the test images", [r for r in pruned if not r.on_test_front], GREY, "circle-open"),
        ("dense network", [r for r in front if r.key == DENSE], ORANGE, "diamond"),
        ("control", [r for r in front if r.control], PURPLE, "triangle-up-open"),
    ):
        if not members:
            continue
        drawn.add_scatter(
            name=name,
            mode="markers",
            x=[row.latency_ms for row in members],
            y=[100 * row.accuracy for row in members],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [_latency_spread(row)[1] for row in members],
                "arrayminus": [_latency_spread(row)[0] for row in members],
                "thickness": 1,
                "width": 2,
                "color": _pale(colour),
            },
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [100 * (r.accuracy_high - r.accuracy) for r in members],
                "arrayminus": [100 * (r.accuracy - r.accuracy_low) for r in members],
                "thickness": 1,
                "width": 2,
                "color": _pale(colour),
            },
            marker={
                "color": colour,
                "symbol": symbol,
                "size": [9 + 13 * math.sqrt(row.params / biggest) for row in members],
                "line": {"width": 1.5, "color": colour if symbol.endswith("open") else "white"},
            },
            hovertemplate=[f"{_hover(row)}<extra></extra>" for row in members],
        )
    drawn.update_layout(
        template="plotly_white",
        font={
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
            "size": 13,
            "color": "#111827",
        },
        xaxis={
            "title": {"text": "latency [ms]"},
            "rangemode": "tozero",
            "zeroline": False,
        },
        yaxis={"title": {"text": f"accuracy on {images or f'{front[0].images:,} test images'} [%]"}},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"align": "left", "bgcolor": "white"},
        height=520,
        margin={"l": 70, "r": 25, "t": 60, "b": 60},
    )
    return drawn


def _stairs(front: Sequence[FrontRow]) -> list[tuple[float, float]]:
    """What accuracy is to be had by which latency: (ms, %), for rows that come fastest first.

    A point may be on the front by its size or MACs alone; then it lies below the stairs.
    """
    best: list[tuple[float, float]] = []
    for row in front:
        if row.control:
            continue
        if not best or 100 * row.accuracy > best[-1][1]:
            best.append((row.latency_ms, 100 * row.accuracy))
    return best


def _pale(colour: str) -> str:
    return f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},0.45)"


def _hover(row: FrontRow) -> str:
    ratios = "".join(
        f"<br>   {html.escape(group)}  {100 * ratio:.0f} %"
        for group, ratio in list(row.achieved.items())[:24]
    )
    more = f"<br>   … and {len(row.achieved) - 24} more groups" if len(row.achieved) > 24 else ""
    return (
        f"<b>{html.escape(f'{row.control} of {row.of}' if row.control else row.key)}</b>"
        f"<br>accuracy {100 * row.accuracy:.2f} % "
        f"({100 * row.accuracy_low:.2f} to {100 * row.accuracy_high:.2f})"
        f"<br>latency {row.latency_ms:.3f} ms, {row.latency_ratio:.3f} × dense"
        f"<br>{count(row.macs)} MACs, {count(row.params)} params, {size(row.size_bytes)}"
        + (f"<br>{html.escape(row.made)}" if row.made else "")
        + (f"<br>dropped:{ratios}{more}" if ratios else "")
    )


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #111827;
  margin: 0 auto; max-width: 1060px; padding: 16px 24px 48px; }}
h1 {{ font-size: 22px; margin: 12px 0 0; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 6px 10px; text-align: right; border-bottom: 1px solid #e5e7eb; white-space: nowrap; }}
th {{ font-weight: 600; border-bottom: 2px solid #9ca3af; }}
th:first-child, td:first-child {{ text-align: left; }}
td:first-child {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 13px; }}
tbody tr:hover {{ background: #f3f4f6; }}
tr.dense td {{ font-weight: 600; background: #fff4ea; }}
tr.behind td {{ color: #6b7280; }}
p {{ color: #4b5563; font-size: 13px; }}
.scroll {{ overflow-x: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
{note}{figure}
<div class="scroll">
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
<p>± is half of a 95&nbsp;% interval. {caption}</p>
</body>
</html>
"""


FIGURES = (
    "Latency is measured in turn with the dense network on the same runtime; the marker grows with the number of "
    "parameters. "
)
TESTED = "The points were chosen on validation images, the figures are those of the test images."


def write_html(
    rows: Sequence[Row],
    path: Path,
    title: str = "Pareto front",
    *,
    note: str | None = None,
    images: str | None = None,
    caption: str = TESTED,
) -> None:
    """Writes one page that needs no network: the figure, achieved ratios under the mouse, and the table.

    note: a line of text below the title. images: what accuracies were measured on, where that is not the test images;
    caption: the last words of the page.
    """
    front = read(rows)
    dense = next((row for row in front if row.key == DENSE), None)
    columns = headers(front)
    body = []
    for row in front:
        kind = "dense" if row.key == DENSE else "" if row.on_test_front else "behind"
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row, dense, columns[-1]))
        body.append(f'<tr class="{kind}">{cells}</tr>')
    page = PAGE.format(
        title=html.escape(title),
        note=f'<p class="note">{html.escape(note)}</p>\n' if note else "",
        figure=figure(rows, images).to_html(
            full_html=False, include_plotlyjs=True, config={"displaylogo": False, "responsive": True}
        ),
        head="".join(f"<th>{html.escape('latency ms' if n == 'ms' else n)}</th>" for n in columns),
        body="\n".join(body),
        caption=html.escape(FIGURES + caption),
    )
    path.write_text(page, encoding="utf-8")


def write_png(rows: Sequence[Row], path: Path, title: str = "Pareto front") -> None:
    """Writes the front as a picture: accuracy over latency and over MACs; over size too, where words are shorter."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    front = read(rows)
    sized = any("bit" in row.made for row in front)
    canvas = Canvas(figsize=(15 if sized else 11, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(canvas)
    left, *others = canvas.subplots(1, 3 if sized else 2, sharey=True)
    right = others[-1]
    left.plot(
        *zip(*_stairs(front), strict=True), drawstyle="steps-post", color=BLUE, alpha=0.45, linewidth=1.2
    )
    panels = [
        (left, "latency [ms]", [(row.latency_ms, *_latency_spread(row)) for row in front]),
        (others[0], "MACs [million]", [(row.macs / 1e6, 0.0, 0.0) for row in front]),
    ]
    if sized:
        panels.append((right, "weights [kB]", [(row.size_bytes / 1e3, 0.0, 0.0) for row in front]))
    for axes, label, horizontal in panels:
        for row, (x, below, above) in zip(front, horizontal, strict=True):
            colour, marker, fill, name = _look(row)
            axes.errorbar(
                x,
                100 * row.accuracy,
                xerr=[[below], [above]],
                yerr=[[100 * (row.accuracy - row.accuracy_low)], [100 * (row.accuracy_high - row.accuracy)]],
                fmt=marker,
                color=colour,
                markerfacecolor=fill,
                markersize=6.5,
                ecolor=(*_rgb(colour), 0.45),
                elinewidth=1,
                capsize=2,
                label=name,
                zorder=3,
            )
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#9ca3af")
        axes.tick_params(color="#9ca3af")
    left.set_ylabel(f"accuracy on {front[0].images:,} test images [%]")
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    right.legend(handles.values(), handles.keys(), loc="lower right", frameon=False)
    canvas.suptitle(title, x=0.01, ha="left", fontweight="bold")
    canvas.savefig(path, metadata={"Software": "prunefront"})


def _latency_spread(row: FrontRow) -> tuple[float, float]:
    """Milliseconds below and above; the interval is that of the ratio to the dense network."""
    below = (row.latency_ratio - row.latency_ratio_low) * row.dense_latency_ms
    above = (row.latency_ratio_high - row.latency_ratio) * row.dense_latency_ms
    return max(below, 0.0), max(above, 0.0)


def _look(row: FrontRow) -> tuple[str, str, str, str]:
    """Colour, marker, fill, and the name in the legend."""
    if row.key == DENSE:
        return ORANGE, "D", ORANGE, "dense network"
    if row.control:
        return PURPLE, "^", "white", "control"
    if row.on_test_front:
        return BLUE, "o", BLUE, "on the front"
    return GREY, "o", "white", "behind it on the test images"


def _rgb(colour: str) -> tuple[float, float, float]:
    return int(colour[1:3], 16) / 255, int(colour[3:5], 16) / 255, int(colour[5:7], 16) / 255
