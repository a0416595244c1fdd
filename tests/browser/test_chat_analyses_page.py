"""A reply's tokens and the bars of one part put back, in a real browser, over the demo models."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_tokens_are_shown_and_layers_are_put_back(open_page, console_errors):
    page = open_page(390, dark=True)
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
