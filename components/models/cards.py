"""The Models tab's cards as HTML. Everything that comes from models or people is escaped here."""

from __future__ import annotations

import html

from components.models.facts import AdapterFacts, Card, Facts, HubFacts
from components.numbers import count, size
from merging import Plan

BADGES = {
    "base": ("badge-plain", "", "All experts are compared with it"),
    "fits": ("badge-good", "✓", "Fits the base"),
    "note": ("badge-note", "!", "Fits, with a note"),
    "misfit": ("badge-bad", "✕", "Does not fit"),
    "unread": ("badge-bad", "✕", "Cannot be read"),
    "waits": ("badge-plain", "", "Not looked up yet"),
    "unknown": ("badge-plain", "", "An adapter"),
}
MOST_TARGETS = 8


def card_html(card: Card, *, is_base: bool) -> str:
    """A card: badge, facts, and what to do where something is wrong."""
    if card.empty:
        what = "the model all experts were tuned from" if is_base else "a model tuned from the base"
        return f'<div class="card card-empty">Name {what}, then press Enter.</div>'
    css, sign, words = BADGES[_state(card, is_base)]
    mark = f'<span aria-hidden="true">{sign}</span> ' if sign else ""
    parts = [
        f'<div class="card-head"><span class="card-name">{html.escape(card.name)}</span>'
        f'<span class="badge {css}">{mark}{words}</span>{"".join(map(_hub_html, card.hub))}</div>'
    ]
    if card.adapter is not None:
        parts.append(_adapter_html(card.adapter))
    elif card.facts is not None:
        parts.append(_facts_html(card.facts))
        if card.facts.lineage:
            said = f"A merge: {card.facts.lineage}."
            parts.append(f'<p class="card-say card-quiet">{html.escape(said)}</p>')
        if card.facts.silent:
            parts.append(f'<p class="card-say card-quiet">{html.escape(card.facts.silent)}</p>')
    for sentence in (*card.problems, *card.warnings):
        parts.append(f'<p class="card-say">{html.escape(sentence)}</p>')
    if card.facts is not None and card.problems and not is_base:
        parts.append('<p class="card-say card-quiet">Left out until this is resolved.</p>')
    return f'<div class="card">{"".join(parts)}</div>'


def asking_html(card: Card) -> str:
    """The same while the Hub is asked."""
    return (
        f'<div class="card"><div class="card-head"><span class="card-name">{html.escape(card.name)}</span></div>'
        '<p class="card-say card-quiet" role="status">Asking the Hub, for headers only.</p></div>'
    )


def _state(card: Card, is_base: bool) -> str:
    if card.waits:
        return "waits"
    if card.facts is None:
        return "unread" if card.problems else "unknown"
    if is_base:
        return "base"
    if card.problems:
        return "misfit"
    return "note" if card.warnings else "fits"


def _hub_html(hub: HubFacts) -> str:
    """Where a model of the Hub comes from, and whether it is here."""
    here = (
        f'<span class="badge badge-note">{size(hub.missing)} to download</span>'
        if hub.missing
        else '<span class="badge badge-plain">downloaded</span>'
    )
    marks = "".join(f'<span class="badge badge-plain">{html.escape(mark)}</span>' for mark in hub.marks)
    return f'{here}{marks}<span class="card-commit">commit {html.escape(hub.commit[:8])}</span>'


def _adapter_html(adapter: AdapterFacts) -> str:
    targets = ", ".join(adapter.targets[:MOST_TARGETS])
    more = len(adapter.targets) - MOST_TARGETS
    cells = [
        ("adapter", "LoRA"),
        ("rank", ", ".join(map(str, adapter.ranks)) or "–"),
        ("alpha", ", ".join(f"{alpha:g}" for alpha in adapter.alphas) or "–"),
        ("size", size(adapter.nbytes)),
        ("trained on", adapter.base or "not stated"),
        ("changes", targets + (f" and {more} more" if more > 0 else "")),
    ]
    return _list_html(cells, "facts facts-adapter")


def _list_html(cells: list[tuple[str, str]], css: str) -> str:
    body = "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in cells)
    return f'<dl class="{css}">{body}</dl>'


def _facts_html(facts: Facts) -> str:
    shape = f"{facts.blocks} × {facts.width}" if facts.width else str(facts.blocks)
    cells = [
        ("parameters", count(facts.parameters)),
        ("blocks × width", shape),
        ("format", ", ".join(facts.dtypes)),
        ("vocabulary", f"{facts.vocabulary:,}" if facts.vocabulary is not None else "–"),
        ("output head", facts.head or "–"),
        ("size", size(facts.nbytes)),
        ("licence", facts.licence or "not stated"),
    ]
    return _list_html(cells, "facts")


def estimate_html(plan: Plan | None, listed: int, missing: int = 0) -> str:
    """The line under the cards: what a merge of this family costs, `missing` bytes of download among it."""
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
        *([("to download", size(missing))] if missing else []),
    ]
    return _list_html(cells, "tiles")
