"""The front as one HTML page, front.html, which needs no network."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from prunefront.atomic import write_whole
from prunefront.pipelines.fronts.figure import figure
from prunefront.pipelines.fronts.row import FrontRow
from prunefront.pipelines.fronts.table import cells, find_dense, headers

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
CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,  # a button that uploads the figure to plotly's server
    "toImageButtonOptions": {"filename": "front", "scale": 2},
}
"""Settings of plotly's toolbar, whose camera saves the figure as a picture."""

TESTED = "Networks were chosen on validation images; the figures are from test images."


def write_html(
    rows: Sequence[FrontRow],
    path: Path,
    title: str = "Pareto front",
    *,
    note: str | None = None,
    images: str | None = None,
    caption: str = TESTED,
) -> None:
    """Writes the figure, with dropped fractions under the mouse, and the table below it.

    rows: fastest first. note: a line of text below the title. images: the images that qualities were measured on; None
    = test images. caption: the last words of the page.
    """
    dense, columns = find_dense(rows), headers(rows)
    drawn = figure(rows, images).to_html(full_html=False, include_plotlyjs=True, config=CONFIG)
    text = page_text(
        title,
        ["latency ms" if name == "ms" else name for name in columns],
        [(row_class(row.is_dense, row.on_test_front), cells(row, dense, columns[-1])) for row in rows],
        note=note,
        figure=drawn,
        caption=FIGURES + caption,
    )
    write_page(text, path)


def write_page(text: str, path: Path) -> None:
    """Replaces a page as a whole: what somebody put in its place, such as a link, is not followed. Raises OSError."""
    write_whole(path, lambda file: file.write(text.encode()))


def row_class(is_dense: bool, on_front: bool = True) -> str:
    """Returns the CSS class of a row of the table."""
    return "dense" if is_dense else "" if on_front else "behind"


def page_text(
    title: str,
    columns: Iterable[str],
    rows: Iterable[tuple[str, Iterable[str]]],
    *,
    note: str | None,
    figure: str = "",
    caption: str = "",
) -> str:
    """Returns a page. rows: CSS class and cells of each row. figure: HTML; all else is text, which is escaped here."""
    return PAGE.format(
        title=html.escape(title),
        note=f'<p class="note">{html.escape(note)}</p>\n' if note else "",
        figure=figure,
        head="".join(f"<th>{html.escape(name)}</th>" for name in columns),
        body="\n".join(
            f'<tr class="{kind}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for kind, row in rows
        ),
        caption=html.escape(caption),
    )
