"""The Compare tab in a real browser: measure, sort, reload, load a run's settings again."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from tests.browser.test_axe import violations
from tests.browser.test_walk import open_tab

pytestmark = pytest.mark.browser

QUIZ = [
    ("2 + 3", "5"),
    ("7 - 4", "3"),
    ("nine plus one", "ten"),
    ("plural of cat", "cats"),
    ("sorted([2,1])", "[1, 2]"),
]


@pytest.fixture
def quiz(tmp_path):
    """A suite of five items as a file."""
    file = tmp_path / "five.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in QUIZ))
    return file


def open_part(page, name: str) -> None:
    open_tab(page, "5 Compare")
    page.get_by_role("tab", name=name, exact=True).click()


def measure(page, quiz) -> None:
    """Measure the recipe and its parents by the quiz alone."""
    open_part(page, "Scores")
    tasks = page.locator("#compare-what")
    expect(tasks.get_by_label("math")).to_be_checked()
    page.locator(".cm-add button").first.click()
    with page.expect_file_chooser() as chooser:
        page.locator("#compare-upload").click()
    chooser.value.set_files(quiz)
    expect(page.locator("#compare-problem")).to_contain_text("Added five: 5 items")
    for task in ("math", "code", "words", "compare"):
        tasks.get_by_label(task).uncheck()
    expect(page.locator("#compare-plan")).to_contain_text("× 1 task")
    page.locator("#compare-measure").click()
    expect(page.locator(".cm-board .cm-run")).not_to_have_count(0)
    expect(page.locator("#compare-measure")).to_be_enabled()


def test_measuring_fills_the_table_and_a_run_can_be_loaded_again(page, quiz, reload, quiet, console_errors):
    measure(page, quiz)
    rows = page.locator(".cm-board tbody tr")
    expect(rows.nth(0)).to_contain_text("base")
    expect(page.locator(".cm-board thead")).to_contain_text("five")
    expect(page.locator(".cm-board .cm-run").first).to_contain_text("kept")
    expect(page.locator("#compare-pairs")).to_contain_text("McNemar")
    expect(page.locator("#compare-bars .barlayer .point")).not_to_have_count(0)
    page.locator(".cm-board button", has_text="five").click()
    found = [
        float(value)
        for value in rows.evaluate_all("rows => rows.map(row => row.cells[2].dataset.sort)")
        if value
    ]
    assert found == sorted(found, reverse=True)

    quiet(page)
    reload(page)
    open_tab(page, "3 Merge")
    page.locator("#merge-method label", has_text="SLERP").first.click()
    expect(page.locator("#recipe-yaml")).to_contain_text("slerp")
    open_part(page, "History")
    expect(page.locator("#history-facts")).to_contain_text("TIES")
    page.locator("#history-reload").click()
    expect(page.locator("#recipe-yaml")).to_be_visible()
    expect(page.locator("#recipe-yaml")).to_contain_text("merge_method: ties")
    expect(page.locator("#merge-method label.selected")).to_contain_text("TIES")
    open_part(page, "Scores")
    expect(page.locator(".cm-board thead")).to_contain_text("five")
    quiet(page)
    assert console_errors == []


def test_the_tab_in_use_is_accessible_and_fits(open_page, quiz):
    page = open_page(390, dark=True)
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
