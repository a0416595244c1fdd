"""Asking the recipe that the Merge tab shows, in a real browser: nothing is written, and nothing stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import PATIENCE, served

pytestmark = pytest.mark.browser

RECIPE = "the recipe as it stands (not saved)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recipe")


@pytest.fixture(scope="module")
def url(folder):
    """An app whose folder of runs nobody else writes to."""
    os.environ["KEPT"] = str(folder / "kept")
    with served(folder, "tests/browser/kept_page.py") as address:
        yield address
    del os.environ["KEPT"]


def open_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def set_density(page, value: str) -> None:
    open_tab(page, "3 Merge")
    field = page.locator("#merge-density-0 input[type=number]")
    field.fill(value)
    field.press("Tab")
    page.wait_for_function(
        "part => document.querySelector('#recipe-yaml .cm-content')?.innerText?.includes(part)",
        arg=f"density: {value}",
    )


def choose(page, column: int, label: str) -> None:
    page.locator(f"#chat-model-{column} input").click()
    page.get_by_role("option", name=label).click()
    expect(page.get_by_role("option")).to_have_count(0)
    expect(page.locator(f"#chat-model-{column} input")).to_have_value(label)


def ask(page, question: str) -> None:
    page.locator("#chat-input textarea").fill(question)
    page.locator("#chat-send:enabled").click()


def wait_for_kept(folder: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE / 1000
    while (folder / "kept").read_text() != str(count):
        assert time.monotonic() < deadline, (folder / "kept").read_text()
        time.sleep(0.1)


def test_a_changed_number_is_asked_without_a_merge_on_disk(url, folder, new_window, console_errors):
    page = new_window(390)
    page.goto(url)
    set_density(page, "0.7")
    open_tab(page, "4 Chat")
    choose(page, 0, RECIPE)
    for column in (1, 2, 3):
        choose(page, column, "nobody")
    ask(page, "12+7=")
    note = page.locator("#chat-column-0 .ch-note")
    expect(note).to_contain_text("tokens/s")
    expect(note).to_contain_text("TIES · ")
    expect(note).to_contain_text("math density 0.7")
    expect(page.locator("#chat-column-0 .message.bot")).to_contain_text("19")
    wait_for_kept(folder, 1)
    expect(page.locator("#chat-model-0 input")).to_have_value(RECIPE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    set_density(page, "0.9")
    open_tab(page, "4 Chat")
    ask(page, "2*3*4")
    expect(note).to_contain_text("math density 0.9")
    expect(page.locator("#chat-column-0 .message.bot")).to_have_count(2)
    wait_for_kept(folder, 1)

    choose(page, 0, "nobody")
    wait_for_kept(folder, 0)
    choose(page, 0, RECIPE)
    ask(page, "1+1")
    wait_for_kept(folder, 1)
    expect(page.locator("#chat-stop")).to_be_disabled()
    page.close()
    wait_for_kept(folder, 0)
    assert [path.name for path in (folder / "runs").rglob("*") if path.is_dir()] in ([], [".downloads"])
    assert console_errors == []
