"""What the Merge tab shows of a preview: plain functions from a preview and a choice to values of components."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from components.clickable_plot import payload
from components.figures import effective, fate, rounding
from components.figures.chart import Chart
from components.figures.metrics import MapWords, Panel, cell_name
from components.tables import Table, csv_link, html_table, panels_table
from merging.inspecting.fate import DTYPES, TensorFate
from merging.inspecting.sums import total
from merging.reports.report import STUDENT_95, Cell, Preview, added_up, frame_of, placed

ROUNDING, PARAMETERS = "rounding", "parameters"
FIRST = "kept"
NUMBERS = [
    *((words.label, key) for key, words in fate.MAPS.items()),
    ("Rounding", ROUNDING),
    ("Parameters", PARAMETERS),
]
"""All that the map can show: label and key."""
WHOLE = "whole model"
NOTHING = "Nothing to show yet. Choose models on the Models tab and a method here."
BROKEN = "The recipe cannot be merged yet: fix what is said beside it first, then this map shows what it would keep."
NEEDS_IMPORTANCE = (
    "This method needs importance: compute it above the form first, then this map shows what it would keep."
)
FAILED = "There is nothing to show: this merge would fail. The line above says why."
NO_BARS = "No merge, no fates."
ALL_COPIED = (
    "This recipe copies every tensor from the base: nothing is merged, so there is no change to follow."
)
NO_FATES = "This method is no sum of scaled changes, so weights have no single fates; what is present and what is nobody's show."


@dataclass(frozen=True)
class Choice:
    """What a visitor wants to see: the number, for rounding and parameters which one, norms and embeddings too, the
    cell whose bars are shown (None: the whole model), and the number `wanted` where the method does not have it."""

    number: str = FIRST
    which: str | None = None
    everything: bool = False
    cell: Cell | None = None
    wanted: str | None = None


def settle(preview: Preview, choice: Choice) -> Choice:
    """The choice as far as it means something for this preview; the browser may send anything."""
    known = [key for _, key in numbers(preview)]
    wanted = choice.wanted if choice.wanted in {key for _, key in NUMBERS} else choice.number
    number = next(one for one in (wanted, choice.number, known[0]) if one in known)
    options = choices(preview, number)
    which = choice.which if choice.which in options else None
    if which is None and options:
        which = (rounding.output_dtype(preview) if number == ROUNDING else None) or options[0]
    cells = {(place.block, place.kind) for place in placed(preview.tensors, everything=True).values()}
    cell = choice.cell if choice.cell in cells else None
    return Choice(number, which, bool(choice.everything), cell, wanted if wanted != number else None)


def numbers(preview: Preview | None) -> list[tuple[str, str]]:
    """Label and key of what the map can show for a preview's method."""
    if preview is None:
        return NUMBERS
    known = [*fate.available(preview), ROUNDING, *([PARAMETERS] if effective.parameters(preview) else [])]
    return [(label, key) for label, key in NUMBERS if key in known]


def choices(preview: Preview, number: str) -> list[str]:
    """What there is to choose from once the number is chosen."""
    if number == ROUNDING:
        return list(DTYPES)
    return effective.parameters(preview) if number == PARAMETERS else []


def map_value(
    preview: Preview, names: Sequence[str], choice: Choice, **options: Any
) -> dict[str, Any] | None:
    """The map as its component's value, with the chosen cell outlined; `options` go to `payload`."""
    if not preview.tensors:
        return {"empty": ALL_COPIED}
    return payload(map_chart(preview, names, choice), _position(preview, choice), **options)


def map_chart(preview: Preview, names: Sequence[str], choice: Choice) -> Chart | None:
    """The chosen map."""
    if choice.number == ROUNDING:
        return rounding.rounding_chart(preview, choice.which or "bfloat16", everything=choice.everything)
    if choice.number == PARAMETERS:
        return effective.parameter_chart(preview, names, choice.which or "", everything=choice.everything)
    return fate.fate_chart(preview, names, choice.number, everything=choice.everything)


def bars_value(preview: Preview, names: Sequence[str], choice: Choice) -> dict[str, Any] | None:
    """The stacked bars of the chosen cell, or of the whole model."""
    found, where = subject(preview, choice.cell)
    return payload(fate.story_bars(found, names, where)) if found is not None else {"empty": ALL_COPIED}


