"""Parts of a tab of which one is shown, and the event of somebody coming to one.

Gradio's tabs will not do inside a tab: after every update of what is in them they send their `select` anew, and with it
the page its changes of states, without end.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import gradio as gr

CSS = """
.page-parts [role="tablist"] { display: flex; flex-wrap: wrap; gap: 6px; }
.page-parts button { font-size: 13.5px; padding: 6px 12px; border: 1px solid transparent; border-radius: 8px; background: none;
  color: var(--body-text-color); cursor: pointer; }
.page-parts button:hover { background: var(--background-fill-secondary); }
.page-parts button[aria-selected="true"] { border-color: var(--color-accent); background: var(--color-accent-soft);
  color: var(--link-text-color); }
.page-parts button:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 2px; }
.page-part { gap: 20px; }
"""
_STRIP = """
const buttons = [...element.querySelectorAll('[role=tab]')];
const rules = document.head.appendChild(document.createElement('style'));
function show(chosen) {
  buttons.forEach((button) => button.setAttribute('aria-selected', String(button === chosen)));
  const others = buttons.filter((button) => button !== chosen).map((button) => '#' + button.dataset.part);
  rules.textContent = `${others.join(', ')} { display: none !important; }`;
}
element.addEventListener('click', (event) => {
  const button = event.target.closest('[role=tab]');
  if (button) show(button);
});
element.addEventListener('keydown', (event) => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  const place = buttons.indexOf(event.target);
  if (!step || place < 0) return;
  const next = buttons[(place + step + buttons.length) % buttons.length];
  next.focus();
  show(next);
});
show(buttons[0]);
"""
_ARRIVAL = """
let here = false;
const look = () => {
  const now = element.offsetParent !== null;
  if (now && !here) trigger('click');
  here = now;
};
new ResizeObserver(look).observe(element);
document.addEventListener('mergescope:family', () => { if (element.isConnected && here) trigger('click'); });
look();
"""
FAMILY_CHANGED = "() => { document.dispatchEvent(new Event('mergescope:family')); }"
"""For an event of the family's change: the parts that are shown are come to anew."""


def build_strip(id: str, parts: Mapping[str, str]) -> gr.HTML:
    """The names of parts, by the key that `page_part` takes; the first is shown until another is chosen."""
    names = "".join(
        f'<button type="button" role="tab" aria-selected="{str(place == 0).lower()}" data-part="{id}-{key}" '
        f'data-tab-id="{key}">{html.escape(name)}</button>'
        for place, (key, name) in enumerate(parts.items())
    )
    strip = f'<div role="tablist" aria-label="Parts of this tab">{names}</div>'
    return gr.HTML(
        html_template=strip, js_on_load=_STRIP, apply_default_css=False, elem_id=id, elem_classes="page-parts"
    )


@contextmanager
def page_part(id: str, key: str) -> Iterator[gr.HTML]:
    """The place of one part of a strip; what it yields has a `click` whenever the part is shown after it was not,
    and where another family is chosen while it is; nothing of a part that nobody sees is asked for."""
    with gr.Column(elem_id=f"{id}-{key}", elem_classes="page-part"):
        yield gr.HTML(js_on_load=_ARRIVAL, apply_default_css=False)
