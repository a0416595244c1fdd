"""Merging and talking to the result, in a real browser."""

from __future__ import annotations

import zipfile
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

ENDLESS = "a" * 100
"""The demo models answer this with a long row of letters."""


@pytest.fixture
def at_merge(page):
    page.get_by_role("tab", name="3 Merge").click()
    page.locator("#merge-default-button:enabled").wait_for()
    return page


def recipe(page) -> str:
    return page.locator("#recipe-yaml .cm-content").inner_text()


def wait_for_recipe(page, part: str) -> None:
    page.wait_for_function(
        "part => document.querySelector('#recipe-yaml .cm-content').innerText.includes(part)", arg=part
    )


def write_recipe(page, text: str) -> None:
    page.locator("#recipe-yaml .cm-content").click()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.insert_text(text)
    page.locator("#apply-yaml-button:enabled").click()


def wait_for_result(page, method: str) -> None:
    page.wait_for_function(
        "method => document.querySelector('#merge-result h3')?.innerText.startsWith(method + ' · ')",
        arg=method,
    )
    page.locator("#merge-button:enabled").wait_for()


def test_one_click_then_chat(at_merge, app_url, requests_seen, console_errors):
    page = at_merge
    top = page.locator("#merge-default-button").bounding_box()["y"]
    assert top < page.locator("#merge-method").bounding_box()["y"], "no parameter before the one click"
    page.locator("#merge-default-button").click()
    wait_for_result(page, "Task arithmetic")
    expect(page.locator("#merge-result")).to_contain_text("2.00 MB", timeout=30_000)
    page.locator("#merge-next").click()
    page.locator("#chat-input").wait_for()
    page.wait_for_function(
        "document.querySelector('#chat-model-0 input').value.startsWith('Task arithmetic')"
    )
    page.locator("#chat-example-0").click()
    page.wait_for_function("document.querySelectorAll('[id^=chat-column-] .ch-note .badge').length === 4")
    for number in range(4):
        column = page.locator(f"#chat-column-{number}")
        assert page.locator("#chat-example-0").inner_text() in column.inner_text()
        assert "tokens/s" in column.inner_text()
    local = {urlsplit(app_url).netloc, ""}
    assert {urlsplit(url).netloc for url in requests_seen} <= local
    assert console_errors == []


def test_a_reply_can_be_stopped_and_the_chat_cleared(page):
    page.get_by_role("tab", name="4 Chat").click()
    assert page.locator("#chat-send").is_disabled()
    assert page.locator("#chat-clear").is_disabled()
    page.locator("#chat-input textarea").fill(ENDLESS)
    page.locator("#chat-send").click()
    page.wait_for_function("document.querySelector('#chat-column-1').innerText.includes('tokens/s')")
    page.locator("#chat-stop").click()
    page.locator("#chat-stop:disabled").wait_for(state="attached")
    page.wait_for_timeout(500)
    said = page.locator("#chat-column-1").inner_text()
    page.wait_for_timeout(500)
    assert page.locator("#chat-column-1").inner_text() == said
    page.locator("#chat-clear").click()
    page.wait_for_function("!document.querySelector('#chat-column-1').innerText.includes('aaa')")
    page.locator("#chat-clear:disabled").wait_for(state="attached")


def wait_for_columns(page, *names: str) -> None:
    page.wait_for_function(
        "names => names.every((name, n) => document.querySelector(`#chat-model-${n} input`)?.value.startsWith(name))",
        arg=list(names),
    )


def test_other_models_take_the_columns_and_hear_nothing_old(page, console_errors):
    page.get_by_role("tab", name="4 Chat").click()
    wait_for_columns(page, "", "math", "code", "words")
    page.locator("#chat-example-0").click()
    page.wait_for_function("document.querySelectorAll('[id^=chat-column-] .ch-note .badge').length === 4")
    page.get_by_role("tab", name="1 Models").click()
    for label, model in (("Base", "nowhere"), ("Expert 1", "demo:math-long"), ("Base", "demo:base")):
        field = page.get_by_role("textbox", name=label, exact=True)
        field.fill(model)
        field.press("Enter")
    page.get_by_role("tab", name="4 Chat").click()
    wait_for_columns(page, "", "math-long", "code", "words")
    page.locator("#chat-column-1 .message").wait_for(state="detached")
    assert page.locator(".toast-wrap .toast-body").count() == 0
    assert console_errors == []


