"""The Models tab's cards as HTML. Everything that comes from models or people is escaped here."""

from __future__ import annotations

import html

from components.models import Card, Facts
from components.numbers import count, size
from merging import Plan

BADGES = {
    "base": ("badge-plain", "", "All experts are compared with it"),
    "fits": ("badge-good", "✓", "Fits the base"),
    "note": ("badge-note", "!", "Fits, with a note"),
    "misfit": ("badge-bad", "✕", "Does not fit"),
    "unread": ("badge-bad", "✕", "Cannot be read"),
}


def card_html(card: Card, *, is_base: bool) -> str:
    """A card: badge, facts, and what to do where something is wrong."""
    if card.empty:
        what = "the model all experts were tuned from" if is_base else "a model tuned from the base"
        return f'<div class="card card-empty">Name {what}, then press Enter.</div>'
    css, sign, words = BADGES[_state(card, is_base)]
    mark = f'<span aria-hidden="true">{sign}</span> ' if sign else ""
    parts = [
        f'<div class="card-head"><span class="card-name">{html.escape(card.name)}</span>'
        f'<span class="badge {css}">{mark}{words}</span></div>'
    ]
    if card.facts is not None:
        parts.append(_facts_html(card.facts))
    for sentence in (*card.problems, *card.warnings):
        parts.append(f'<p class="card-say">{html.escape(sentence)}</p>')
    if card.facts is not None and card.problems and not is_base:
        parts.append('<p class="card-say card-quiet">Left out until this is resolved.</p>')
    return f'<div class="card">{"".join(parts)}</div>'


def _state(card: Card, is_base: bool) -> str:
    if card.facts is None:
        return "unread"
    if is_base:
        return "base"
    if card.problems:
        return "misfit"
    return "note" if card.warnings else "fits"


def _facts_html(facts: Facts) -> str:
    shape = f"{facts.blocks} × {facts.width}" if facts.width else str(facts.blocks)
    cells = [
        ("parameters", count(facts.parameters)),
        ("blocks × width", shape),
        ("format", ", ".join(facts.dtypes)),
        ("vocabulary", f"{facts.vocabulary:,}" if facts.vocabulary is not None else "–"),
        ("output head", "tied" if facts.tied else "own"),
        ("size", size(facts.nbytes)),
        ("licence", facts.licence or "not stated"),
    ]
    body = "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in cells)
    return f'<dl class="facts">{body}</dl>'


def estimate_html(plan: Plan | None, listed: int) -> str:
    """The line under the cards: what a merge of this family costs."""
    if plan is None:
        return '<p class="estimate-none">No family yet: it takes a base and at least one expert that fits it.</p>'
    experts = len(plan.experts)
    counted = f"{experts} of {listed} experts" if listed != experts else f"{experts} experts"
    if experts == listed == 1:
        counted = "1 expert"
    cells = [
        ("family", f"base + {counted}"),
        ("result on disk", size(plan.bytes_to_write)),
        ("read for one merge", size(plan.bytes_to_read)),
        ("memory, about", size(plan.memory)),
    ]
    body = "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in cells)
    return f'<dl class="tiles">{body}</dl>'
