"""The search for models of the Hub: nothing is asked before somebody has typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from components.numbers import count
from components.server.backend import hub_desk
from components.server.settings import Settings
from components.shared import owner_id
from merging import MergingError
from merging.hub.client import Found
from merging.references import is_hub_id

SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
LONGEST_QUERY = 100
NOTHING = "No model of the Hub has all these letters in its name."
_TEMPLATE = f"""
<div class="hub-search">
  <label for="hub-query">Search the Hub by name</label>
  <input id="hub-query" type="search" maxlength="{LONGEST_QUERY}" autocomplete="off" spellcheck="false"
    placeholder="such as Qwen2.5-0.5B" aria-controls="hub-found">
  <p class="hub-note" role="status"></p>
  <ul id="hub-found" aria-label="Models found" hidden></ul>
</div>
"""


def build_hub_search() -> gr.HTML:
    """The field and what was found; its `input` event asks, its `select` event names a model and what it shall be."""
    return gr.HTML(html_template=_TEMPLATE, js_on_load=SCRIPT, apply_default_css=False, elem_id="hub-search")


def search(settings: Settings, value: Any, stored: Any) -> dict[str, Any]:
    """What the Hub finds for what was typed, as the field's value; trouble is a quiet line."""
    text = value.get("ask") if isinstance(value, dict) else None
    if not isinstance(text, str) or not text.strip():
        return {"found": [], "note": ""}
    if len(text) > LONGEST_QUERY:
        return {"found": [], "note": f"At most {LONGEST_QUERY} letters are searched for. Type fewer."}
    try:
        found = hub_desk(settings).search(owner_id(settings, stored), text.strip())
    except MergingError as error:
        return {"found": [], "note": str(error), "again": True}
    return {"found": shown(found), "note": "" if found else NOTHING}


def shown(found: Sequence[Found]) -> list[dict[str, Any]]:
    """What the list shows of each model; the browser writes it as plain text."""
    return [
        {"id": one.id, "about": _about(one), "marks": ["gated"] if one.gated else []}
        for one in found
        if is_hub_id(one.id)
    ]


def _about(found: Found) -> str:
    parts = [f"{count(found.downloads)} downloads", f"{count(found.likes)} likes"]
    parts += [found.licence] if found.licence else []
    parts += [f"updated {found.updated:%Y-%m-%d}"] if found.updated else []
    return " · ".join(parts)


def selected(event: gr.EventData) -> tuple[str, str]:
    """The id of a chosen model and its role, `base` or `expert`; empty where the browser sent something else."""
    id, role = (getattr(event, name, "") for name in ("id", "role"))
    if not isinstance(id, str) or not is_hub_id(id) or role not in ("base", "expert"):
        return "", ""
    return id, role
