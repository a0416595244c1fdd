"""Models of the Hub in a real browser, against a stand-in Hub on localhost."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import served
from tests.browser.test_axe import violations
from tests.browser.test_walk import open_tab, outside
from tests.hub_server import HubServer

pytestmark = pytest.mark.browser


@pytest.fixture
def hub(family, monkeypatch, tmp_path):
    server = HubServer()
    for name in ("base", "one"):
        server.add(f"org/tiny-{name}", family / name, tags=("license:mit",))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield server
    server.close()


def test_found_on_the_hub_downloaded_and_inspected(
    hub, new_window, tmp_path, requests_seen, console_errors, quiet, reload
):
    slow = hub.fail("/storage/*", pause=0.5)
    with served(tmp_path) as url:
        page = new_window(390)
        page.goto(url)
        page.get_by_role("button", name="Find models on the Hugging Face Hub").click()
        expect(page.locator("#presets").get_by_role("button", name="Take SmolLM2 360M")).to_be_visible()
        seen = [one for one in hub.seen if one[1] != "/api/agent-harnesses"]  # huggingface_hub's own question
        assert seen == [("GET", "/api/models", None)], "asked once whether it is there, and nothing else"
        page.get_by_label("Search the Hub by name").fill("tiny")
        page.get_by_role("button", name="Use org/tiny-base as the base").click()
        expect(page.get_by_label("Base", exact=True)).to_have_value("org/tiny-base")
        page.get_by_role("button", name="Add org/tiny-one as an expert").click()
        expect(page.get_by_label("Expert 4", exact=True)).to_have_value("org/tiny-one")
        for number in (3, 2, 1):
            page.get_by_role("button", name=f"Remove expert {number}").click()
            expect(page.get_by_label(f"Expert {number + 1}", exact=True)).to_be_hidden()
        expect(page.get_by_label("Expert 1", exact=True)).to_have_value("org/tiny-one")
        expect(page.get_by_text("to download").first).to_be_visible()
        expect(page.get_by_role("button", name="Download first")).to_be_disabled()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert violations(page) == []
        page.locator("#models-download-run").click()
        page.locator("#models-download-progress progress").wait_for()
        reload(page)
        page.locator("#models-download-progress progress").wait_for()
        slow.pause = 0
        following = page.get_by_role("button", name="Inspect these models")
        expect(following).to_be_enabled()
        expect(page.locator("#models-download-run")).to_be_hidden()
        following.click()
        page.locator("#map .heatmaplayer").first.wait_for()
        open_tab(page, "3 Merge")
        commit = hub.models["org/tiny-one"].branches["main"]
        expect(page.locator(".cm-content")).to_contain_text(f"org/tiny-one@{commit}")
        assert console_errors == []
        assert {urlsplit(address).netloc for address in outside(requests_seen, url)} == set()
        quiet(page)
