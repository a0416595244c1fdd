"""Every method in one click: rows come while it runs, a reload finds it again, and a merge of them is taken on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import served

pytestmark = pytest.mark.browser

SLOW = 180_000
"""Milliseconds until the parents are asked, or a merge is done, on a busy machine."""
EXPERTS, LEFT_OUT = 3, 1
"""The demo's; Passthrough, which copies one model."""


@pytest.fixture(scope="module")
def app_url(tmp_path_factory) -> Iterator[str]:
    """An app of this test alone, which keeps runs of its own."""
    with served(tmp_path_factory.mktemp("methods")) as url:
        yield url


def open_methods(page) -> None:
    page.get_by_role("tab", name="5 Compare").click()
    page.get_by_role("tab", name="Every method").click()


def test_one_click_begins_the_table_a_reload_finds_it_and_a_cancel_keeps_it(
    page, reload, quiet, console_errors
):
    """`test_compare_panels` waits for all its rows."""
    open_methods(page)
    quiet(page)  # else what a busy machine fills in late unticks nothing
    for task in ("code", "words", "compare"):
        page.locator("#methods-what").get_by_label(task, exact=True).uncheck()
    page.locator("#methods-items").get_by_label("first 20").check()
    page.locator("#methods-run:enabled").click()
    page.locator("#methods-board tr.cm-expert").first.wait_for(timeout=SLOW)
    reload(page)
    open_methods(page)
    page.locator("#methods-board tr.cm-run").first.wait_for(timeout=SLOW)
    page.locator("#methods-cancel").click()
    expect(page.locator("#methods-status")).to_contain_text("What was measured until then is kept")
    expect(page.locator("#methods-board tr.cm-expert")).to_have_count(EXPERTS)
    expect(page.locator("#methods-unfit li")).to_have_count(LEFT_OUT)
    expect(page.locator("#methods-board thead")).to_contain_text("n 20")
    page.locator("#methods-bars .barlayer").first.wait_for()
    page.locator("#methods-load").click()
    expect(page.get_by_role("tab", name="3 Merge")).to_have_attribute("aria-selected", "true")
    quiet(page)
    assert console_errors == []