def test_chat_with_an_older_merge(at_merge):
    page = at_merge
    for method in ("TIES", "Task arithmetic"):
        page.locator("#merge-method label", has_text=method).click()
        wait_for_recipe(page, "merge_method: " + method.lower().replace(" ", "_"))
        page.locator("#merge-button:enabled").click()
        wait_for_result(page, method)
    page.locator("#merge-history label", has_text="TIES").first.click()
    wait_for_result(page, "TIES")
    page.locator("#merge-next").click()
    wait_for_columns(page, "TIES", "math", "code", "words")


def test_what_is_typed_is_shown_not_run(page):
    page.get_by_role("tab", name="4 Chat").click()
    page.locator("#chat-input textarea").fill("<img src=x onerror=window.ran=1><b>2*3*4</b>")
    page.locator("#chat-input textarea").press("Enter")
    page.wait_for_function("document.querySelector('#chat-column-0').innerText.includes('tokens/s')")
    assert "<b>2*3*4</b>" in page.locator("#chat-column-0").inner_text()
    assert page.locator("#chat-column-0 .message img, #chat-column-0 .message b").count() == 0
    assert page.evaluate("window.ran") is None


def test_form_and_yaml_follow_each_other(at_merge, console_errors):
    page = at_merge
    page.locator("#merge-method label", has_text="SLERP").click()
    wait_for_recipe(page, "merge_method: slerp")
    assert not page.locator("#merge-experts").is_visible()
    page.locator("#merge-partner label", has_text="words").click()
    wait_for_recipe(page, "words")
    assert "math" not in recipe(page)
    page.locator("#merge-method label", has_text="TIES").click()
    page.locator("#merge-experts label", has_text="math").wait_for()
    wait_for_recipe(page, "merge_method: ties")
    write_recipe(
        page,
        "merge_method: ties\nbase_model: examples/demo/base\nmodels:\n- model: examples/demo/math\n"
        "  parameters:\n    weight: 2.5\n- model: examples/demo/code\nparameters:\n  density: 0.25\nprofile: paper\n",
    )
    weight = page.locator("#merge-weight-0 input[type=number]")
    page.wait_for_function("document.querySelector('#merge-weight-0 input[type=number]').value === '2.5'")
    assert page.locator("#merge-density-1 input[type=number]").input_value() == "0.25"
    assert not page.locator("#merge-weight-2").is_visible()
    weight.fill("1.5")
    weight.press("Tab")
    wait_for_recipe(page, "weight: 1.5")
    assert "2 experts" in page.locator("#merge-plan").inner_text()
    assert console_errors == []


def test_a_wrong_recipe_names_its_mistakes_and_cannot_be_merged(at_merge):
    page = at_merge
    write_recipe(
        page,
        "merge_method: ties\nbase_model: examples/demo/base\nmodels:\n- model: examples/demo/math\n"
        "  parameters:\n    densty: 0.5\n- model: /etc\nparameters:\n  lambda: much\n",
    )
    problems = page.locator("#merge-plan li")
    problems.first.wait_for()
    said = " ".join(problems.all_inner_texts())
    assert all(part in said for part in ("'density'", "'/etc'", "'much'"))
    assert page.locator("#merge-button").is_disabled()
    assert "densty" in recipe(page), "what was written stays"
    page.locator("#merge-method label", has_text="Linear").click()
    wait_for_recipe(page, "merge_method: linear")
    page.locator("#merge-button:enabled").wait_for()


def test_a_reload_keeps_the_merges_and_they_can_be_had_and_deleted(at_merge, tmp_path):
    page = at_merge
    page.locator("#merge-method label", has_text="Task arithmetic").click()
    wait_for_recipe(page, "task_arithmetic")
    page.locator("#merge-button").click()
    wait_for_result(page, "Task arithmetic")
    page.reload()
    page.get_by_role("tab", name="3 Merge").click()
    wait_for_result(page, "Task arithmetic")
    with page.expect_download() as download:
        page.locator("#merge-download").click()
    download.value.save_as(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert "task-arithmetic-math-code-words/model.safetensors" in archive.namelist()
    count = page.locator("#merge-history label").count()
    page.locator("#merge-reuse").click()
    wait_for_recipe(page, "task_arithmetic")
    page.locator("#merge-delete").click()
    page.wait_for_function(
        "count => document.querySelectorAll('#merge-history label').length === count - 1", arg=count
    )


@pytest.mark.parametrize("dark", [False, True])
def test_merge_and_chat_fit_a_phone(open_page, dark):
    page = open_page(390, dark=dark)
    for name, ready in (("3 Merge", "#merge-plan"), ("4 Chat", "#chat-column-3")):
        page.get_by_role("tab", name=name).click()
        page.locator(ready).wait_for()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    first, second = (page.locator(f"#chat-column-{number}").bounding_box() for number in (0, 1))
    assert second["y"] >= first["y"] + first["height"], "columns are stacked"
