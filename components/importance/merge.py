"""The piece of the Merge tab on importance: which one an APL merge uses, or a way to measure it."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from components.family import Family
from components.importance import events
from components.importance.job import Found, load
from components.importance.tab import PRIVATE, ImportanceSection
from components.importance.views import UNITS, recommendation, told
from components.merge.events import refill
from components.merge.form import IN_TURN, MergeForm
from components.merge.recipe import at_root, reference
from components.server.settings import Settings
from components.shared import Shared
from merging import METHODS, Recipe


@dataclass(frozen=True)
class ImportanceNotice:
    """What stands above the form of a method that needs importance."""

    whole: gr.Column
    text: gr.HTML
    compute: gr.Button
    cancel: gr.Button
    progress: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [self.whole, self.text, self.compute]


def build_importance_notice() -> ImportanceNotice:
    """Build the notice; it appears with a method that needs importance."""
    with gr.Column(visible=False, elem_id="merge-importance", elem_classes="im-merge") as whole:
        text = gr.HTML()
        progress = gr.HTML(elem_classes="status", elem_id="merge-importance-progress")
        with gr.Row(elem_classes="actions"):
            compute = gr.Button(
                "Compute importance",
                size="sm",
                variant="primary",
                scale=0,
                min_width=170,
                elem_id="merge-importance-compute",
            )
            cancel = gr.Button("Cancel", size="sm", scale=0, min_width=100, visible=False, interactive=False)
    return ImportanceNotice(whole, text, compute, cancel, progress)


def wire_importance_notice(
    notice: ImportanceNotice, merge: Any, section: ImportanceSection, settings: Settings, shared: Shared
) -> None:
    """Give recipes that need importance what was measured, and offer to measure it. `merge` is the Merge tab."""
    shown = [merge.recipe, merge.yaml, merge.apply, merge.plan, merge.ready, merge.merge, merge.advice]
    filled = [*shown, *merge.form.outputs, *notice.outputs]
    state = [merge.recipe, shared.family, merge.watched, shared.importance]
    latest: dict[str, Any] = {"trigger_mode": "always_last", **PRIVATE}
    # Gradio cannot tell whether a state that holds a recipe changed; its YAML always changes with it
    for change, newest in ((merge.yaml.change, False), (shared.importance.change, True)):
        change(partial(settle, settings, merge.form, newest), state, filled, **latest, **IN_TURN)
    notice.compute.click(
        partial(events.start_default, settings), [shared.family, shared.owner], section.running, **PRIVATE
    )
    notice.cancel.click(
        partial(events.cancel, settings), [section.watched, shared.owner], section.cancel, **PRIVATE
    )
    section.progress.change(
        follow, section.progress, [notice.progress, notice.compute, notice.cancel], **PRIVATE
    )


def follow(progress: str | None) -> list[Any]:
    """The running measurement as the notice shows it: progress, the buttons Compute and Cancel."""
    active = bool(progress)
    return [progress or "", gr.update(interactive=not active), gr.update(visible=active, interactive=active)]


def settle(
    settings: Settings,
    form: MergeForm,
    newest: bool,
    recipe: Recipe,
    family: Family,
    watched: str,
    found: Found | None,
) -> list[Any]:
    """The recipe with the importance it needs and none that it does not, all that shows it, and the notice.

    Args:
        newest: replace an earlier measurement, too.
    """
    fitting = found if found is not None and found.family == family else None
    settled = with_importance(recipe, fitting, newest=newest)
    unchanged = [gr.skip() for _ in range(7 + len(form.outputs))]
    filled = unchanged if settled == recipe else refill(form, settled, family, watched)
    return [*filled, *show_notice(settings, settled, family, fitting)]


def with_importance(recipe: Recipe, found: Found | None, *, newest: bool) -> Recipe:
    """The recipe naming the file its method uses; one it names already stays while it exists, unless `newest`."""
    importance = recipe.importance
    if not METHODS[recipe.merge_method].needs_importance:
        importance = None
    elif found is not None and (newest or importance is None or not recipe.locate(importance).is_file()):
        importance = reference(str(found.path))
    return recipe if importance == recipe.importance else at_root(_copy(recipe, importance))


def _copy(recipe: Recipe, importance: str | None) -> Recipe:
    return recipe.model_copy(update={"importance": importance})


def show_notice(settings: Settings, recipe: Recipe, family: Family, found: Found | None) -> list[Any]:
    """Whether the notice is there, its text, and whether it offers to compute."""
    if not METHODS[recipe.merge_method].needs_importance:
        return [gr.update(visible=False), "", gr.skip()]
    file = recipe.locate(recipe.importance).resolve() if recipe.importance is not None else None
    known = load(file) if file is not None else None
    if known is not None:
        mine = found is not None and file == found.path
        agreement = (found.agreement if mine and found is not None else None) or known.agreement
        names = ", ".join(one.name for one in known.experts)
        words = (
            f"<strong>Uses importance</strong> measured by {html.escape(told(known))}, by {UNITS[known.partition]}, on "
            f"{html.escape(names)}. A reconstruction of APL."
        )
        look = "im-good" if agreement is not None and agreement.recommended else "im-note"
        said = f'<p>{words}</p><p class="{look}">{html.escape(recommendation(agreement, known.how))}</p>'
        return [gr.update(visible=True), said, gr.update(visible=False)]
    offered = events.has_defaults(settings, family)
    remedy = (
        "Compute it here on the demo's examples, or with examples of your own on the Inspect tab."
        if offered
        else "Give a few examples of each expert's task on the Inspect tab, under “Importance (APL)”, and compute it there."
    )
    missing = (
        f"<p><strong>Importance is missing.</strong> It has not been measured for these models. {remedy}</p>"
    )
    return [gr.update(visible=True), missing, gr.update(visible=offered)]
