"""Going home from a real browser: the zip, and a push to a stand-in Hub that is cancelled, found again and done."""

from __future__ import annotations

import zipfile
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import served
from tests.browser.test_axe import violations
from tests.browser.test_walk import open_tab, outside
from tests.hub_server import TOKEN, HubServer

pytestmark = pytest.mark.browser
NAME = "mira/demo-merge"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("MERGESCOPE_SHARED", "1")
    yield server
    server.close()


def test_a_merge_is_taken_home(hub, new_window, tmp_path, requests_seen, console_errors, quiet, reload):
    slow = hub.fail("/upload/*", pause=0.5)
    with served(tmp_path) as url:
        page = new_window()
        page.goto(url)
        open_tab(page, "6 Export")
        page.locator("#export-first").click()
        page.locator("#merge-default-button:enabled").click()
        expect(page.locator("#merge-next")).to_be_visible()
        reload(page)
        open_tab(page, "6 Export")
        with page.expect_download() as saved:
            page.locator("#export-download").click()
        with zipfile.ZipFile(saved.value.path()) as archive:
            names = {name.split("/", 1)[1] for name in archive.namelist()}
        assert {"model.safetensors", "README.md", "pictures/change.png"} <= names
        expect(page.locator("#export-push-run")).to_be_disabled()
        tab = page.get_by_role("tabpanel").filter(has=page.locator("#export-name"))
        tab.get_by_label("Access token").fill(TOKEN)
        tab.get_by_role("button", name="Use token").click()
        expect(page.locator("#export-push-run")).to_be_enabled()
        name = tab.get_by_role("textbox", name="Repository")
        name.fill("mira/a--b")
        expect(page.get_by_text("is no name of a repository")).to_be_visible()
        name.fill(NAME)
        page.locator("#export-push-run").click()
        expect(page.get_by_text("uploading")).to_be_visible()
        reload(page)
        open_tab(page, "6 Export")
        page.locator("#export-push-cancel:enabled").click()
        expect(page.get_by_text("Cancelled. Nothing of it is left on the Hub.")).to_be_visible()
        assert hub.models == {}
        slow.pause = 0
        tab.get_by_role("textbox", name="Repository").fill(NAME)
        page.locator("#export-push-run:enabled").click()
        expect(page.locator("#export-pushed a")).to_have_attribute("href", f"{hub.url}/{NAME}")
        assert hub.models[NAME].private
        page.get_by_role("button", name="Read its model card").click()
        picture = page.locator(".ex-readme img").first
        expect(picture).to_be_visible()
        assert picture.evaluate("image => image.naturalWidth") > 100
        page.set_viewport_size({"width": 390, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert violations(page) == []
        assert console_errors == []
        assert {urlsplit(address).netloc for address in outside(requests_seen, url)} == set()
        quiet(page)
