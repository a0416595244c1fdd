"""Signing in on a Space, in a real browser, against stand-ins of the Hub and of its signing in."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import served
from tests.hub_server import TOKEN, HubServer
from tests.oauth_server import OAuthServer

pytestmark = pytest.mark.browser


@pytest.fixture
def space(family, monkeypatch, tmp_path):
    """The environment of a Space whose owner has a token too, and a Hub with a private model of the visitor's."""
    hub, provider = HubServer(), OAuthServer()
    hub.add("visitor/private", family / "base", private=True)
    for name, value in {
        **provider.environment(),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": "hf_TheOwnersOwnToken",
        "MERGESCOPE_LARGEST_DOWNLOAD": "1e9",
    }.items():
        monkeypatch.setenv(name, value)
    yield hub
    provider.close()
    hub.close()
    assert not hub.leaks


WITHOUT_RELOADS = """
import gradio.http_server

import app

gradio.http_server.watchfn_spaces = lambda reloader: None
app.main()
"""
"""On a Space Gradio watches for new code by the package `spaces`, which the image of a Space has and this machine has not."""


def look_up(page, model: str) -> None:
    page.get_by_label("Base", exact=True).fill(model)
    page.get_by_label("Base", exact=True).press("Enter")


def test_who_signs_in_sees_their_private_model_and_nobody_else_does(space, new_window, tmp_path):
    script = tmp_path / "space.py"
    script.write_text(WITHOUT_RELOADS)
    with served(tmp_path, str(script)) as url:
        page, stranger = new_window(), new_window()
        page.goto(url)
        look_up(page, "visitor/private")
        expect(page.locator(".model:visible").first).to_contain_text("or a private one")
        page.get_by_role("button", name="Find models on the Hugging Face Hub").click()
        with page.expect_request("**/login/callback*"):
            page.get_by_role("button", name="Sign in with Hugging Face").click()
        page.get_by_role("tab", name="1 Models").wait_for()
        page.get_by_role("button", name="Find models on the Hugging Face Hub").click()
        expect(page.get_by_role("button", name="Sign out (visitor)")).to_be_visible()
        expect(page.get_by_text("You are signed in")).to_be_visible()
        look_up(page, "visitor/private")
        expect(page.locator(".model:visible").first).to_contain_text("105 kB")
        stranger.goto(url)
        look_up(stranger, "visitor/private")
        expect(stranger.locator(".model:visible").first).to_contain_text("or a private one")
        stranger.close()
        with page.expect_request("**/logout**"):
            page.get_by_role("button", name="Sign out (visitor)").click()
        page.get_by_role("button", name="Find models on the Hugging Face Hub").click()
        expect(page.get_by_role("button", name="Sign in with Hugging Face")).to_be_visible()
        expect(page.get_by_text("Only for private and gated models")).to_be_visible()
    assert "hf_TheOwnersOwnToken" not in {token for *_, token in space.seen}, "the owner's is never used"
    written = [file for file in tmp_path.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]
    assert written == []
