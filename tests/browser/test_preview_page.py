"""What a recipe would keep, in a real browser: the map follows the form, and cells of it change the recipe."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import brush_corner, unanswered, write_recipe

pytestmark = pytest.mark.browser

VALUES = """() => {
  const plot = document.querySelector('#preview-map .chart-plot');
  return plot?.data ? JSON.stringify(plot.data.map(trace => trace.z)) : null;
}"""
RECIPE = "(document.querySelector('#recipe-yaml .cm-content')?.innerText ?? '')"


@pytest.fixture
def preview(at_merge):
    """The preview as it opens."""
    page = at_preview(at_merge)
    if page.locator("#preview-whole").is_visible():
        page.locator("#preview-whole").click()
    page.locator("#preview-number label", has_text="Kept").click()
    expect(page.locator("#preview-map .chart-title")).to_contain_text("change is kept")
    expect(page.locator("#preview-bars .chart-title")).to_have_text("Each expert's change: whole model")
    expect(page.locator("#preview.pv-stale")).to_have_count(0)
    return page


def at_preview(page):
    page.get_by_role("tab", name="3 Merge").click()
    page.locator("#preview-map .has-figure").wait_for()
    page.locator("#preview-bars .has-figure").wait_for()
    page.wait_for_function("() => document.querySelector('#preview-brush-what input')?.value")
    return page


def values(page) -> str | None:
    """The numbers of the map; None while there is none."""
    return page.evaluate(VALUES)


def wait_for_other(page, before: str | None) -> str:
    return page.wait_for_function(
        f"before => {{ const now = ({VALUES})(); return now !== before && now; }}", arg=before
    ).json_value()


def slide(page, field: str, value: float) -> None:
    page.locator(f"{field} input[type=range]").evaluate(
        "(range, value) => { range.value = value; range.dispatchEvent(new Event('input', {bubbles: true})); }",
        value,
    )


def click_cell(page, row: int, column: int, *, rows: int = 6, columns: int = 7) -> None:
    area = page.locator("#preview-map .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    page.mouse.click(
        box["x"] + box["width"] * (column + 0.5) / columns, box["y"] + box["height"] * (row + 0.5) / rows
    )


def test_a_slider_changes_the_map_and_writes_nothing(preview, quiet, app_url, requests_seen, console_errors):
    page = preview
    before, merges = values(page), page.locator("#merge-history label").count()
    slide(page, "#merge-density-1", 0.1)
    moved = wait_for_other(page, before)
    page.wait_for_function(f"() => {RECIPE}.includes('density: 0.1')")
    quiet(page)
    assert values(page) == moved, "the recipe's own picture is that of the slider"
    slide(page, "#merge-density-1", 0.5)
    page.wait_for_function(f"before => ({VALUES})() === before", arg=before)
    assert page.locator("#merge-history label").count() == merges
    assert {urlsplit(url).netloc for url in requests_seen} <= {urlsplit(app_url).netloc, ""}
    assert console_errors == []


def test_a_map_that_a_weight_leaves_as_it_was_says_why_and_its_view_comes_back(preview, console_errors):
    page = preview
    chosen = page.locator("#preview-number label.selected")
    expect(chosen).to_have_text("Kept")
    before = values(page)
    slide(page, "#merge-weight-1", 1.5)
    page.locator(
        "#preview-facts .pv-unmoved", has_text="does not depend on weight: the vote counts"
    ).wait_for()
    assert values(page) == before
    slide(page, "#merge-density-1", 0.2)
    wait_for_other(page, before)
    expect(page.locator("#preview-facts .pv-unmoved")).to_have_count(0)
    for method, number in (("slerp", "Presence"), ("ties", "Kept")):
        page.locator(f"#merge-method label:has(input[value='{method}'])").click()
        page.wait_for_function(f"() => {RECIPE}.includes('merge_method: {method}')")
        expect(chosen).to_have_text(number)
    expect(page.locator("#preview-map .chart-title")).to_contain_text("change is kept")
    assert console_errors == []


def test_map_and_brush_bar_are_in_view_together(preview):
    page = preview
    page.locator("#preview-brush-number:visible").wait_for()
    top = page.locator("#preview-number").bounding_box()["y"]
    bar = page.locator("#preview-brush").bounding_box()
    room = page.evaluate("() => document.querySelector('.mg-side').clientHeight")
    assert bar["y"] + bar["height"] - top < room, "the choice of the map, the map and its bar"


def test_a_number_typed_and_taken_back_leaves_the_picture_of_the_recipe(preview, quiet, console_errors):
    page = preview
    before = values(page)
    page.locator("#preview-number label", has_text="Presence").click()
    before = wait_for_other(page, before)
    field = page.locator("#merge-lambda input")
    with page.expect_response("**/component_server/**"):
        field.fill("7")
    with page.expect_response("**/component_server/**"):
        field.fill("")
    page.wait_for_function(f"before => ({VALUES})() === before", arg=before)
    quiet(page)
    assert values(page) == before
    assert console_errors == []


def test_a_number_typed_and_reset_at_once_leaves_the_picture_of_the_recipe(preview, quiet, console_errors):
    page = preview
    page.locator("#merge-preset").click()
    page.locator("#preview-number label", has_text="Presence").click()
    quiet(page)
    before = values(page)
    page.locator("#merge-lambda input").fill("7")
    wait_for_other(page, before)
    page.evaluate("document.querySelector('#merge-preset').click()")
    page.wait_for_function(f"before => ({VALUES})() === before", arg=before)
    quiet(page)
    assert values(page) == before
    assert page.locator("#merge-lambda input").input_value() == "1"
    assert console_errors == []


def test_form_and_map_are_seen_together(preview):
    page = preview
    page.locator("#merge-density-1").evaluate("field => field.scrollIntoView({block: 'center'})")
    for part in ("#merge-density-1", "#preview-bars .chart-plot", "#merge-button"):
        expect(page.locator(part)).to_be_in_viewport(ratio=1)
    expect(page.locator("#preview-map .chart-plot")).to_be_in_viewport(ratio=0.7)


def test_the_number_chosen_is_the_one_drawn(preview, console_errors):
    page = preview
    before = values(page)
    page.locator("#preview-number label", has_text="Presence").click()
    wait_for_other(page, before)
    expect(page.locator("#preview-map .chart-title")).to_contain_text("present in the merged model")
    page.locator("#preview-number label", has_text="Rounding").click()
    expect(page.locator("#preview-facts tbody tr")).to_have_count(3)
    expect(page.locator("#preview-facts")).to_contain_text("bfloat16, as this recipe writes")
    page.locator("#preview-number label", has_text="Parameters").click()
    expect(page.locator("#preview-which input")).to_be_visible()
    page.get_by_role("button", name="The map as a table").last.click()
    expect(page.locator("#preview-csv a.save")).to_be_visible()
    assert console_errors == []


def test_a_clicked_cell_shows_its_bars_and_the_way_back(preview, console_errors):
    page = preview
    click_cell(page, 2, 4)
    expect(page.locator("#preview-bars .chart-title")).to_have_text("Each expert's change: block 2, gate")
    page.get_by_role("button", name="In numbers").click()
    expect(page.locator("#preview-figures")).to_contain_text("model.layers.2.mlp.gate_proj.weight")
    page.locator("#preview-whole").click()
    expect(page.locator("#preview-bars .chart-title")).to_have_text("Each expert's change: whole model")
    assert console_errors == []


def test_the_saved_bars_have_their_legend_below_their_title(preview, console_errors):
    page = preview
    page.evaluate("() => { Plotly.downloadImage = (figure) => { window.saved = figure.layout; }; }")
    page.locator("#preview-bars").get_by_role("button", name="Save as PNG").click()
    title, legend, height = page.evaluate("[saved.title, saved.legend, saved.height]")
    assert (title["yanchor"], legend["yref"], legend["yanchor"]) == ("top", "container", "top")
    assert (1 - legend["y"]) * height >= title["pad"]["t"] + 2 * title["font"]["size"]
    assert console_errors == []


def named(page, field: str, name: str) -> None:
    """Add a name to one of the two dropdowns by keyboard."""
    page.locator(f"#preview-brush-{field} input").focus()
    page.keyboard.type(name)
    expect(page.get_by_role("option", name=name, exact=True)).to_be_visible()
    page.keyboard.press("Enter")


OUTLINES = """() => document.querySelector('#preview-map .chart-plot').layout.shapes
  .filter(shape => shape.line.width === 2.5 && !shape.line.dash)
  .map(shape => [shape.y0, shape.x0])"""


def test_a_moved_slider_moves_the_bars_of_the_chosen_cell(preview, quiet, console_errors):
    page = preview
    click_cell(page, 2, 4)
    expect(page.locator("#preview-bars .chart-title")).to_have_text("Each expert's change: block 2, gate")
    bars = (
        "() => JSON.stringify(document.querySelector('#preview-bars .chart-plot').data.map(trace => trace.x))"
    )
    before = page.evaluate(bars)
    slide(page, "#merge-density-1", 0.15)
    page.wait_for_function(f"before => ({bars})() !== before", arg=before)
    moved = page.evaluate(bars)
    page.wait_for_function(f"() => {RECIPE}.includes('density: 0.15')")
    quiet(page)
    assert page.evaluate(bars) == moved, "the slider's bars are those of the cell, as the recipe's are"
    expect(page.locator("#preview-bars .chart-title")).to_have_text("Each expert's change: block 2, gate")
    assert console_errors == []


TYPE_AND_MERGE = """() => {
  const number = document.querySelector('#merge-density-1 input[type=number]');
  number.focus();
  number.value = 0.37;
  number.dispatchEvent(new Event('input', {bubbles: true}));
  document.querySelector('#merge-button').click();
}"""


def test_a_typed_number_counts_though_merge_is_pressed_at_once(preview, console_errors):
    """A tap leaves the field and clicks in the same moment."""
    page = preview
    page.evaluate(TYPE_AND_MERGE)
    expect(page.locator("#merge-result h3")).to_be_visible()
    expect(page.locator("#merge-result .mg-kept tr", has_text="code")).to_contain_text("37.0 %")
    assert console_errors == []


MARKS = """() => {
  window.marks = [];
  const part = document.querySelector('#preview');
  const look = () => marks.push([part.classList.contains('pv-stale'), part.querySelector('.pv-updating').textContent]);
  new MutationObserver(look).observe(part, {attributes: true, attributeFilter: ['class']});
}"""


def test_an_older_picture_is_marked_until_the_new_one_is_there(preview, console_errors):
    page = preview
    page.evaluate(MARKS)
    page.evaluate("window.dispatchEvent(new Event('mergescope-followed'))")
    expect(page.locator("#preview")).to_have_class(re.compile("pv-stale"))
    expect(page.locator("#preview .pv-updating")).to_have_text("updating…")
    before = values(page)
    page.locator("#merge-method label:has(input[value='linear'])").click()
    wait_for_other(page, before)
    expect(page.locator("#preview")).not_to_have_class(re.compile("pv-stale"))
    expect(page.locator("#preview .pv-updating")).to_have_text("")
    page.wait_for_timeout(600)
    expect(page.locator("#preview")).not_to_have_class(re.compile("pv-stale"))
    assert [True, "updating…"] in page.evaluate("marks")
    assert console_errors == []


def test_another_method_never_keeps_the_old_picture_unmarked(preview, quiet, console_errors):
    page = preview
    for method in ("slerp", "linear", "karcher", "apl"):
        quiet(page)  # a stream that is open already would be heard
        before = values(page)
        with unanswered(page) as answer:
            page.locator(f"#merge-method label:has(input[value='{method}'])").click()
            expect(page.locator("#preview.pv-stale")).to_have_count(1)
            expect(page.locator(".pv-updating")).to_have_text("updating…")
            assert values(page) == before
            answer()
        expect(page.locator("#preview.pv-stale")).to_have_count(0)
        if method != "apl":
            assert wait_for_other(page, before)
    expect(page.locator("#preview-map .chart-empty")).to_contain_text("needs importance")
    expect(page.locator("#preview-bars .has-figure")).to_have_count(0)
    page.locator("#merge-method label:has(input[value='karcher'])").click()
    expect(page.locator("#preview-map .chart-title")).to_contain_text("present in the merged model")
    expect(page.locator("#preview-number label")).to_have_count(4)
    assert console_errors == []


def test_a_change_that_changes_nothing_leaves_no_mark(preview, console_errors):
    page = preview
    page.evaluate("window.dispatchEvent(new Event('mergescope-changing'))")
    expect(page.locator("#preview.pv-stale")).to_have_count(1)
    page.evaluate("window.dispatchEvent(new Event('mergescope-changed'))")
    expect(page.locator("#preview.pv-stale")).to_have_count(0)
    assert console_errors == []


def test_a_recipe_written_as_the_page_writes_it_is_followed(preview, merge_page, console_errors):
    _, opened = merge_page
    preview.locator("#merge-method label:has(input[value='linear'])").click()
    expect(preview.locator("#preview-number label", has_text="Kept")).to_have_count(0)
    write_recipe(preview, opened)
    expect(preview.locator("#preview-number label", has_text="Kept")).to_have_count(1)
    expect(preview.locator("#preview-map .chart-title")).to_contain_text("change is kept")
    assert console_errors == []


def test_a_cell_s_bars_by_keyboard_alone(preview, console_errors):
    """The two dropdowns name a cell, which gets bars, numbers and outline as by a click."""
    page = preview
    named(page, "blocks", "2")
    expect(page.locator("#preview-brush-line")).to_contain_text("block 2 × all modules")
    expect(page.locator("#preview-bars .chart-title")).to_have_text("Each expert's change: whole model")
    named(page, "kinds", "gate")
    expect(page.locator("#preview-bars .chart-title")).to_have_text("Each expert's change: block 2, gate")
    assert page.evaluate(OUTLINES) == [[1.5, 3.5]] * 3, "one for each expert's map"
    page.locator("#preview-whole").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#preview-bars .chart-title")).to_have_text("Each expert's change: whole model")
    page.wait_for_function(f"() => ({OUTLINES})().length === 0")
    page.locator("#preview-brush-kinds input").focus()
    page.keyboard.press("Backspace")
    named(page, "kinds", "gate")
    expect(page.locator("#preview-bars .chart-title")).to_have_text("Each expert's change: block 2, gate")
    assert page.evaluate(OUTLINES) == [[1.5, 3.5]] * 3, "the same cell again is outlined again"
    assert console_errors == []


def test_brushed_cells_change_recipe_and_map(preview, console_errors):
    page = preview
    before = values(page)
    brush_corner(page)
    expect(page.locator("#preview-brush-line")).to_contain_text("6 cells chosen")
    page.locator("#preview-brush-what input").click()
    page.get_by_role("option", name="keep the base here").click()
    page.locator("#preview-brush").get_by_role("button", name="Set", exact=True).click()
    page.wait_for_function(f"() => {RECIPE}.includes('exclude')")
    after = wait_for_other(page, before)
    assert after.startswith("[[[null,null,null"), "the base's cells are gaps"
    assert console_errors == []
