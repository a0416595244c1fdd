"""The figures, from reports of real models."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

import merging
from components.family import Family
from components.figures.chart import SERIES, decimals
from components.figures.maps import CHANCE_LIMITS, map_chart, panels_chart, strongest_cell
from components.figures.metrics import METRICS, panels
from components.figures.story import change_histogram, sign_agreement
from components.figures.words import Panel
from components.tables import csv_text, full_table, html_table, map_table
from merging import Report
from merging.inspecting.changes import bin_edges


def report_of(family, experts=("one", "two", "three")) -> Report:
    return merging.inspect(Family.demo(family, experts).recipe())


@pytest.fixture(scope="module")
def report(family):
    return report_of(family)


@pytest.mark.parametrize("key", METRICS)
def test_every_number_of_a_map_is_the_report_s(report, key):
    chart = map_chart(report, METRICS[key])
    drawn = json.loads(chart.figure.to_json())["data"]
    for trace, panel in zip(drawn, panels(report, METRICS[key]), strict=True):
        if METRICS[key].scale == "own chance":
            told = [[float(number) for number in row] for row in trace["text"]]
            assert told == [pytest.approx(row, abs=0.006) for row in panel.grid.values]
            away = zip(panel.grid.values, panel.chance.values, strict=True)
            assert trace["z"] == [[v - c for v, c in zip(*rows, strict=True)] for rows in away]
        else:
            assert trace["z"] == panel.grid.values
        pairs = ["mean of all pairs", "one · two", "one · three", "two · three"]
        modules = ["q", "k", "v", "o", "gate", "up", "down"]
        assert trace["x"] == (pairs if METRICS[key].over == "blocks" else modules)
        assert trace["y"] == ["0", "1", "2"]


def test_change_is_the_relative_norm_of_each_expert_on_one_scale(report):
    figure = map_chart(report, METRICS["change"]).figure
    statistics = report.tensors["model.layers.1.mlp.up_proj.weight"]
    assert [trace.z[1][5] for trace in figure.data] == [statistics.relative_change(e) for e in range(3)]
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    values = sorted(v for trace in figure.data for row in trace.z for v in row)
    axis = figure.layout.coloraxis
    assert values[0] < axis.cmin < values[2]
    assert values[-3] < axis.cmax < values[-1]


def test_conflict_has_fixed_limits_around_chance_and_a_map_for_each_pair(report):
    chart = map_chart(report, METRICS["conflict"])
    axis = chart.figure.layout.coloraxis
    assert (axis.cmin, axis.cmax) == CHANCE_LIMITS
    assert sum(CHANCE_LIMITS) == 1
    assert "0.5 = what unrelated experts would show" in chart.note
    headings = [annotation.text for annotation in chart.figure.layout.annotations]
    assert headings == ["<b>all pairs</b>", "<b>one · two</b>", "<b>one · three</b>", "<b>two · three</b>"]


def test_a_module_that_is_missing_is_a_gap(report):
    chart = map_chart(report, METRICS["change"], everything=True)
    trace = chart.figure.data[0]
    outside = trace.y.index("outside")
    assert trace.z[outside][trace.x.index("q")] is None
    assert trace.z[0][trace.x.index("embedding")] is None
    assert trace.z[outside][trace.x.index("embedding")] > 0
    assert trace.hoverongaps is False


def test_one_expert_has_a_change_but_no_conflict(family):
    alone = report_of(family, ("one",))
    assert len(map_chart(alone, METRICS["change"]).figure.data) == 1
    assert map_chart(alone, METRICS["conflict"]) is None
    assert map_table(alone, METRICS["conflict"]).rows == []
    assert strongest_cell(alone, METRICS["conflict"]) is None


def test_many_pairs_share_one_map_and_one_matrix(family, tmp_path):
    five = tuple(f"{family}/{name}" for name in ("one", "two", "three"))
    statistics = report_of(family).tensors
    wide = {name: _widen(s) for name, s in statistics.items()}
    report = Report("base", (*five, "four", "five"), wide)
    assert [panel.name for panel in panels(report, METRICS["conflict"])] == ["all pairs"]
    cell = report.cells()[0, "q"]
    matrix = sign_agreement(cell.signs, ["a", "b", "c", "d", "e"], "block 0, q").figure.data[0]
    assert matrix.z[1][3] == matrix.z[3][1] == cell.signs.opposite_share(5)
    assert matrix.z[2][2] is None


def _widen(statistics):
    """Statistics as if there were five experts."""
    content = {**statistics.__dict__}
    for name in ("change", "total", "mass", "nonzero", "largest", "histogram"):
        content[name] = content[name] + content[name][:2]
    content["dot"] = (content["dot"] * 4)[:10]
    signs = statistics.signs
    content["broken"] = [0] * 6
    content["signs"] = replace(
        signs,
        covered=[*signs.covered, 0, 0],
        shared=(signs.shared * 4)[:10],
        opposite=(signs.opposite * 4)[:10],
    )
    return type(statistics)(**content)


def test_names_from_outside_are_never_markup(report):
    hostile = Report("base", ("/x/<img src=x onerror=alert(1)>", "/x/%{z}", "/x/three"), report.tensors)
    chart = map_chart(hostile, METRICS["change"])
    text = chart.figure.to_json()
    assert "<img" not in text
    assert "%{z}" not in json.dumps([t["customdata"] for t in json.loads(text)["data"]])
    cell = hostile.cells()[0, "q"]
    story = change_histogram(cell, ["<b>one</b>", "two", "three"], "block 0, q")
    assert story.figure.data[0].name == "&lt;b&gt;one&lt;/b&gt;"
    assert "<script>" not in html_table("<script>", ["<script>"], [["<script>", "<script>"]])


def test_histogram_holds_every_changed_weight(report):
    cell = report.cells()[1, "down"]
    chart = change_histogram(cell, ["one", "two", "three"], "block 1, down")
    for index, trace in enumerate(chart.figure.data):
        assert sum(trace.y) == pytest.approx(cell.changed_share(index))
        assert set(trace.x) <= set(bin_edges())
    assert chart.figure.layout.xaxis.type == "log"
    assert len({trace.line.color for trace in chart.figure.data}) == 3
    assert len({trace.line.dash for trace in chart.figure.data}) == 3


def test_no_change_no_chart(report):
    cell = report.cells()[0, "q"]
    still = type(cell)(
        **{
            **cell.__dict__,
            "histogram": [[0] * len(counts) for counts in cell.histogram],
            "signs": replace(cell.signs, shared=[0, 0, 0], opposite=[0, 0, 0]),
        }
    )
    assert change_histogram(still, ["one", "two", "three"], "block 0, q") is None
    assert sign_agreement(still.signs, ["one", "two", "three"], "block 0, q") is None


def test_text_alternatives_name_extremes(report):
    chart = map_chart(report, METRICS["change"])
    values = panels(report, METRICS["change"])[0].grid.values
    assert f"to {max(max(row) for row in values):.3g}" in chart.alt
    cell = report.cells()[0, "q"]
    assert (
        f"one and two {cell.signs.opposite_share(0):.2f}"
        in sign_agreement(cell.signs, ["one", "two", "three"], "x").alt
    )


def test_table_twin_holds_the_map(report):
    table = map_table(report, METRICS["changed"])
    grid = panels(report, METRICS["changed"])[2].grid
    assert table.headers == ["block", "module", "one", "two", "three"]
    assert len(table.rows) == 3 * 7
    assert table.rows[8][:2] == [1, "k"]
    assert table.rows[8][4] == pytest.approx(grid.values[1][1], rel=1e-3)


def test_csv_keeps_full_precision_and_disarms_formulas(report):
    hostile = Report("base", ("/x/=HYPERLINK(1)", "/x/two", "/x/three"), report.tensors)
    rows = list(csv.DictReader(io.StringIO(csv_text(full_table(hostile, everything=True)))))
    header = next(name for name in rows[0] if "HYPERLINK" in name)
    assert header.startswith("'=")
    found = next(row for row in rows if (row["block"], row["module"]) == ("2", "v"))
    statistics = report.tensors["model.layers.2.self_attn.v_proj.weight"]
    assert float(found["two · three cosine"]) == statistics.cosine(2)
    assert {row["block"] for row in rows} == {"0", "1", "2", "outside"}


def test_decimals_show_small_numbers():
    assert decimals([0.00042, None]) == 5
    assert decimals([0.137]) == 2
    assert decimals([]) == 2
    assert decimals([0.0]) == 2


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", SERIES)
@pytest.mark.parametrize("page", ["#ffffff", "#0b1120"])
def test_series_stand_out_from_both_pages(colour, page):
    low, high = sorted((luminance(colour), luminance(page)))
    assert (high + 0.05) / (low + 0.05) >= 3


def test_long_names_have_room_above_their_maps(report):
    names = ("expert-with-a-very-long-name-that-nobody-reads", 'a "quoted" one', "three")
    named = replace(report, experts=tuple(f"/models/{name}" for name in names))
    figure = map_chart(named, METRICS["conflict"]).figure
    headings = [note.text for note in figure.layout.annotations]
    assert all(len(heading) <= 32 + len("<b></b>") for heading in headings)
    assert headings[1].startswith("<b>expert-with-a-ve…")
    assert headings[3] == '<b>a "quoted" one · three</b>'


def test_a_colour_scale_of_near_equal_values_tells_them_apart(report):
    near = [0.985, 0.989, 0.997]
    grid = panels(report, METRICS["changed"])[0].grid
    values = [[near[(row + column) % 3] for column in range(7)] for row in range(3)]
    panel = Panel("one", replace(grid, values=values))
    assert panels_chart(METRICS["changed"], [panel]).figure.layout.coloraxis.colorbar.tickformat == ".3f"
