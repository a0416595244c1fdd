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
@pytest.mark.parametrize("tab", list(READY))
def test_a_tab(open_page, tab, dark):
    page = open_page(dark=dark)
    page.get_by_role("tab", name=tab).click()
    page.locator(READY[tab]).first.wait_for()
    page.wait_for_timeout(500)
    assert violations(page) == []
