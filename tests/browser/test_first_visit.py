"""The first visit to a Space without a GPU and without an account, as the benchmark walks it."""

from __future__ import annotations

import os

import pytest
from playwright.sync_api import expect

from benchmarks.first_visit import ANSWERED, CLICKS, DESK, USABLE, space, walk
from tests.browser.conftest import stand_still
from tests.browser.test_walk import outside

pytestmark = pytest.mark.browser


def test_a_stranger_has_a_map_in_15_seconds_and_an_answer_in_60_with_6_clicks(
    new_window, requests_seen, console_errors
):
    """A machine with more to do than it has cores may take as much longer."""
    page = new_window(DESK["width"])
    with space() as url:
        visit = walk(page, url)
        expect(page.locator("#merge-result h3")).to_contain_text("Task arithmetic")
        for number in range(4):
            expect(page.locator(f"#chat-column-{number} .bot .message").first).not_to_be_empty()
        stand_still(page)
        assert outside(requests_seen, url) == []
        page.goto("about:blank")
    busy = max(1.0, visit.load, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert visit.clicks <= CLICKS
    assert visit.seconds["map"] <= USABLE * busy
    assert visit.seconds["answer"] <= ANSWERED * busy
    assert console_errors == []
