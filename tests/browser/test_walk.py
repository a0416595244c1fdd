"""What a first visitor does, in a real browser, without a network."""

from __future__ import annotations

import csv
import shutil
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import ROOT, stand_still, unanswered

pytestmark = pytest.mark.browser


def open_tab(page, name: str) -> None:
    """A press on a tab, which a phone may have in the menu beside the others."""
    tab, more = page.get_by_role("tab", name=name), page.locator(".overflow-menu > button:visible")
    if page.viewport_size["width"] < 600:
        tab.or_(more).first.wait_for()
        if not tab.is_visible():
            more.click()
            tab = page.locator(".overflow-dropdown button", has_text=name)
    tab.click()


def wait_for_story(page, start: str) -> None:
    page.wait_for_function("start => document.querySelector('#story h2')?.innerText === start", arg=start)


def cell_centre(page, panel: int, row: int, column: int) -> tuple[float, float]:
    """Page coordinates of a cell of a map, from plotly's own axes."""
    return tuple(
        page.evaluate(
            """([panel, row, column]) => {
              const plot = document.querySelector('#map .chart-plot');
              const suffix = panel ? String(panel + 1) : '';
              const x = plot._fullLayout['xaxis' + suffix], y = plot._fullLayout['yaxis' + suffix];
              const box = plot.getBoundingClientRect();
              return [box.left + x._offset + x.c2p(column), box.top + y._offset + y.c2p(row)];
            }""",
            [panel, row, column],
        )
    )


def shapes(page) -> set[tuple[float, float]]:
    """(row, column) of what is outlined in the maps."""
    found = page.evaluate(
        "document.querySelector('#map .chart-plot').layout.shapes.map(s => [s.y0 + 0.5, s.x0 + 0.5])"
    )
    return {tuple(shape) for shape in found}


def wait_for_trim(page) -> None:
    """Until what comes after the report is there, so that nothing moves or is drawn anew under a click."""
    expect(page.locator("#histogram .chart-note")).to_contain_text(
        "left by a density of 20 %", timeout=30_000
    )


def outside(requests: list[str], app_url: str) -> list[str]:
    return [
        url
        for url in requests
        if urlsplit(url).scheme not in {"data", "blob"} and urlsplit(url).netloc != urlsplit(app_url).netloc
    ]


def test_what_is_typed_before_the_page_has_its_answers_stays(new_window, app_url, tmp_path, console_errors):
    mine = shutil.copytree(ROOT / "examples" / "demo" / "words", tmp_path / "mine")
    page, early = new_window(), []

    def hold(event) -> None:
        if early is None or str(mine) in (event.request.post_data or ""):
            event.continue_()
        else:
            early.append(event)

    page.route("**/queue/join*", hold)
    page.goto(app_url)
    field = page.get_by_label("Expert 3")
    field.fill(str(mine))
    field.press("Enter")
    page.locator(".card-name", has_text="mine").wait_for()
    held, early = early, None
    for event in held:
        event.continue_()
    open_tab(page, "2 Inspect")
    expect(page.locator("#map")).to_contain_text("mine")
    open_tab(page, "1 Models")
    assert page.locator(".card-name").all_inner_texts() == ["base", "math", "code", "mine"]
    expect(page.get_by_text("The demo models are tiny")).to_be_hidden()
    assert console_errors == []


def test_a_cell_tells_its_story(at_inspect, console_errors):
    page = at_inspect
    page.mouse.click(*cell_centre(page, panel=1, row=2, column=0))
    assert shapes(page) == {(2, 0)}, "the outline is drawn in the browser, before the server answers"
    wait_for_story(page, "Block 2, q")
    assert "model.layers.2.self_attn.q_proj.weight" in page.locator("#story").inner_text()
    assert page.get_by_role("combobox", name="Module").input_value() == "q"
    page.locator("#histogram .scatterlayer").wait_for()
    assert page.locator("#agreement .barlayer .point").count() == 3
    assert page.locator("#cell-figures tbody tr").count() == 3
    page.locator("#detail-rows .scatterlayer").first.wait_for()
    expect(page.locator("#detail-spectra .chart-empty")).to_contain_text("Spectrum")
    assert console_errors == []


