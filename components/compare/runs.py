"""What happens in the History part of the Compare tab: plain functions from values to values.

Ids come from the browser and mean nothing until the history has found them for this owner.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from components.compare.page import said, warn
from components.compare.rows import when
from components.compare.views import percent
from components.family import Family
from components.merge.events import refill
from components.merge.form import MergeForm
from components.merge.yaml import from_yaml
from components.server.backend import run_history
from components.server.settings import Settings
from components.shared import owner_id
from components.tables import html_table
from components.toasts import toast
from merging import MergingError, Recipe
from merging.judging.history import Run, Score
from merging.recipe_diff import diff

MOST_LISTED = 200
MOST_SCORES = 4
"""Scores that a line of the list shows."""
EMPTY = (
    '<div class="mg-empty"><strong>No run yet</strong><p>Merge something, or measure the recipe as it stands: every finished '
    "merge and every measured recipe is kept here, with what made it.</p></div>"
)
NO_MATCH = '<div class="mg-empty"><strong>No run has all these words</strong></div>'
GONE = "This run is no longer there."
CARD = 10
"""Outputs that show one run."""

_told: set[str] = set()
"""Remarks on the history file that were made: each is made once."""


def look(settings: Settings, stored: Any, search: Any, chosen: Any) -> list[Any]:
    """The list of runs, what stands in its place where there is none, and the chosen run or the newest one: `CARD`."""
    owner, words = owner_id(settings, stored), search if isinstance(search, str) else ""
    history = run_history(settings)
    try:
        runs = history.list(owner, words)[:MOST_LISTED]
        scores = _by_subject(history.totals(owner, {run.subject for run in runs}))
        remark(settings)
    except MergingError as error:
        warn(error, "The history cannot be shown")
        return [gr.skip(), gr.skip(), *[gr.skip()] * CARD]
    choices = [(line(run, scores.get(run.subject, [])), run.id) for run in runs]
    run = next((run for run in runs if run.id == chosen), runs[0] if runs else None)
    nothing = "" if runs else NO_MATCH if words.strip() else EMPTY
    listed = gr.update(choices=choices, value=run.id if run else None, visible=bool(runs))
    return [listed, nothing, *card(run, runs, scores.get(run.subject, []) if run else [])]


def relist(settings: Settings, stored: Any, search: Any, chosen: Any) -> Any:
    """The list of runs alone: what stands on the card stays."""
    return look(settings, stored, search, chosen)[0]


def remark(settings: Settings) -> None:
    """Say once what a visitor should know of the history file."""
    words = run_history(settings).remark
    if words and words not in _told:
        _told.add(words)
        gr.Warning(html.escape(words), title="Run history")


def _by_subject(totals: Mapping[tuple[str, str], Score]) -> dict[str, list[Score]]:
    found: dict[str, list[Score]] = {}
    for score in sorted(totals.values(), key=lambda score: score.suite):
        found.setdefault(score.subject, []).append(score)
    return found


def line(run: Run, scores: Sequence[Score]) -> str:
    """A run in the list: its name; when, its scores, the beginning of its note."""
    told = [f"{score.suite.partition('/')[0]} {100 * score.value:.0f}" for score in scores[:MOST_SCORES]]
    more = f" +{len(scores) - MOST_SCORES}" if len(scores) > MOST_SCORES else ""
    parts = [
        when(run.created),
        ", ".join(told) + more if told else "not measured",
        run.note.partition("\n")[0][:60],
    ]
    return f"{run.title}\n{' · '.join(part for part in parts if part)}"


def show(settings: Settings, id: Any, stored: Any) -> list[Any]:
    """Another run was chosen: `CARD` outputs."""
    owner, history = owner_id(settings, stored), run_history(settings)
    try:
        run = history.get(owner, id) if isinstance(id, str) else None
        if run is None:
            return card(None, (), ())
        scores = _by_subject(history.totals(owner, [run.subject])).get(run.subject, [])
        return card(run, history.list(owner)[:MOST_LISTED], scores)
    except MergingError as error:
        warn(error, "The run cannot be shown")
        return [gr.skip()] * CARD


def card(run: Run | None, runs: Sequence[Run], scores: Sequence[Score]) -> list[Any]:
    """The run's id, its facts, recipe, note, other runs to compare it with, difference, buttons."""
    there = run is not None
    others = [
        (f"{one.title} ({when(one.created)})", one.id) for one in runs if run is not None and one.id != run.id
    ]
    return [
        run.id if run is not None else "",
        gr.update(visible=there),
        facts_html(run, scores) if run is not None else "",
        gr.update(value=run.recipe if run is not None else ""),
        gr.update(value=run.note if run is not None else ""),
        "",
        gr.update(choices=others, value=None, visible=bool(others)),
        "",
        *ask_again(False),
    ]


