"""Merging and talking to the result, in a real browser."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from components.forms import for_each_expert, is_rare, merge_wide
from merging import METHODS
from tests.browser.conftest import stand_still, unanswered, write_recipe

pytestmark = pytest.mark.browser

ENDLESS = "a" * 100
"""The demo models answer this with a long row of letters."""
MARKUP = "<img src=x onerror=window.ran=1><b>2*3*4</b>"
STOP_AT_FIRST_WORDS = """() => {
  const look = setInterval(() => {
    const stop = document.querySelector('#chat-stop');
    if (stop.disabled || !document.querySelector('#chat-column-1').innerText.includes('tokens/s')) return;
    clearInterval(look);
    stop.click();
    window.stopped = true;
  }, 5);
}"""
"""A reply takes less time than the way of a click through a busy machine, so the page itself presses Stop."""


def recipe(page) -> str:
    return page.locator("#recipe-yaml .cm-content").inner_text()


def wait_for_recipe(page, part: str) -> None:
    page.wait_for_function(
        "part => document.querySelector('#recipe-yaml .cm-content')?.innerText?.includes(part)", arg=part
    )


def choose(page, method: str) -> None:
    page.locator(f"#merge-method label:has(input[value='{method}'])").click()
    wait_for_recipe(page, f"merge_method: {method}\n")


def merge(page, button: str, method: str) -> None:
    """Press a button and wait until a merge that was not there before is done: what earlier tests merged looks alike."""
    newest = "document.querySelector('#merge-history input')?.value"
    before = page.evaluate(newest)
    page.locator(button).click()
    page.wait_for_function(f"before => {newest} !== before", arg=before)
    wait_for_result(page, method)


def wait_for_result(page, method: str) -> None:
    page.wait_for_function(
        "method => document.querySelector('#merge-result h3')?.innerText.startsWith(method + ' · ')",
        arg=method,
    )
    page.locator("#merge-button:enabled").wait_for()


def fill(page, **numbers: str) -> None:
    for name, typed in numbers.items():
        number = page.locator(f"#chat-{name.replace('_', '-')} input[type=number]")
        number.fill(typed)
        number.press("Tab")


def test_a_conversation(page, tmp_path, console_errors):
    """Asked, tried again, taken home, cleared, and stopped; what is typed is shown, not run."""
    page.get_by_role("tab", name="4 Chat").click()
    buttons = page.locator("#chat-send, #chat-retry, #chat-clear, #chat-export")
    assert buttons.evaluate_all("all => all.length === 4 && all.every(b => b.disabled)")
    page.get_by_role("button", name="Settings of the replies").click()
    page.locator("#chat-system textarea").fill("Answer in one word.")
    fill(page, temperature="2", max_new_tokens="9")
    page.locator("#chat-input textarea").fill(MARKUP)
    page.locator("#chat-input textarea").press("Enter")
    page.locator("#chat-retry:enabled").wait_for()
    page.locator("#chat-input textarea").fill("typed meanwhile")
    page.locator("#chat-retry").click()
    expect(page.locator("#chat-seed input")).to_have_value("1")
    page.locator("#chat-export:enabled").wait_for()
    for number in range(4):
        column = page.locator(f"#chat-column-{number}")
        expect(column.locator(".message.user")).to_have_text(MARKUP)
        expect(column.locator(".ch-note")).to_contain_text("its chat template takes no system prompt")
        assert column.locator(".message img, .message b").count() == 0
    assert page.evaluate("window.ran") is None
    expect(page.locator("#chat-input textarea")).to_have_value("typed meanwhile")
    with page.expect_download() as started:
        page.locator("#chat-export").click()
    started.value.save_as(tmp_path / "chat.zip")
    with zipfile.ZipFile(tmp_path / "chat.zip") as archive:
        (turn,) = json.loads(archive.read("mergescope-chat/chat.json"))["turns"]
    assert (turn["sampling"]["seed"], turn["system_prompt"], len(turn["replies"])) == (
        1,
        "Answer in one word.",
        4,
    )
    page.locator("#chat-clear").click()
    page.locator("#chat-clear:disabled").wait_for(state="attached")
    expect(page.locator("#chat-column-1 .message")).to_have_count(0)
    fill(page, temperature="0", max_new_tokens="512")
    page.locator("#chat-input textarea").fill(ENDLESS)
    page.evaluate(STOP_AT_FIRST_WORDS)
    page.locator("#chat-send").click()
    page.wait_for_function("window.stopped")
    page.locator("#chat-stop:disabled").wait_for(state="attached")
    stand_still(page)
    said = page.locator("#chat-column-1").inner_text()
    page.wait_for_timeout(500)
    assert page.locator("#chat-column-1").inner_text() == said
    assert console_errors == []


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


def test_form_and_yaml_follow_each_other(at_merge, console_errors):
    page = at_merge
    choose(page, "slerp")
    assert not page.locator("#merge-experts").is_visible()
    page.locator("#merge-partner label", has_text="words").click()
    wait_for_recipe(page, "words")
    assert "math" not in recipe(page)
    choose(page, "ties")
    page.locator("#merge-experts label", has_text="math").wait_for()
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
    choose(page, "linear")
    page.locator("#merge-button:enabled").wait_for()


def test_a_merge_outlives_a_reload_and_is_taken_on(page, tmp_path, reload, console_errors):
    """It is found again, downloaded, taken as an expert of the next, found among those of other models, and deleted."""
    page.get_by_role("tab", name="3 Merge").click()
    merge(page, "#merge-default-button:enabled", "Task arithmetic")
    stand_still(page)
    reload(page)
    page.get_by_role("tab", name="3 Merge").click()
    wait_for_result(page, "Task arithmetic")
    with page.expect_download() as download:
        page.locator("#merge-download").click()
    download.value.save_as(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert {Path(name).name for name in archive.namelist()} > {"model.safetensors", "config.json"}
    page.locator("#merge-reuse").click()
    wait_for_recipe(page, "merge_method: task_arithmetic")
    page.locator("#merge-as-expert:visible").click()
    last = page.locator(".model:visible").last
    expect(last).to_contain_text("A merge: Task arithmetic of math, code and words over base.")
    expect(last).to_contain_text("Fits the base")
    other = page.get_by_role("textbox", name="Expert 1", exact=True)
    other.fill("demo:math-long")
    other.press("Enter")
    page.get_by_role("tab", name="3 Merge").click()
    wait_for_recipe(page, "math-long")
    expect(page.locator("#merge-result")).to_contain_text("No merge of these models yet")
    expect(page.locator("#merge-next")).to_be_hidden()
    page.wait_for_function("document.querySelector('#merge-result').getBoundingClientRect().height < 60")
    history = page.locator("#merge-history label")
    expect(page.locator("#merge-history label.selected")).to_have_count(0)
    history.first.click()
    wait_for_result(page, "Task arithmetic")
    page.locator("#merge-next").wait_for()
    count = history.count()
    page.locator("#merge-delete").click()
    expect(history).to_have_count(count - 1)
    assert console_errors == []


@pytest.mark.parametrize("method", ["nuslerp", "della"])
def test_a_method_shows_its_form(at_merge, console_errors, method):
    page = at_merge
    choose(page, method)
    page.locator("#merge-about h3", has_text=METHODS[method].title).wait_for()
    fields = [name for name, field in merge_wide(METHODS[method]).items() if not is_rare(field)]
    expect(page.locator(".mg-fields .mg-field:visible")).to_have_count(len(fields))
    expect(page.locator(".mg-own:visible")).to_have_count(len(for_each_expert(METHODS[method])))
    for text in page.locator(".mg-fields .mg-field:visible .info-text").all_inner_texts():
        assert "preset" in text or "mergekit" in text
    page.locator("#merge-button:enabled").wait_for()
    assert console_errors == []


def test_methods_of_every_kind_merge_and_the_card_offers_only_what_exists(at_merge, console_errors):
    page = at_merge
    page.evaluate(
        """() => {
          window.wrong = 0;
          const look = () => {
            const waiting = document.querySelector('#merge-result').innerText.includes('Merging:');
            if (waiting && document.querySelector('#merge-next')?.offsetParent) window.wrong += 1;
          };
          new MutationObserver(look).observe(document.body, {subtree: true, childList: true, attributes: true});
        }"""
    )
    for method in ("slerp", "pcb"):
        choose(page, method)
        page.locator("#merge-button:enabled").click()
        wait_for_result(page, METHODS[method].title)
        expect(page.locator("#merge-result")).to_contain_text("998 k parameters")
    assert page.evaluate("window.wrong") == 0
    assert console_errors == []


def test_methods_are_searched_and_those_that_do_not_fit_say_why(at_merge):
    page = at_merge
    listed = page.locator("#merge-method label:visible")
    assert listed.count() == len(METHODS)
    search = page.get_by_role("searchbox", name="Search the methods")
    search.fill("random drop")
    names = set(
        page.locator("#merge-method label:visible input").evaluate_all("all => all.map(one => one.value)")
    )
    assert {"dare_linear"} <= names < set(METHODS)
    search.fill("zzz")
    page.get_by_text("No method has all these words.").wait_for()
    search.press("Escape")
    assert listed.count() == len(METHODS)
    choose(page, "apl")
    assert "Needs importance" in page.locator("#merge-method label.selected").inner_text()
    page.locator("#merge-plan li", has_text="importance: missing").wait_for()
    expect(page.locator("#merge-button")).to_be_disabled()


def test_the_keyboard_chooses_a_method(at_merge):
    page = at_merge
    page.locator("#merge-method input[value=linear]").focus()
    page.keyboard.press("ArrowDown")
    wait_for_recipe(page, "merge_method: task_arithmetic")
    expect(page.locator("#merge-method label.selected strong")).to_have_text("Task arithmetic")


def test_a_wrong_value_is_named_at_its_field_at_once(at_merge, console_errors):
    page = at_merge
    choose(page, "dppa")
    levels = page.locator("#merge-levels input")
    levels.press("End")
    levels.press_sequentially("x")
    page.locator("#merge-levels.mg-wrong .info-text", has_text="no list of numbers").wait_for()
    expect(page.locator("#merge-button")).to_be_disabled()
    levels.press("Backspace")
    page.locator("#merge-button:enabled").wait_for()
    assert page.locator(".mg-wrong").count() == 0
    choose(page, "della")
    epsilon = page.locator("#merge-epsilon-1 input[type=number]")
    epsilon.fill("0.5")
    epsilon.press("Tab")
    page.locator("#merge-epsilon .mg-fault", has_text="does not fit density").wait_for()
    expect(page.locator("#merge-button")).to_be_disabled()
    assert console_errors == []


def test_a_number_beyond_its_slider_is_shown_and_merged_alike(at_merge, console_errors):
    page = at_merge
    choose(page, "ties")
    weight = page.locator("#merge-weight-0 input[type=number]")
    for typed, taken in (("", "1"), ("-3", "0"), ("1e9", "2"), ("1.5", "1.5")):
        weight.fill("")
        weight.press_sequentially(typed)
        weight.press("Tab")
        expect(weight).to_have_value(taken)
        if taken == "1":
            page.wait_for_function(
                "() => !document.querySelector('#recipe-yaml').innerText.includes('weight')"
            )
        else:
            wait_for_recipe(page, f"weight: {taken}\n")
        expect(page.locator("#merge-plan")).not_to_contain_text("Error")
    assert console_errors == []


def test_a_merge_started_at_once_takes_the_number_just_typed(at_merge, console_errors):
    page = at_merge
    choose(page, "ties")
    page.locator("#merge-lambda input").fill("0.375")
    page.locator("#merge-button").click()
    page.locator("#merge-result h3", has_text="lambda 0.375").wait_for()
    wait_for_recipe(page, "lambda: 0.375")
    assert console_errors == []


def press(page, button, held: int) -> None:
    """Press a button without waiting for anything, and hold it for so many milliseconds."""
    button.scroll_into_view_if_needed()
    box = button.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.wait_for_timeout(held)
    page.mouse.up()


def test_a_new_seed_keeps_the_number_just_typed(at_merge, quiet, console_errors):
    page = at_merge
    choose(page, "dare_ties")
    quiet(page)
    button, seed = page.get_by_role("button", name="New seed"), page.locator("#merge-seed input")
    button.scroll_into_view_if_needed()
    before = seed.input_value()
    page.locator("#merge-density-0 input[type=number]").fill("0.37")
    press(page, button, 0)
    expect(seed).not_to_have_value(before)
    wait_for_recipe(page, f"seed: {seed.input_value()}")
    wait_for_recipe(page, "density: 0.37")
    quiet(page)
    assert f"seed: {seed.input_value()}" in recipe(page), "nothing older comes after it"
    assert "density: 0.37" in recipe(page)
    expect(page.locator("#merge-density-0 input[type=number]")).to_have_value("0.37")
    assert console_errors == []


def test_a_preset_is_not_undone_by_the_number_just_typed(at_merge, quiet, console_errors):
    page = at_merge
    choose(page, "ties")
    quiet(page)
    preset = page.locator("#merge-preset")
    preset.scroll_into_view_if_needed()
    page.locator("#merge-lambda input").fill("0.375")
    press(page, preset, 120)
    page.locator("#merge-note", has_text="back at its paper's value").wait_for()
    expect(page.locator("#merge-lambda input")).to_have_value("1")
    quiet(page)
    assert "0.375" not in recipe(page)
    expect(page.locator("#merge-lambda input")).to_have_value("1")
    assert console_errors == []


def test_numbers_typed_while_the_server_is_slow_keep_their_place(at_merge, quiet, console_errors):
    page = at_merge
    choose(page, "dare_ties")
    quiet(page)
    density, preset = page.locator("#merge-density-0 input[type=number]"), page.locator("#merge-preset")
    preset.scroll_into_view_if_needed()
    with unanswered(page) as answer:
        for typed in ("0.31", "0.32", "0.33"):
            density.fill(typed)
            page.wait_for_timeout(450)
        press(page, preset, 0)
        page.wait_for_timeout(500)
        answer()
    expect(density).to_have_value("0.8")
    quiet(page)
    assert "density" not in recipe(page)
    assert console_errors == []


def test_profile_presets_and_advice(at_merge):
    page = at_merge
    choose(page, "dare_ties")
    density = page.locator("#merge-density-0 input[type=number]")
    density.fill("0.3")
    density.press("Tab")
    page.locator("#merge-advice", has_text="of the base's norm").wait_for()
    page.locator("#merge-profile label", has_text="mergekit").click()
    page.locator("#merge-note", has_text="rescale expected → l1").wait_for()
    expect(page.locator("#merge-density-1 input[type=number]")).to_have_value("1")
    expect(density).to_have_value("0.3")
    page.locator("#merge-preset").click()
    expect(density).to_have_value("0.8")
    expect(page.locator("#merge-advice")).not_to_contain_text("of the base's norm")
    page.get_by_role("button", name="New seed").click()
    wait_for_recipe(page, "seed: ")
    choose(page, "pcb")
    page.locator("#merge-published input").click()
    page.get_by_role("option", name="ratio 0.05").click()
    wait_for_recipe(page, "ratio: 0.05")
