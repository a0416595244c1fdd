"""axe-core finds nothing to object to on any tab, light and dark."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe

READY = {
    "1 Models": ".card-head:visible",
    "2 Inspect": "#map .heatmaplayer",
    "3 Merge": "#merge-default-button:enabled",
    "4 Chat": "textarea:visible",
}
"""What is there once a tab has filled itself."""


def violations(page) -> list[str]:
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}" for rule in found for node in rule["nodes"]
    ]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_tab(open_page, dark):
    page = open_page(dark=dark)
    found = {}
    for tab, ready in READY.items():
        page.get_by_role("tab", name=tab).click()
        page.locator(ready).first.wait_for()
        page.wait_for_timeout(500)
        found[tab] = violations(page)
    assert found == {tab: [] for tab in READY}
