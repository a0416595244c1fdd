"""What the output's number format costs: how much of the merged change each format would lose."""

from __future__ import annotations

from collections import Counter

from components.figures.chart import Chart
from components.figures.fate import LOW_CELL, fate_cells, fix_scale, preview_grid
from components.figures.maps import panels_chart
from components.figures.metrics import MapWords, Panel
from merging.inspecting.fate import DTYPES, TensorFate
from merging.inspecting.sums import total
from merging.reports.report import Preview

STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The word of a checkpoint's header -> the word of a recipe."""
BEARABLE = 0.01
"""A share of the change's energy that may be lost without a word of warning."""


def words_for(dtype: str) -> MapWords:
    """What the map of one format says of itself."""
    return MapWords(
        key=f"rounding {dtype}",
        label="Rounding",
        title=f"How much of the merged change {dtype} would round away",
        note=f"Share of the changed weights that fall back to the base's value when written as {dtype}. 0 to 100 %.",
        hover=f"of the changed weights here fall back to the base in {dtype}",
        explanation="A merge is computed in float32 and then written in the output's number format. A change much smaller than "
        "the weight itself is lost in it: bfloat16 keeps about 3 digits, float16 about 4 but only up to 65504, float32 "
        "about 7. Each cell is the share of the weights the merge changed whose written value is the base's own again. "
        "The table weighs the same by energy: losing many tiny changes may cost little.",
        scale="robust",
    )


def output_dtype(preview: Preview) -> str | None:
    """The format in which most merged tensors are written; None where nothing is merged."""
    stored = Counter(preview.dtypes.get(name, "") for name in preview.tensors)
    return STORED.get(stored.most_common(1)[0][0]) if stored else None


def rounding_panels(preview: Preview, dtype: str, *, everything: bool = False) -> list[Panel]:
    """The numbers of the map of one format."""
    cells = fate_cells(preview, everything=everything)

    def lost(fate: TensorFate | None) -> float | None:
        return fate.lost_share(dtype) if fate is not None else None

    grid = preview_grid(preview, lambda cell: lost(cells.get(cell)), everything=everything)
    return [Panel(f"merged, as {dtype}", grid)]


def rounding_chart(preview: Preview, dtype: str, *, everything: bool = False) -> Chart | None:
    """The map of one format."""
    shown = rounding_panels(preview, dtype, everything=everything)
    chart = panels_chart(words_for(dtype), shown, everything=everything, low_cell=LOW_CELL)
    if chart is not None:
        fix_scale(chart.figure, 0, 1, "Cividis", ".0%", (0, 0.25, 0.5, 0.75, 1))
        chart.figure.data[0].update(texttemplate="%{z:.0%}" if chart.figure.data[0].texttemplate else None)
    return chart


def rounding_rows(preview: Preview) -> tuple[list[str], list[list[str]]]:
    """Headers and a row for each format over the whole model; the recipe's own is marked."""
    headers = ["number format", "changed weights lost", "change lost (energy)", "too large"]
    if not preview.tensors:
        return headers, []
    whole, own = total(preview.tensors.values()), output_dtype(preview)
    rows = []
    for dtype in DTYPES:
        lost, energy = whole.lost_share(dtype), whole.lost_energy(dtype)
        rows.append(
            [
                f"{dtype}, as this recipe writes" if dtype == own else dtype,
                _share(lost),
                _share(energy),
                f"{whole.casts[dtype].overflow:,} weights" if whole.casts[dtype].overflow else "none",
            ]
        )
    return headers, rows


def rounding_advice(preview: Preview) -> str:
    """Which format to choose, in a sentence."""
    if not preview.tensors:
        return "This recipe merges nothing."
    whole, own = total(preview.tensors.values()), output_dtype(preview)
    if whole.change <= 0 or own is None:
        return "This recipe changes nothing, so no format loses anything."
    loss = {dtype: whole.lost_energy(dtype) or 0.0 for dtype in DTYPES}
    safe = {dtype for dtype in DTYPES if not whole.casts[dtype].overflow and loss[dtype] < BEARABLE}
    said = f"{own} loses {_share(loss[own]) if loss[own] else 'nothing'} of the change's energy"
    if whole.casts[own].overflow:
        other = next((dtype for dtype in ("bfloat16", "float32") if dtype in safe), "float32")
        return f"{own} cannot hold {whole.casts[own].overflow:,} of the merged weights: choose out_dtype: {other}."
    if own in safe:
        smaller = own == "float32" and next((d for d in ("bfloat16", "float16") if d in safe), None)
        if smaller:
            return f"{said}; {smaller} would lose {_share(loss[smaller])} of it at half the size."
        return f"{said}: it serves this merge, and a larger format would gain nothing that counts."
    if own != "float16" and "float16" in safe:
        return f"{said}; float16 would lose {_share(loss['float16'])} at the same size: choose out_dtype: float16."
    if own == "float32":
        return f"{said}, because the change is tiny beside the weights; no larger format is offered."
    return (
        f"{said}; float32 would lose {_share(loss['float32'])} at twice the size: choose out_dtype: float32."
    )


def _share(value: float | None) -> str:
    if value is None:
        return "–"
    if value in (0, 1):
        return f"{100 * value:.0f} %"
    return "below 0.1 %" if value < 0.001 else f"{100 * value:.1f} %"
