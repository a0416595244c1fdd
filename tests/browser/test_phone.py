"""On a phone, in the dark, every tab fits the width of the screen, and what is asked of it is shown."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.conftest import heard, long_page
from tests.browser.test_axe import violations
from tests.browser.test_compare_page import measure
from tests.browser.test_preview_page import at_preview, slide, values, wait_for_other
from tests.browser.test_walk import open_tab
from tests.browser.test_walk_importance import open_section

WIDTH = 390


@pytest.fixture(scope="module")
def narrow_page(browser, app_url):
    with long_page(browser, app_url, WIDTH, dark=True) as page:
        yield page


@pytest.fixture
def page(narrow_page, requests_seen, console_errors):
    """The one page of these tests."""
    with heard(narrow_page, requests_seen, console_errors):
        yield narrow_page


def test_a_phone_scrolls_in_one_direction_only(page, console_errors):

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
    open_tab(page, "4 Chat")
    page.locator("#chat-column-3").wait_for()
    assert_fits("chat")
    first, second = (page.locator(f"#chat-column-{number}").bounding_box() for number in (0, 1))
    assert second["y"] >= first["y"] + first["height"], "columns are stacked"
    open_tab(page, "5 Compare")
    page.locator("#compare-parts").wait_for()
    assert_fits("compare")
    assert console_errors == []


def test_tokens_are_shown_and_layers_are_put_back(page, console_errors):
    page.get_by_role("tab", name="4 Chat").click()
    page.locator("#chat-tokens > button").click()
    expect(page.locator("#tokens-show")).to_be_disabled()
    expect(page.locator("#tokens-view .tk-empty")).to_contain_text("ask something above")
    page.locator("#chat-input textarea").fill("12+7=")
    page.locator("#chat-send:enabled").click()

    page.locator("#tokens-show:enabled").click()
    tokens = page.locator("#tokens-view .tk")
    expect(tokens.last).to_have_text("<end>")
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    card = page.locator("#tokens-view .tk-card")
    expect(card).to_contain_text("Token 2 9")
    expect(card.locator("ol")).to_have_count(2)
    expect(card.locator("li")).to_have_count(10)
    tokens.first.hover()
    expect(card).to_contain_text("Token 1 1")
    page.get_by_label("Rank in the other model").check()
    expect(page.locator("#tokens-view .tk-legend")).to_contain_text("beyond 20")
    expect(page.locator("#tokens-table tbody tr")).to_have_count(3)

    page.locator("#chat-layers > button").click()
    expect(page.locator("#layers-answer textarea")).to_have_value("19")
    page.locator("#layers-run:enabled").click()
    expect(page.locator("#layers-plot .chart-note")).to_contain_text("everything put back")
    expect(page.locator("#layers-plot .barlayer .point")).to_have_count(8)
    page.locator("#layers-table summary").click()
    expect(page.locator("#layers-table tbody tr")).to_have_count(10)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for panel in ("#chat-tokens", "#chat-layers"):
        found = Axe().run(page, context=panel, options={"resultTypes": ["violations"]}).response["violations"]
        assert [f"{rule['id']}: {[node['target'] for node in rule['nodes']]}" for rule in found] == []
    assert console_errors == []


def test_the_tab_in_use_is_accessible_and_fits(page, quiz):
    measure(page, quiz)
    page.locator("#compare-pairs").scroll_into_view_if_needed()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.get_by_role("tab", name="History", exact=True).click()
    expect(page.locator("#history-card")).to_be_visible()
    page.locator("#history-delete").click()
    expect(page.locator("#history-really")).to_be_visible()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