def facts_html(run: Run, scores: Sequence[Score]) -> str:
    """What a run is: its models, its time, its scores."""
    models = ", ".join(model.name.rstrip("/").rpartition("/")[2] or model.name for model in run.models)
    took = f"{run.seconds:.1f} s" if run.seconds is not None else "not saved"
    facts = (
        f"<div><dt>When</dt><dd>{html.escape(when(run.created))}</dd></div>"
        f"<div><dt>Merging took</dt><dd>{took}</dd></div>"
        f"<div><dt>Id</dt><dd>{html.escape(run.id[:8])}</dd></div>"
    )
    rows = [
        [
            score.suite,
            percent(score.value),
            f"{100 * score.interval.low:.0f} to {100 * score.interval.high:.0f}",
            f"{score.n:,}",
            "–" if score.seconds is None else f"{score.seconds:.1f} s",
        ]
        for score in scores
    ]
    table = (
        html_table("Scores of this run", ["task", "score", "95 %", "n", "took"], rows, wide=True)
        if rows
        else '<p class="quiet">Not measured yet: choose it under Scores.</p>'
    )
    return (
        f'<h3 class="cm-run">{html.escape(run.title)}</h3><p class="quiet">{html.escape(models)}</p>'
        f'<dl class="tiles">{facts}</dl>{table}'
    )


def differ(settings: Settings, shown: Any, other: Any, stored: Any) -> str:
    """What differs between the recipe of the run on the card and another's."""
    owner, history = owner_id(settings, stored), run_history(settings)
    if not isinstance(shown, str) or not isinstance(other, str):
        return ""
    try:
        one, two = history.get(owner, shown), history.get(owner, other)
        if one is None or two is None:
            return f'<p class="problem" role="alert">{GONE}</p>'
        found = diff(Recipe.from_yaml(two.recipe), Recipe.from_yaml(one.recipe))
    except MergingError as error:
        return f'<p class="problem" role="alert">{html.escape(str(error))}</p>'
    if not found:
        return '<p class="quiet" role="status">Nothing: both recipes come to the same values.</p>'
    rows = [[each.key, each.one or "–", each.other or "–"] for each in found]
    return html_table("What differs", ["key", "the other run", "this run"], rows, wide=True)


def save_note(settings: Settings, id: Any, text: Any, stored: Any) -> str:
    """Keep a run's note; what came of it."""
    try:
        kept = isinstance(id, str) and run_history(settings).note(
            owner_id(settings, stored), id, str(text or "")
        )
    except MergingError as error:
        return f'<p class="problem" role="alert">{html.escape(str(error))}</p>'
    return (
        '<p class="quiet" role="status">Saved.</p>' if kept else f'<p class="problem" role="alert">{GONE}</p>'
    )


def ask_again(asking: bool) -> list[Any]:
    """The buttons to delete, to delete for good, and to keep."""
    return [gr.update(visible=not asking), gr.update(visible=asking)]


def delete(settings: Settings, id: Any, stored: Any, search: Any) -> list[Any]:
    """Forget a run and its scores: see `look`. The saved model, if there is one, stays under Merge."""
    try:
        run_history(settings).delete(owner_id(settings, stored), id if isinstance(id, str) else "")
    except MergingError as error:
        raise toast(said(error), "The run was not deleted") from None
    return look(settings, stored, search, None)


def reload(
    form: MergeForm, settings: Settings, id: Any, stored: Any, recipe: Recipe, family: Family, watched: str
) -> list[Any]:
    """Load a run's recipe into the form of the Merge tab and all that shows it."""
    try:
        run = run_history(settings).get(owner_id(settings, stored), id) if isinstance(id, str) else None
    except MergingError as error:
        raise toast(said(error), NOT_LOADED) from None
    if run is None:
        raise toast(GONE, NOT_LOADED)
    imported, problems = from_yaml(run.recipe, family)
    if imported is None:
        raise toast(" ".join(problems), NOT_LOADED)
    return refill(form, imported, family, watched)


NOT_LOADED = "The settings were not loaded"
