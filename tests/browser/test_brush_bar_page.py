"""Cells of a map are chosen with the mouse, by their names and by keyboard, and the recipe changes there alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml
from playwright.sync_api import expect

from tests.browser.conftest import served

pytestmark = pytest.mark.browser

AXES = """
([panel, row, column]) => {
  const plot = document.querySelector('#map .chart-plot');
  const suffix = panel ? String(panel + 1) : '';
  const x = plot._fullLayout['xaxis' + suffix], y = plot._fullLayout['yaxis' + suffix];
  const box = plot.getBoundingClientRect();
  return {cell: [box.left + x._offset + x.c2p(column), box.top + y._offset + y.c2p(row)],
          name: [box.left + x._offset - 12, box.top + y._offset + y._length + 12]};
}
"""
OUTLINES = """
() => [...new Set(document.querySelector('#map .chart-plot').layout.shapes
  .filter(shape => shape.line.dash)
  .map(s => [s.xref, s.y0 + 0.5, s.y1 - 0.5, s.x0 + 0.5, s.x1 - 0.5].join(' ')))]
"""


@pytest.fixture(scope="module")
def brush_url(tmp_path_factory) -> Iterator[str]:
    """The address of a page with a map, its bar and its recipe."""
    with served(tmp_path_factory.mktemp("brush"), "tests/browser/brush_page.py") as url:
        yield url


@pytest.fixture
def open_map(new_window, brush_url):
    """Open the page: `open_map(390, dark=True, touch=True)`."""

    def open_one(width: int = 1280, **how: bool):
        page = new_window(width, **how)
        page.goto(brush_url)
        page.locator("#map .heatmaplayer").first.wait_for()
        expect(page.get_by_label("What to set")).to_have_value("weight (w)")
        return page

    return open_one


def cell(page, panel: int, row: int, column: int) -> tuple[float, float]:
    return tuple(page.evaluate(AXES, [panel, row, column])["cell"])


def drag(page, panel: int, start: tuple[int, int], end: tuple[int, int]) -> None:
    """Press on one cell of a small map and let go on another."""
    (x, y), (to_x, to_y) = cell(page, panel, *start), cell(page, panel, *end)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move((x + to_x) / 2, (y + to_y) / 2)
    page.mouse.move(to_x, to_y)
    page.mouse.up()


def outlined(page) -> list[str]:
    """`axis top bottom left right` of every brushed rectangle that is outlined."""
    return sorted(page.evaluate(OUTLINES))


def on_all_maps(*rectangles: str) -> list[str]:
    return sorted(f"{axis} {cells}" for axis in ("x", "x2", "x3") for cells in rectangles)


def line(page, text: str) -> None:
    expect(page.locator("#test-brush-line")).to_have_text(text)


def recipe(page) -> dict:
    return yaml.safe_load("\n".join(page.locator("#yaml .cm-line").all_inner_texts()))


def set_it(page, sentence: str) -> None:
    page.locator("#test-brush-set").click()
    expect(page.locator("#test-brush-said")).to_have_text(sentence)


def take(page, label: str, option: str) -> None:
    page.get_by_label(label).click()
    page.get_by_role("option", name=option, exact=True).click()


def test_a_rectangle_is_outlined_on_every_map_and_set_in_the_recipe(open_map, console_errors):
    page = open_map()
    expect(page.locator("#test-brush-line")).to_contain_text("No cells chosen. Drag over the map")
    expect(page.locator("#test-brush-set")).to_be_disabled()
    drag(page, 1, (3, 2), (1, 0))
    page.wait_for_function(f"({OUTLINES})().length === 3")
    assert outlined(page) == on_all_maps("1 3 0 2")
    line(page, "9 cells chosen: blocks 1–3 × q, k, v")
    page.get_by_label("weight (w): any number").fill("0.3")
    take(page, "For which expert", "code")
    set_it(page, "weight is 0.3 for code in 9 tensors (blocks 1-3 q, k, v).")
    [override] = recipe(page)["overrides"]
    assert override.pop("model").endswith("examples/demo/code")
    assert override == {
        "tensors": "model.layers.[1-3].self_attn.[kqv]_proj.weight",
        "parameters": {"weight": 0.3},
    }
    take(page, "What to set", "density (k)")
    expect(page.get_by_label("density (k): 0 to 1")).to_have_value("0.2")
    page.get_by_label("density (k): 0 to 1").fill("1.5")
    page.locator("#test-brush-set").click()
    expect(page.locator("#test-brush-said")).to_contain_text("Nothing changed. density: 1.5 should be less")
    page.get_by_label("density (k): 0 to 1").fill("0.9")
    set_it(
        page,
        "density is 0.9 for all experts in 9 tensors (blocks 1-3 q, k, v). scope is now tensor: with scope model, "
        "tensors are ranked together and cannot differ in this.",
    )
    assert recipe(page)["scope"] == "tensor"
    take(page, "What to set", "back to the recipe's own values")
    page.locator("#test-brush-set").click()
    expect(page.locator("#test-brush-said")).to_contain_text(
        "The recipe's own values hold again in 9 tensors"
    )
    assert "overrides" not in recipe(page)
    assert console_errors == []


def test_rows_columns_clicks_and_escape(open_map, console_errors):
    page = open_map()
    page.mouse.click(*cell(page, 2, 4, 3))
    expect(page.get_by_label("Clicked cell")).to_have_value("(4, 3)")
    assert outlined(page) == []
    left = page.evaluate(AXES, [0, 2, 0])
    page.mouse.click(left["name"][0], left["cell"][1])
    assert outlined(page) == on_all_maps("2 2 0 6"), "drawn in the browser, before the server answers"
    line(page, "7 cells chosen: block 2 × all modules")
    column = page.evaluate(AXES, [1, 0, 6])
    page.mouse.click(column["cell"][0], column["name"][1])
    line(page, "6 cells chosen: all blocks × down")
    assert outlined(page) == on_all_maps("0 5 6 6")
    take(page, "What to set", "keep the base here")
    set_it(page, "The base is kept in 6 tensors (blocks 0-5 down).")
    assert recipe(page)["exclude"] == ["*.mlp.down_proj.weight"]
    page.locator("#map .chart-title").click()
    page.keyboard.press("Escape")
    assert outlined(page) == []
    expect(page.locator("#test-brush-line")).to_contain_text("No cells chosen")
    expect(page.locator("#test-brush-set")).to_be_disabled()
    drag(page, 0, (2, 0), (2, 4))
    line(page, "5 cells chosen: block 2 × q, k, v, o, gate")
    page.get_by_role("button", name="Clear selection").click()
    expect(page.locator("#test-brush-line")).to_contain_text("No cells chosen")
    assert outlined(page) == []
    assert console_errors == []


def test_the_keyboard_chooses_and_sets(open_map):
    page = open_map()
    for label, wanted in (("Blocks", ("1", "3")), ("Modules", ("gate",))):
        field = page.get_by_label(label, exact=True)
        field.focus()
        for name in wanted:
            field.press_sequentially(name)
            page.get_by_role("option", name=name, exact=True).wait_for()
            field.press("Enter")
        field.press("Escape")
        field.press("Tab")
    line(page, "2 cells chosen: blocks 1, 3 × gate")
    page.wait_for_function("document.querySelector('#map .chart-plot').layout.shapes.length === 12")
    assert outlined(page) == on_all_maps("1 1 4 4", "3 3 4 4")
    page.get_by_label("weight (w): any number").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("0.25")
    page.keyboard.press("Enter")
    expect(page.locator("#test-brush-said")).to_contain_text("weight is 0.25 for all experts in 2 tensors")
    assert recipe(page)["overrides"] == [
        {"tensors": "model.layers.[13].mlp.gate_proj.weight", "parameters": {"weight": 0.25}}
    ]


def test_a_phone_scrolls_down_only_and_taps_names(open_map, console_errors):
    page = open_map(390, dark=True, touch=True)
    page.touchscreen.tap(*cell(page, 0, 2, 1))
    expect(page.get_by_label("Clicked cell")).to_have_value("(2, 1)")
    place = page.evaluate(AXES, [0, 3, 0])
    page.touchscreen.tap(place["name"][0], place["cell"][1])
    line(page, "7 cells chosen: block 3 × all modules")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    x, y = cell(page, 1, 2, 2)
    touch = page.context.new_cdp_session(page)
    for step in range(11):
        kind = "touchMove" if step else "touchStart"
        at = [{"x": x, "y": y - 20 * step}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function("scrollY > 100")
    assert outlined(page) == on_all_maps("3 3 0 6"), "a finger scrolls and brushes nothing"
    expect(page.get_by_label("Clicked cell")).to_have_value("(2, 1)")
    assert console_errors == []
