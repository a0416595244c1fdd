"""The list of merge methods: grouped, searchable, with the reason beside each that does not fit the chosen models."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from components.family import Family
from merging import METHODS, Method, Recipe
from merging.methods.base import GROUPS

SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


def build_picker(recipe: Recipe, family: Family) -> gr.HTML:
    """The picker as a component; its `input` event and value speak in `picked` and `picker_value`."""
    return gr.HTML(
        picker_value(recipe, family),
        html_template=_template(),
        js_on_load=SCRIPT,
        apply_default_css=False,
        elem_id="merge-method",
    )


def picker_value(recipe: Recipe, family: Family) -> dict[str, Any]:
    """The method a recipe has, and why others do not fit the family."""
    reasons = {name: unfit(method, recipe, family) for name, method in METHODS.items()}
    return {"method": recipe.merge_method, "reasons": {name: why for name, why in reasons.items() if why}}


def picked(value: Any, otherwise: str) -> str:
    """The method a picker's value names; what the browser sends may be anything."""
    name = value.get("method") if isinstance(value, dict) else None
    return name if isinstance(name, str) and name in METHODS else otherwise


def unfit(method: type[Method], recipe: Recipe, family: Family) -> str:
    """Why a method cannot merge the family as it is; empty if it can."""
    experts = len(family.experts)
    wanted = method.experts_wanted or 1
    if experts < wanted:
        return f"Needs {wanted} expert{'s' if wanted > 1 else ''}, there {'is' if experts == 1 else 'are'} {experts}."
    if method.needs_importance and recipe.importance is None:
        return "Needs importance of these experts; choose it to measure it or to use what was measured."
    problems = method().problems(min(experts, method.experts_wanted or experts), "paper")
    return f"{problems[0][:1].upper()}{problems[0][1:]}." if problems else ""


def groups() -> Iterator[tuple[str, list[type[Method]]]]:
    """Headings in their order, each with its methods."""
    for word, heading in GROUPS.items():
        methods = [method for method in METHODS.values() if method.group == word]
        if methods:
            yield heading, methods


def _template() -> str:
    """Everything but the choice; it holds no text from outside."""
    body = "".join(
        f'<fieldset class="mg-group"><legend>{html.escape(heading)}</legend>{"".join(map(_option, methods))}</fieldset>'
        for heading, methods in groups()
    )
    return (
        '<details class="mg-picker" open><summary><span>Method</span><strong class="mg-now"></strong></summary>'
        f'<input type="search" placeholder="Search {len(METHODS)} methods" aria-label="Search the methods">'
        f'<div class="mg-list" role="radiogroup" aria-label="Method" tabindex="-1">{body}'
        '<p class="mg-none" hidden>No method has all these words.</p></div></details>'
    )


def _option(method: type[Method]) -> str:
    words = f"{method.name} {method.title} {method.when_to_use}".lower()
    return (
        f'<label data-words="{html.escape(words, quote=True)}">'
        f'<input type="radio" name="merge-method" value="{method.name}">'
        f"<span><strong>{html.escape(method.title)}</strong> {html.escape(method.when_to_use)}"
        '<em class="mg-reason"></em></span></label>'
    )
