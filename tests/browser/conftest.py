"""The real app in a process of its own, and a Chromium that looks at it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
]
START_SECONDS = 240
WRITTEN = "document.querySelector('#recipe-yaml .cm-content').innerText.trim()"
QUIZ = [
    ("2 + 3", "5"),
    ("7 - 4", "3"),
    ("nine plus one", "ten"),
    ("plural of cat", "cats"),
    ("sorted([2,1])", "[1, 2]"),
]
PATIENCE = 30_000
"""Milliseconds that a page may take on a busy machine; a test fails by what is shown, not by how fast."""


@contextmanager
def served(folder: Path, script: str = "app.py", **also: str) -> Iterator[str]:
    """The address of a page whose script runs in a process of its own, with its runs in `folder`; `also` are variables of
    its environment.

    Asserts in the end that it neither ended by itself nor wrote a traceback.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MERGESCOPE_PORT": str(port),
        "MERGESCOPE_HOST": "127.0.0.1",
        "MERGESCOPE_RUNS": str(folder / "runs"),
        "GRADIO_TEMP_DIR": str(folder / "gradio"),
        "GRADIO_SSR_MODE": "False",
        "GRADIO_ANALYTICS_ENABLED": "False",
        **also,
    }
    log = folder / "app.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, script], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        url = f"http://127.0.0.1:{port}/"
        try:
            wait_until_up(url, process, log)
            yield url
            died = process.poll()
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
    assert died is None, f"the app ended by itself with {died}:\n{log.read_text()}"
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="session")
def app_url(tmp_path_factory) -> Iterator[str]:
    """The address of an app that was started for these tests, with runs of its own."""
    with served(tmp_path_factory.mktemp("app")) as url:
        yield url


def wait_until_up(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the app ended with {process.returncode}:\n{log.read_text()}")
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.3)
    pytest.fail(f"the app did not answer within {START_SECONDS} s:\n{log.read_text()}")