def subject(preview: Preview, cell: Cell | None) -> tuple[TensorFate | None, str]:
    """What the bars are about: sums over a cell or over everything, and its name; None where nothing is merged."""
    if not preview.tensors:
        return None, WHOLE
    if cell is not None:
        found = added_up(placed(preview.tensors, everything=True), preview.tensors).get(cell)
        if found is not None:
            return found, cell_name(*cell)
    return total(preview.tensors.values()), WHOLE


def live_map(preview: Preview, names: Sequence[str], choice: Choice) -> dict[str, Any]:
    """What a moved slider changes in the map that is drawn: numbers and hover texts of its small maps."""
    shown = panels(preview, names, choice)
    update: dict[str, Any] = {"z": [panel.grid.values for panel in shown]}
    if choice.number in fate.MAPS:
        cells = fate.fate_cells(preview, everything=choice.everything)
        alone = choice.number == fate.NOBODY
        update["text"] = [
            fate.hover_lines(panel.grid, cells, None if alone else number)
            for number, panel in enumerate(shown)
        ]
    return {"keys": [panel.name for panel in shown], "update": update}


def live_bars(preview: Preview, names: Sequence[str], choice: Choice) -> dict[str, Any] | None:
    """What a moved slider changes in the bars that are drawn."""
    found, _ = subject(preview, choice.cell)
    if found is None:
        return None
    lengths, labels = fate.bar_values(found, len(names))
    return {"keys": list(lengths), "update": {"x": list(lengths.values()), "text": list(labels.values())}}


def figures_html(preview: Preview, names: Sequence[str], choice: Choice) -> str:
    """The numbers behind the bars as a table."""
    found, where = subject(preview, choice.cell)
    if found is None:
        return ""
    headers, rows = fate.share_rows(found, names)
    residual = found.residual()
    more = ""
    if residual is not None:
        more = f"<p class=\"pv-line\">{residual:.1%} of the merged change's length is nobody's.</p>"
    title = f"What becomes of each expert's change, {where}"
    return html_table(title, headers, rows, wide=True) + more + _tensors(preview, choice)


def _tensors(preview: Preview, choice: Choice) -> str:
    if choice.cell is None:
        return ""
    names = fate.names_at(preview, choice.cell)
    codes = ", ".join(f"<code>{html.escape(name)}</code>" for name in names[:4])
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f'<p class="pv-line">{codes}{more}</p>'


def facts_html(preview: Preview, choice: Choice) -> str:
    """What stands above the map: for rounding the formats and which to choose; what a method cannot show."""
    if not preview.tensors:
        return ""
    if choice.number == ROUNDING:
        headers, rows = rounding.rounding_rows(preview)
        said = html.escape(rounding.rounding_advice(preview))
        return f'<p class="pv-line">{said}</p>' + html_table(
            "What each number format would lose", headers, rows, wide=True
        )
    if choice.number == PARAMETERS:
        return f'<p class="pv-line">{effective.caption(preview)}</p>'
    return "" if preview.elementwise else f'<p class="pv-line">{NO_FATES}</p>'


def words(preview: Preview | None, choice: Choice) -> MapWords:
    """What the chosen map says of itself."""
    if choice.number == ROUNDING:
        return rounding.words_for(choice.which or "bfloat16")
    if choice.number == PARAMETERS and preview is not None and choice.which:
        return effective.words_for(preview, choice.which)
    return fate.MAPS.get(choice.number, fate.MAPS[FIRST])


def panels(preview: Preview, names: Sequence[str], choice: Choice) -> list[Panel]:
    """The numbers of the chosen map."""
    if choice.number == ROUNDING:
        return rounding.rounding_panels(preview, choice.which or "bfloat16", everything=choice.everything)
    if choice.number == PARAMETERS:
        return effective.parameter_panels(preview, names, choice.which or "", everything=choice.everything)
    return fate.fate_panels(preview, names, choice.number, everything=choice.everything)


