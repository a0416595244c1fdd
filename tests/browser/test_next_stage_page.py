"""A finished merge as an expert of the next, in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_a_merge_becomes_an_expert_of_the_next(page):
    page.get_by_role("tab", name="3 Merge").click()
    page.locator("#merge-default-button:enabled").click()
    page.locator("#merge-result h3", has_text="Task arithmetic").wait_for()
    page.locator("#merge-as-expert:visible").click()
    last = page.locator(".model:visible").last
    expect(last).to_contain_text("A merge: Task arithmetic of math, code and words over base.")
    expect(last).to_contain_text("Fits the base")