@pytest.fixture(scope="session")
def browser():
    """Chromium as the system has it, at best the one without windows: it takes two thirds of the time."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    playwright.expect.set_options(timeout=PATIENCE)
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium on this machine; scripts/install-browser says how to get one")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def requests_seen() -> list[str]:
    """Every address that the page of this test asked for."""
    return []


@pytest.fixture
def console_errors() -> list[str]:
    """Every error that the page of this test wrote to its console."""
    return []


@pytest.fixture
def quiet(requests_seen):
    """`quiet(page)` waits until the page asks for nothing for half a second and no event has an answer to come. A page that goes
    before leaves an error in its log, and what comes last is only known then."""

    def wait(page) -> None:
        before = -1
        while before != len(requests_seen) or page.evaluate("awaitedAnswers()"):
            before = len(requests_seen)
            page.wait_for_timeout(500)

    return wait


@pytest.fixture
def new_window(browser, requests_seen, console_errors):
    """A window without a page: `new_window(390, dark=True, touch=True)`."""
    contexts = []

    def open_one(width: int = 1280, *, dark: bool = False, touch: bool = False):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            accept_downloads=True,
            has_touch=touch,
            is_mobile=touch,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: requests_seen.append(request.url))
        page.on("pageerror", lambda error: console_errors.append(str(error)))
        page.on(
            "console",
            lambda message: console_errors.append(message.text) if message.type == "error" else None,
        )
        return page

    yield open_one
    for context in contexts:
        context.close()


@pytest.fixture
def open_page(new_window, app_url):
    """Open the app in a new window: `open_page(width=390, dark=True)`."""

    def open_one(width: int = 1280, *, dark: bool = False):
        page = new_window(width, dark=dark)
        page.goto(app_url)
        page.get_by_role("tab", name="1 Models").wait_for()
        return page

    return open_one


@pytest.fixture
def page(open_page):
    """The app at 1280 pixels, light."""
    return open_page()


@contextmanager
def unanswered(page) -> Iterator[Callable[[], None]]:
    """The server hears the page and starts to work, but its answers wait until what this yields is called."""
    waiting: list[Any] | None = []

    def hold(stream: Any) -> None:
        if waiting is None:
            stream.continue_()
        else:
            waiting.append(stream)

    def answer() -> None:
        nonlocal waiting
        held, waiting = waiting or [], None
        for stream in held:
            stream.continue_()

    page.route("**/queue/data*", hold)
    yield answer


def brush_corner(page) -> None:
    """Drag over the upper left cells of the preview's first map."""
    area = page.locator("#preview-map .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    page.mouse.move(box["x"] + 4, box["y"] + 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.3, steps=6)
    page.mouse.up()


@contextmanager
def long_page(browser, app_url: str, width: int = 1280, *, dark: bool = False) -> Iterator[Any]:
    """A page that tests share: one takes seconds to load."""
    page = browser.new_page(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
    )
    page.set_default_timeout(PATIENCE)
    page.goto(app_url)
    yield page
    page.close()


@contextmanager
def heard(page, requests_seen: list[str], console_errors: list[str]) -> Iterator[None]:
    """What a shared page asks for and complains of is told to one test."""
    listeners = {
        "request": lambda request: requests_seen.append(request.url),
        "pageerror": lambda error: console_errors.append(str(error)),
        "console": lambda said: console_errors.append(said.text) if said.type == "error" else None,
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    yield
    for event, listener in listeners.items():
        page.remove_listener(event, listener)


@pytest.fixture(scope="module")
def merge_page(browser, app_url):
    """One page at Merge for all tests of a file, and the recipe that it opened with; ask for `at_merge`."""
    with long_page(browser, app_url) as page:
        page.get_by_role("tab", name="3 Merge").click()
        page.locator("#merge-default-button:enabled").wait_for()
        page.locator("#recipe-yaml .cm-content", has_text="merge_method").wait_for()
        stand_still(page)
        yield page, page.evaluate(WRITTEN)


@pytest.fixture
def at_merge(merge_page, requests_seen, console_errors):
    """The Merge tab as it opens, in a page that tests before may have used."""
    page, opened = merge_page
    with heard(page, requests_seen, console_errors):
        stand_still(page)
        page.get_by_role("tab", name="3 Merge").click()
        if page.evaluate(WRITTEN) != opened:
            write_recipe(page, opened)
            page.wait_for_function(f"opened => {WRITTEN} === opened", arg=opened)
        page.locator("#merge-button:enabled").wait_for()
        yield page


@pytest.fixture(scope="module")
def inspect_page(browser, app_url):
    """One page at Inspect for all tests of a file; ask for `at_inspect`."""
    with long_page(browser, app_url) as page:
        yield page


@pytest.fixture
def at_inspect(inspect_page, requests_seen, console_errors):
    """The Inspect tab with the map of changes and a cell's story, in a page that tests before may have used."""
    page = inspect_page
    with heard(page, requests_seen, console_errors):
        page.get_by_role("tab", name="2 Inspect").click()
        page.get_by_label("Norms and embeddings").uncheck()
        page.get_by_label("Change", exact=True).check()
        page.locator("#map .heatmaplayer").first.wait_for()
        page.locator("#map .chart-title", has_text="How far each expert moved").wait_for()
        # what comes after the report is there too, so that nothing moves or is drawn anew under a click
        page.locator("#histogram .chart-note", has_text="left by a density of").wait_for()
        stand_still(page)
        yield page


def stand_still(page) -> None:
    """Wait until the page has asked for nothing for half a second and has every answer."""
    page.evaluate("window.stillSince = 0")
    page.wait_for_function(
        """() => {
          const now = performance.now();
          if (awaitedAnswers() || !window.stillSince) window.stillSince = now;
          return now - window.stillSince > 500;
        }"""
    )


def write_recipe(page, text: str) -> None:
    """Type a recipe and take it."""
    page.locator("#recipe-yaml .cm-content").click()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.insert_text(text)
    page.locator("#apply-yaml-button:enabled").click()


@pytest.fixture
def reload(console_errors):
    """Load a page anew: `reload(page)`. What the old page says of the streams that break while it closes is no error."""

    def again(page) -> None:
        assert console_errors == []
        page.reload()
        console_errors.clear()

    return again


@pytest.fixture
def quiz(tmp_path):
    """A suite of five items as a file."""
    file = tmp_path / "five.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in QUIZ))
    return file
