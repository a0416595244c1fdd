"""On a phone every tab fits the width of the screen."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.conftest import stand_still, write_recipe
from tests.browser.test_preview_page import at_preview, slide, values, wait_for_other
from tests.browser.test_walk import open_tab
from tests.browser.test_walk_importance import open_section

WIDTH = 390


def test_a_phone_scrolls_in_one_direction_only(open_page, console_errors):
    page = open_page(WIDTH, dark=True)

    def assert_fits(what: str) -> None:
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH, what

    assert_fits("models")
    open_tab(page, "2 Inspect")
    page.locator("#map .heatmaplayer").first.wait_for()
    page.locator("#agreement .barlayer").wait_for()
    assert_fits("inspect")
    open_section(page)
    page.locator("#importance-source-0").get_by_label("paste or upload").check()
    page.locator("#importance-text-0 textarea").wait_for()
    assert_fits("importance")
    at_preview(page)
    page.locator("#merge-plan").wait_for()
    assert_fits("merge")
    frame = page.locator("#preview-map .chart-plot").bounding_box()
    assert frame["x"] >= 0
    assert frame["x"] + frame["width"] <= WIDTH
    before = values(page)
    slide(page, "#merge-density-0", 0.2)
    wait_for_other(page, before)
    stand_still(page)
    write_recipe(page, "merge_methd: ties")
    expect(page.get_by_text("The recipe was not applied")).to_be_in_viewport()
    open_tab(page, "4 Chat")
    page.locator("#chat-column-3").wait_for()
    assert_fits("chat")
    first, second = (page.locator(f"#chat-column-{number}").bounding_box() for number in (0, 1))
    assert second["y"] >= first["y"] + first["height"], "columns are stacked"
    arrows = page.locator(".label-wrap .icon:visible").evaluate_all(
        "arrows => arrows.map(one => one.offsetWidth)"
    )
    assert min(arrows) >= 8, "no long name leaves its arrow without room"
    edges = page.locator(".label-wrap .icon:visible").evaluate_all(
        "arrows => arrows.map(one => one.getBoundingClientRect().right)"
    )
    assert max(edges) <= WIDTH, "nor pushes it off the page"
    open_tab(page, "5 Compare")
    page.locator("#compare-parts").wait_for()
    assert_fits("compare")
    assert console_errors == []
