"""A plotly figure on the page that reports clicks, follows dark mode and fetches nothing from outside.

It draws with the plotly.min.js of the installed plotly package. `gr.Plot` can do none of the three.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from components.figures.chart import Chart

Rectangle = tuple[int, int, int, int]
"""Top and bottom row, left and right column of some cells of a map, ends included."""
PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
HEAD = f'<script src="gradio_api/file={PLOTLY_JS}"></script>'
"""Give it to the page's head as well: then the script is there before the first chart."""
EVERY: dict[str, Any] = {"trigger_mode": "multiple"}
"""How to listen to `select` and `brush`, with a concurrency limit of 1: every one is answered, in order. Gradio's
"always_last" would repeat the first click of a quick pair and forget the second: it keeps the data of the first."""
_HERE = Path(__file__).parent
_SCRIPT = (_HERE / "clickable_plot.js").read_text(encoding="utf-8")

_TEMPLATE = """
<figure class="chart" data-file="FILE">
  <figcaption><h3 class="chart-title"></h3><p class="chart-note"></p></figcaption>
  <div class="chart-plot" role="img"></div>
  <div class="chart-empty">EMPTY</div>
  <button type="button" class="chart-png" hidden>Save as PNG</button>
</figure>
"""


def clickable_plot(*, empty: str, name: str, **options: Any) -> gr.HTML:
    """A component for `payload(chart)`; its `select` event carries `index` = [row, column] of a clicked cell.

    Where the payload says `brush`, its `brush` event carries `cells` = [top row, bottom row, left column, right column]
    of a dragged rectangle, a row or a column, or None once Escape has cleared it. `outlined` says what to outline.

    Args:
        empty: what to read while there is no figure: why, and what to do next.
        name: the file name of the PNG, without its ending.
    """
    gr.set_static_paths([PLOTLY_JS])
    # not as properties: Gradio forgets those of a component that is updated before its tab or section is first shown
    template = _TEMPLATE.replace("FILE", _literal(name)).replace("EMPTY", _literal(empty))
    return gr.HTML(
        html_template=template,
        js_on_load=_SCRIPT,
        head=HEAD,
        apply_default_css=False,
        brushed=[],
        pointed=[],
        **options,
    )


def _literal(words: str) -> str:
    """Words as HTML in which Gradio's templates find nothing to fill in."""
    safe = html.escape(words)
    return "".join(f"&#{ord(letter)};" if letter in "$`{}\\" else letter for letter in safe)


def payload(
    chart: Chart | None,
    picked: Sequence[int] | None = None,
    *,
    empty: str | None = None,
    brush: bool = False,
    brushed: Sequence[Rectangle] | None = None,
    at: int | None = None,
) -> dict[str, Any] | None:
    """A chart as the component's value.

    Args:
        picked: the [row, column] to outline in each of its maps.
        empty: what to read in place of a chart that is None, where it differs from the component's own.
        brush: whether cells can be chosen by dragging, or by the names of rows and columns.
        brushed: the cells to outline as chosen; None leaves them as they are on the page.
        at: `now()` for a chart that is drawn even if it is the one that was sent last; the page may have changed it.
    """
    if chart is None:
        return {"empty": empty} if empty else None
    figure = json.loads(chart.figure.to_json())
    return {
        "data": figure["data"],
        "layout": figure["layout"],
        "narrow": chart.narrow,
        "title": chart.title,
        "note": chart.note,
        "alt": chart.alt,
        "picked": list(picked) if picked is not None else None,
        **({"brush": True} if brush else {}),
        **({"brushed": [list(cells) for cells in brushed]} if brushed is not None else {}),
        **({"at": at} if at is not None else {}),
    }


def outlined(rectangles: Sequence[Rectangle]) -> dict[str, Any]:
    """An update of the component that outlines other cells as chosen and sends no figure again."""
    return gr.update(brushed=[list(cells) for cells in rectangles])


def picked(row: int, column: int) -> dict[str, Any]:
    """An update of the component that outlines one cell as a click on it does."""
    return gr.update(pointed=[row, column, now()])


def now() -> int:
    """Milliseconds by a clock: the browser takes notice of a value only if it differs from the last one."""
    return round(1000 * time.monotonic())


def clicked_cell(event: object) -> tuple[int, int] | None:
    """Row and column of a click as the browser reports it; None where that is no pair of natural numbers."""
    data = getattr(event, "_data", None)
    index = data.get("index") if isinstance(data, dict) else None
    if not isinstance(index, (list, tuple)) or len(index) != 2:
        return None
    row, column = index
    return (row, column) if _are_natural(row, column) else None


def brushed_cells(event: object) -> Rectangle | None:
    """Top and bottom row, left and right column of a brush as the browser reports it, ends included; None where it was
    cleared, or is no such rectangle."""
    data = getattr(event, "_data", None)
    cells = data.get("cells") if isinstance(data, dict) else None
    if not isinstance(cells, (list, tuple)) or len(cells) != 4 or not _are_natural(*cells):
        return None
    top, bottom, left, right = cells
    return (top, bottom, left, right) if top <= bottom and left <= right else None


def _are_natural(*numbers: object) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)
