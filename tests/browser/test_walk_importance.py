"""Importance in the page: measured on the demo's examples, looked at, found again, and used by an APL merge."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import served

pytestmark = pytest.mark.browser

SLOW = 120_000
"""Milliseconds for a measurement on a busy machine."""


@pytest.fixture(scope="module")
def app_url(tmp_path_factory) -> Iterator[str]:
    """An app of these tests alone: what is measured is found by every later page."""
    with served(tmp_path_factory.mktemp("importance")) as url:
        yield url


def open_section(page) -> None:
    page.get_by_role("tab", name="2 Inspect").click()
    page.locator("#map .heatmaplayer").first.wait_for()
    page.get_by_role("button", name="Importance (APL): what each").click()
    page.locator("#importance-compute:enabled").wait_for()


def wait_for_map(page, title: str) -> None:
    expect(page.locator("#map .chart-title")).to_have_text(title, timeout=30_000)


def click_cell(page, row: int, column: int) -> None:
    """Click a cell of the first map, found by plotly's own axes."""
    place = page.evaluate(
        """([row, column]) => {
          const plot = document.querySelector('#map .chart-plot');
          const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
          return [box.left + xaxis._offset + xaxis.c2p(column), box.top + yaxis._offset + yaxis.c2p(row)];
        }""",
        [row, column],
    )
    page.mouse.click(*place)


def test_measured_once_then_found_and_merged_with(page, app_url, requests_seen, console_errors, reload):
    page.get_by_role("tab", name="2 Inspect").click()
    page.locator("#map .heatmaplayer").first.wait_for()
    page.get_by_label("Importance (APL)", exact=True).check()
    expect(page.locator("#map .chart-empty")).to_contain_text("press Compute")
    about = page.locator("#importance")
    expect(about).to_contain_text("This is a reconstruction")
    expect(about).to_contain_text("At most 64 examples and 200 kB")
    page.locator("#importance-compute:enabled").click()
    expect(page.locator("#importance-status")).to_contain_text(
        "Measured: gradients at the base", timeout=SLOW
    )
    wait_for_map(page, "Which changes each expert's task depends on")
    page.locator("#map .chart-plot").scroll_into_view_if_needed()
    click_cell(page, 1, 0)
    expect(page.locator("#story h2")).to_have_text("Block 1, q")
    expect(page.locator("#importance-cell tbody tr")).to_have_count(3)
    expect(page.locator("#importance-heads .barlayer .point")).to_have_count(12)
    expect(page.locator("#importance-rows .scatterlayer .trace")).to_have_count(3)
    page.get_by_label("Owner", exact=True).check()
    wait_for_map(page, "Which expert owns each cell")
    expect(page.locator("#map .heatmap-label").first).to_have_text(re.compile(r"[MCW] \d+%"))

    reload(page)
    page.get_by_role("tab", name="2 Inspect").click()
    page.get_by_label("Importance (APL)", exact=True).check()
    page.get_by_label("Conflict × importance").check()
    wait_for_map(page, "Where what an expert needs is pulled the other way by others")
    page.get_by_role("tab", name="3 Merge").click()
    page.locator("#merge-method input[value=apl]").check()
    expect(page.locator("#merge-importance")).to_contain_text("Uses importance")
    expect(page.locator("#merge-importance")).to_contain_text("not recommended")
    page.locator("#merge-button:enabled").click()
    expect(page.locator("#merge-result h3")).to_have_text(re.compile("^APL"), timeout=SLOW)
    assert console_errors == []
    assert {urlsplit(url).netloc for url in requests_seen} <= {urlsplit(app_url).netloc, ""}
