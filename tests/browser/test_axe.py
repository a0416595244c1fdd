"""axe-core finds nothing to object to on any tab, as it opens and in use, light and dark."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe

from tests.browser.conftest import brush_corner
from tests.browser.test_walk import cell_centre, open_tab, wait_for_story, wait_for_trim

READY = {
    "1 Models": ".card-head:visible",
    "4 Chat": "textarea:visible",
    "5 Compare": "#compare-parts",
}
"""What is there once a tab has filled itself; Inspect and Merge are looked at in use, which shows more of them."""


def violations(page, *rules: str) -> list[str]:
    """What axe-core objects to, by all rules or by some."""
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}" for rule in found for node in rule["nodes"]
    ]


def open_all(page, selector: str) -> None:
    closed = page.locator(selector).all()
    assert len(closed) > 1
    for one in closed:
        one.click()
    page.wait_for_timeout(500)


def test_every_tab_as_it_opens_and_in_use(page):
    found = {}

    def look(what: str) -> None:
        found[what] = violations(page)
        page.get_by_role("button", name="Switch between light and dark").click()
        page.wait_for_timeout(500)
        found[f"{what}, the other colours"] = violations(page, "color-contrast")

    for tab, ready in READY.items():
        page.get_by_role("tab", name=tab).click()
        page.locator(ready).first.wait_for()
        page.wait_for_timeout(500)
        look(tab)
    inspect_in_use(page)
    look("Inspect in use")
    merge_in_use(page)
    look("Merge in use")
    assert found == {what: [] for what in found}


def inspect_in_use(page) -> None:
    """Conflict after a trim, a cell with its heads and spectra, tables and explanations opened."""
    open_tab(page, "2 Inspect")
    page.locator("#map .heatmaplayer").first.wait_for()
    wait_for_trim(page)
    page.mouse.click(*cell_centre(page, panel=0, row=1, column=0))
    wait_for_story(page, "Block 1, q")
    page.locator("#detail-heads .barlayer .point").first.wait_for()
    page.locator("#detail-spectrum").click()
    page.locator("#detail-ranks tbody tr").first.wait_for()
    page.get_by_role("radio", name="Conflict").check()
    page.locator("#map .heatmaplayer").first.wait_for()
    open_all(page, ".explain button:visible")


def merge_in_use(page) -> None:
    """Chosen cells and a brush that is set, another view, the numbers and explanations opened."""
    open_tab(page, "3 Merge")
    brush_corner(page)
    page.locator("#preview-brush-line", has_text="cells chosen").wait_for()
    page.locator("#preview-number label", has_text="Presence").click()
    open_all(page, "#preview .explain button:visible")
