"""No event is lost or overtaken on its way to the server and back."""

from __future__ import annotations

from typing import Any

LATE_END = """(() => {
  const send = window.fetch;
  window.ends = 0;
  window.fetch = async (input, options) => {
    const response = await send(input, options);
    if (!String(input.url ?? input).includes('/queue/data')) return response;
    const late = new TransformStream({
      async transform(bytes, page) {
        const text = new TextDecoder().decode(bytes);
        const end = text.indexOf('data: {"msg":"close_stream"');
        if (end < 0) return page.enqueue(bytes);
        page.enqueue(new TextEncoder().encode(text.slice(0, end)));
        window.ends += 1;
        await new Promise((arrived) => { window.letEnd = arrived; setTimeout(arrived, 3000); });
        page.enqueue(new TextEncoder().encode(text.slice(end)));
      },
    });
    return new Response(response.body.pipeThrough(late), {headers: response.headers});
  };
})();"""
"""Holds back the server's word that its stream has ended, as a slow network does, until `letEnd` is called."""


def test_an_event_at_the_end_of_the_stream_is_answered(new_window, app_url, console_errors):
    page = new_window()
    page.add_init_script(LATE_END)
    page.goto(app_url)
    page.get_by_text("base + 3 experts").wait_for()
    for _ in range(2):
        ends = page.evaluate("ends")
        page.get_by_role("button", name="Add an expert").click()
        page.wait_for_function("seen => ends > seen", arg=ends)
        field = page.get_by_label("Expert 4")
        with page.expect_response("**/queue/join*"):
            field.fill("/no/such/model")
            field.press("Enter")
        page.evaluate("letEnd()")
        page.get_by_text("there is no such folder").wait_for()
        page.get_by_role("button", name="Remove expert 4").click()
        field.wait_for(state="detached")
    assert console_errors == []


def enter_while_held(page) -> list[Any]:
    """Leave a field and press Enter in the next; the word that the first was left, which comes back, does not reach the server."""
    held: list[Any] = []
    page.get_by_label("Base").focus()
    page.route("**/queue/join*", lambda event: event.continue_() if held else held.append(event))
    field = page.get_by_label("Expert 1", exact=True)
    field.focus()
    page.wait_for_timeout(500)
    field.fill("/no/such/model")
    field.press("Enter")
    return held


def test_events_that_fill_the_same_parts_are_sent_in_their_order(page, quiet, console_errors):
    """The word that the field before was left is late, and Enter was pressed since."""
    held = enter_while_held(page)
    page.wait_for_timeout(1000)
    held[0].continue_()
    refusal = page.get_by_text("there is no such folder")
    refusal.wait_for()
    quiet(page)
    assert refusal.is_visible()
    assert console_errors == []


def test_an_event_that_is_stuck_does_not_stop_the_others(page, console_errors):
    held = enter_while_held(page)
    page.get_by_text("there is no such folder").wait_for()
    assert len(held) == 1
    held[0].continue_()
    page.unroute("**/queue/join*")
    assert console_errors == []


def test_fields_are_not_told_of_events_that_read_them(page):
    """The page asks what to tell to whom by `Object.entries`, and did so for every field that any event had ever read."""
    page.evaluate(
        """() => {
          const entries = Object.entries;
          window.told = new Set();
          Object.entries = (table) => {
            const found = entries(table);
            if (found.every(([, one]) => one?.component_id)) for (const [field] of found) told.add(Number(field));
            return found;
          };
        }"""
    )
    page.get_by_role("tab", name="3 Merge").click()
    page.locator("#merge-method label:has(input[value='linear'])").click()
    page.locator("#recipe-yaml", has_text="merge_method: linear").wait_for()
    read = page.evaluate("gradio_config.dependencies.flatMap((one) => one.inputs)")
    written = page.evaluate(
        "gradio_config.dependencies.flatMap((one) => one.show_progress_on ?? one.outputs)"
    )
    told = set(page.evaluate("[...told]"))
    assert told
    assert len(set(read) - set(written)) > 100
    assert told <= set(written)