def test_the_keyboard_reaches_what_a_click_reaches(at_inspect):
    page = at_inspect
    block, module = (page.get_by_role("combobox", name=name) for name in ("Block", "Module"))
    for field in (block, module):
        before = field.input_value()
        field.focus()
        page.get_by_role("option").first.wait_for()
        for key in ("ArrowUp", "Enter"):
            field.press(key)
        expect(field).not_to_have_value(before)
        wait_for_story(page, f"{block.input_value().capitalize()}, {module.input_value()}")
    row = int(block.input_value().split()[1])
    page.wait_for_function(
        "row => document.querySelector('#map .chart-plot')?.layout?.shapes?.[0]?.y0 === row - 0.5", arg=row
    )
    assert len(shapes(page)) == 1


def test_conflict_table_and_downloads(at_inspect, tmp_path):
    page = at_inspect
    page.get_by_label("Conflict", exact=True).check()
    page.wait_for_function("document.querySelector('#map .chart-title')?.innerText.includes('opposite')")
    assert "0.5 = what unrelated experts would show" in page.locator("#map .chart-note").inner_text()
    page.get_by_text("The map as a table").click()
    page.locator("#map-table").get_by_text("math · code").first.wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="Save all numbers as CSV").click()
    download.value.save_as(tmp_path / "numbers.csv")
    with (tmp_path / "numbers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 42
    assert 0 < float(rows[0]["math relative change"]) < 1
    with page.expect_download() as download:
        page.locator("#map").get_by_role("button", name="Save as PNG").click()
    download.value.save_as(tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_conflict_before_and_after_trimming(at_inspect, console_errors):
    page = at_inspect
    page.get_by_label("Conflict", exact=True).check()
    page.locator("#maps-conflict").get_by_label("Not unanimous").check()
    page.locator("#map-trimmed").get_by_label("before and after trimming").check()
    expect(page.locator("#map .chart-title")).to_contain_text("before and after trimming")
    names = page.locator("#map .annotation-text")
    expect(names).to_have_text(["all changes", "largest 20 % in each tensor"])
    expect(page.locator("#histogram .chart-note")).to_contain_text(
        "left by a density of 20 %", timeout=30_000
    )
    before = page.locator("#map .heatmap-label").all_text_contents()
    density = page.locator("#map-density input[type=number]")
    density.fill("0.5")
    density.press("Tab")
    expect(names).to_have_text(["all changes", "largest 50 % in each tensor"])
    expect(page.locator("#histogram .chart-note")).to_contain_text("left by a density of 50 %")
    expect(page.locator("#cell-pairs")).to_contain_text("Trimmed: the largest 50 %")
    after = page.locator("#map .heatmap-label").all_text_contents()
    assert after[:42] == before[:42]
    assert after[42:] != before[42:]
    page.locator("#map-trimmed").get_by_label("all changes").check()
    for _ in range(3):
        page.locator("#map-density input[type=range]").press("ArrowRight")
    expect(page.locator("#histogram .chart-note")).to_contain_text("left by a density of 53 %")
    expect(page.locator("#cell-pairs")).to_contain_text("Trimmed: the largest 53 %")
    expect(page.locator("#kinship")).to_contain_text("After trimming: the largest 53 %")
    assert console_errors == []


def test_inside_a_cell_are_heads_rows_and_spectra(at_inspect, console_errors):
    page = at_inspect
    page.mouse.click(*cell_centre(page, panel=0, row=1, column=0))
    wait_for_story(page, "Block 1, q")
    expect(page.locator("#detail-heads .barlayer .point")).to_have_count(12)
    page.locator("#detail-rows .scatterlayer").first.wait_for()
    page.locator("#detail-spectrum").click()
    expect(page.locator("#detail-spectra .scatterlayer .trace")).to_have_count(3)
    expect(page.locator("#detail-ranks tbody tr")).to_have_count(3)
    page.locator("#map .chart-plot").scroll_into_view_if_needed()
    page.mouse.click(*cell_centre(page, panel=0, row=2, column=6))
    wait_for_story(page, "Block 2, down")
    expect(page.locator("#detail-spectra .chart-empty")).to_contain_text("Spectrum")
    assert console_errors == []


def click_row(page, row: int) -> None:
    """A click on the first cell of a row, as soon as plotly knows which cell is under the pointer."""
    place = cell_centre(page, panel=0, row=row, column=0)
    page.mouse.move(*place)
    under = "document.querySelector('#map .chart-plot')._hoverdata?.[0].pointIndex[0]"
    page.wait_for_function(f"row => {under} === row", arg=row)
    page.mouse.click(*place)


def test_the_last_of_some_quick_clicks_is_shown(at_inspect, console_errors):
    """Whatever the network delays: here the way of the second click to the server, and all answers."""
    page, second = at_inspect, []

    def delay(event) -> None:
        if '"index":[4,' in event.request.post_data:
            second.append(event)
        else:
            event.continue_()

    page.route("**/queue/join*", delay)
    with unanswered(page) as answer:
        with page.expect_response("**/queue/join*"):
            click_row(page, 1)
        click_row(page, 4)
        click_row(page, 3)
        assert shapes(page) == {(3, 0)}
        page.wait_for_timeout(500)
        for event in second:
            event.continue_()
        answer()
    page.unroute("**/queue/join*")
    wait_for_story(page, "Block 3, q")
    stand_still(page)
    assert page.locator("#story h2").inner_text() == "Block 3, q"
    assert len(second) == 1
    assert console_errors == []


def test_an_answer_that_comes_before_its_receipt_waits_for_its_turn(at_inspect, console_errors):
    """The receipt of a second click is late, its answer is not, and the page has not yet shown the first click's."""
    page, late = at_inspect, []

    def delay(event) -> None:
        if '"index":[3,' in event.request.post_data:
            late.append((event, event.fetch()))
        else:
            event.continue_()

    page.evaluate(
        """() => {
          const [real, held] = [window.setTimeout.bind(window), []];
          window.setTimeout = (act, wait, ...given) =>
            wait ? real(act, wait, ...given) : held.push(() => act(...given));
          window.letTimersGo = () => {
            window.setTimeout = real;
            for (const act of held) act();
          };
        }"""
    )
    page.route("**/queue/join*", delay)
    click_row(page, 4)
    click_row(page, 3)
    page.wait_for_timeout(1000)
    for event, receipt in late:
        event.fulfill(response=receipt)
    page.unroute("**/queue/join*")
    page.wait_for_timeout(500)
    page.evaluate("letTimersGo()")
    stand_still(page)
    assert page.locator("#story h2").inner_text() == "Block 3, q"
    assert len(late) == 1
    assert console_errors == []


def test_the_tokens_of_the_embedding_are_listed(at_inspect):
    page = at_inspect
    page.get_by_label("Norms and embeddings").check()
    expect(page.locator("#map .xtick").filter(has_text="embedding").first).to_be_attached()
    steps = (("Block", "outside", "Final norm"), ("Module", "embedding", "Embedding"))
    for field, wanted, name in steps:
        page.get_by_role("combobox", name=field).click()
        page.get_by_role("option", name=wanted).click()
        wait_for_story(page, f"{name}, outside the blocks")
    tokens = page.locator("#detail-tokens")
    expect(tokens).to_contain_text("Changed most by math")
    expect(tokens.locator("section").filter(has_text="Special and chat-template tokens")).to_contain_text(
        "special"
    )


def test_a_wrong_folder_is_explained_and_nothing_is_lost(at_inspect, console_errors):
    page = at_inspect
    open_tab(page, "1 Models")
    page.get_by_role("button", name="Add an expert").click()
    field = page.get_by_label("Expert 4")
    field.fill("/no/such/model")
    field.press("Enter")
    page.get_by_text("there is no such folder").wait_for()
    assert page.get_by_text("Cannot be read").count() == 1
    assert "base + 3 of 4 experts" in page.locator(".tiles").first.inner_text()
    field.fill("demo:math-long")
    field.press("Enter")
    page.get_by_text("base + 4 experts").wait_for()
    page.get_by_role("button", name="Remove expert 4").click()
    page.get_by_text("base + 3 experts").wait_for()
    assert console_errors == []


def test_chosen_models_outlive_a_reload(page, reload, tmp_path, quiet):
    """Only the demo models are said to be tiny, and who then reads the first tab for long finds every chart all the same."""
    text = page.locator("main").inner_text()
    assert text.index("The demo models are tiny") < text.index("1 Models")
    assert "know nothing else" in text
    about = page.get_by_text("The demo models are tiny")
    mine = shutil.copytree(ROOT / "examples" / "demo" / "words", tmp_path / "mine")
    page.get_by_role("button", name="Remove expert 3").click()
    page.get_by_text("base + 2 experts").wait_for()
    page.get_by_label("Expert 2").fill(str(mine))
    page.get_by_label("Expert 2").press("Enter")
    page.locator(".card-name", has_text="mine").wait_for()
    expect(about).to_be_hidden()
    expect(page.get_by_text("Models that were fine-tuned from one base can be merged")).to_be_visible()
    page.add_init_script(
        """window.seen = [];
        new MutationObserver(() => document.querySelectorAll('#map .annotation-text')
          .forEach((name) => window.seen.push(name.textContent))).observe(document, {childList: true, subtree: true});"""
    )
    quiet(page)
    reload(page)
    page.locator(".card-name", has_text="mine").wait_for()
    expect(about).to_be_hidden()
    assert page.get_by_label("Expert 1").input_value() == "demo:math"
    assert page.get_by_label("Expert 2").input_value() == str(mine)
    expect(page.get_by_label("Expert 3")).to_have_count(0)
    page.wait_for_timeout(5000)
    page.get_by_role("button", name="Inspect these models").click()
    expect(page.locator("#map .annotation-text")).to_have_text(["math", "mine"])
    assert set(page.evaluate("window.seen")) == {"math", "mine"}, "the demo was never drawn"
    wait_for_trim(page)
    expect(page.locator("#agreement .barlayer .point")).to_have_count(1)
    onwards, drawn = page.get_by_role("button", name="Merge these models"), page.locator("#map")
    assert onwards.bounding_box()["y"] < drawn.bounding_box()["y"], "nobody scrolls to find the way on"
    onwards.click()
    expect(page.locator("#recipe-yaml")).to_contain_text(str(mine))
    page.locator("#preview-map .heatmaplayer").first.wait_for()
    top = page.locator("#merge-default-button").bounding_box()["y"]
    assert top < page.locator("#merge-method").bounding_box()["y"], "no parameter before the one click"
    expect(page.get_by_text("Error rendering")).to_have_count(0)
    open_tab(page, "4 Chat")
    asked = "[...document.querySelectorAll('[id^=chat-model-] input')].map((field) => field.value)"
    page.wait_for_function(f"{asked}.includes('mine')")
    assert not {"code", "words"} & set(page.evaluate(asked))
    open_tab(page, "1 Models")
    page.get_by_role("button", name="Demo family").click()
    page.get_by_text("base + 3 experts").wait_for()
    expect(about).to_be_visible()


def test_charts_follow_the_theme_at_once(at_inspect):
    page = at_inspect
    ink = "document.querySelector('#map .chart-plot').layout.font.color"
    before = page.evaluate(ink)
    page.get_by_role("button", name="Switch between light and dark").click()
    page.wait_for_function(f"{ink} !== {before!r}")
    assert page.evaluate("document.body.classList.contains('dark')")