def table_value(preview: Preview, names: Sequence[str], choice: Choice) -> dict[str, Any]:
    """The map's twin."""
    table = (
        panels_table(panels(preview, names, choice)) if preview.tensors else Table(["block", "module"], [])
    )
    return {"headers": table.headers, "data": table.rows}


def csv_html(preview: Preview, names: Sequence[str]) -> str:
    """A link to every number of every tensor at full precision."""
    return csv_link(full_table(preview, names), "mergescope-preview.csv")


def full_table(preview: Preview, names: Sequence[str]) -> Table:
    """A row for each tensor: every expert's shares and presence, the residual, and what each format loses."""
    keys = list(fate.WORDS) if preview.elementwise else []
    headers = ["tensor", "block", "module", "elements"]
    headers += [f"{name} {fate.WORDS[key].label}" for name in names for key in keys]
    headers += [f"{name} presence" for name in names] + ["nobody's"]
    headers += [
        f"{dtype} {what}" for dtype in DTYPES for what in ("weights lost", "energy lost", "too large")
    ]
    rows: list[list[str | int | float | None]] = []
    for tensor, place in placed(preview.tensors, everything=True).items():
        one = preview.tensors[tensor]
        experts = range(len(names))
        row: list[str | int | float | None] = [tensor, place.block, place.kind, one.elements]
        row += [one.share(expert, key) for expert in experts for key in keys]
        row += [*(one.projection(expert) for expert in experts), one.residual()]
        for dtype in DTYPES:
            row += [one.lost_share(dtype), one.lost_energy(dtype), one.casts[dtype].overflow]
        rows.append(row)
    return Table(headers, rows)


def which_update(preview: Preview, choice: Choice) -> dict[str, Any]:
    """The second choice, there only where the first leaves one."""
    options = choices(preview, choice.number)
    label = "Number format" if choice.number == ROUNDING else "Parameter"
    return gr.update(
        choices=[(option, option) for option in options],
        value=choice.which,
        label=label,
        visible=bool(options),
    )


def frame(preview: Preview, choice: Choice) -> tuple[list[int | None], list[str]]:
    """The rows and columns of the map."""
    return frame_of(placed(tensor_names(preview), everything=choice.everything))


def tensor_names(preview: Preview) -> list[str]:
    """All tensors of the plan, in its order."""
    return list(preview.dtypes)


def sample_html(preview: Preview, choice: Choice) -> str:
    """What to know of a picture that is an estimate; nothing where it is exact."""
    sample = preview.sample
    if sample is None:
        return ""
    error = sample_error(preview, choice)
    near = (
        f", ± {100 * STUDENT_95 * error:.1g} points (95 %) over the whole model" if error is not None else ""
    )
    return (
        f'<p class="pv-line">Estimated from a sample of {100 * sample.share:.2g} % of the weights{near}; exact values '
        "follow.</p>"
    )


def sample_error(preview: Preview, choice: Choice) -> float | None:
    """The largest standard error of the shown share over the experts; None where it is not known."""
    if preview.sample is None or not preview.tensors:
        return None
    key = choice.number if choice.number in fate.WORDS else FIRST
    experts = range(len(next(iter(preview.tensors.values())).gram))
    found = [
        preview.sample.error(
            lambda f, n=n: f.share(n, key) if preview.elementwise else f.projection(n), preview.tensors
        )
        for n in experts
    ]
    return max((error for error in found if error is not None), default=None)


def cell_at(preview: Preview, everything: bool, row: int, column: int) -> Cell | None:
    """The cell at a row and a column of the map; None where nothing is merged there."""
    grid = fate.preview_grid(preview, lambda cell: None, everything=everything)
    if not (0 <= row < len(grid.rows) and 0 <= column < len(grid.columns)):
        return None
    cell = (grid.rows[row], grid.columns[column])
    return cell if cell in fate.fate_cells(preview, everything=everything) else None


def _position(preview: Preview, choice: Choice) -> tuple[int, int] | None:
    grid = fate.preview_grid(preview, lambda cell: None, everything=choice.everything)
    if choice.cell is None or choice.cell[0] not in grid.rows or choice.cell[1] not in grid.columns:
        return None
    return grid.rows.index(choice.cell[0]), grid.columns.index(choice.cell[1])
