"""Tune: a search over the numbers of the recipe under Merge, judged by validation files and never by test files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from components.clickable_plot import clickable_plot
from components.compare import tune_events as events
from components.compare.loading import Loader
from components.compare.questions import Questions, build_questions, wire_questions
from components.compare.runner import PRIVATE, Runner, Work, build_runner, wire_runner
from components.compare.tune_events import MOST_TRIALS
from components.compare.tune_job import FINAL, KIND
from components.compare.tune_views import strategies_for
from components.family import Family
from components.late_choice import LateRadio
from components.merge.recipe import default_recipe
from components.server.settings import Settings
from components.server.zero_gpu import LENT, MOST_SECONDS
from components.shared import Shared

EMPTY = "No search yet. Press Tune: every trial is a merge in memory, and appears here as a dot as soon as it is scored."
WHY = (
    '<p class="quiet cm-why">Judged by the validation files only. A search keeps whatever happens to suit the questions it '
    "sees, so its score on them is too good; the test files stay unseen until the one comparison at the end.</p>"
)
SHORT = (
    f'<p class="quiet cm-why">Large models are searched on a GPU that is lent for at most {MOST_SECONDS} seconds at a time. '
    "A search that would take longer ends then, with the best trial until then.</p>"
)
ENDINGS = {
    "cancelled": "Cancelled. The best trial until then is kept.",
    "interrupted": "Interrupted: Mergescope was stopped while this ran. The best trial until then is kept.",
}
FINAL_ENDINGS = {
    "cancelled": "Cancelled. Nothing was compared.",
    "interrupted": "Interrupted: Mergescope was stopped while this ran. Compare again.",
}


@dataclass(frozen=True)
class TunePart:
    """The components; `tested` runs the one comparison on the test files."""

    about: gr.HTML
    strategy: gr.Radio
    unit: gr.Radio
    budget: gr.Number
    questions: Questions
    runner: Runner
    plot: gr.HTML
    result: gr.Column
    best: gr.HTML
    load: gr.Button
    save: gr.Button
    saved: gr.HTML
    yaml: gr.Code
    tested: Runner
    test: gr.HTML
    more: gr.Accordion
    parallel: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [
            self.plot, self.result, self.best, self.yaml, self.save, self.saved, self.tested.run, self.test, self.more,
            self.parallel,
        ]  # fmt: skip


def build_tune(settings: Settings) -> TunePart:
    """Build the part over the demo family."""
    parts: dict[str, Any] = {}
    gr.HTML(
        '<div class="section-head"><h2>Which values suit these experts best?</h2><p>A search over the numbers of the recipe '
        "under Merge; its method and its experts stay.</p></div>"
    )
    parts["about"] = gr.HTML(elem_id="tune-about")
    with gr.Row(elem_classes="cm-questions"):
        parts["strategy"] = LateRadio(
            strategies_for(default_recipe(Family.demo(settings.demo))),
            value="tpe",
            label="Strategy",
            elem_id="tune-strategy",
            min_width=420,
        )
        parts["unit"] = gr.Radio(
            ["trials", "minutes"], value="trials", label="Budget in", elem_classes="segments", min_width=200
        )
        parts["budget"] = gr.Number(
            30, minimum=1, maximum=MOST_TRIALS, label="Budget", min_width=110, elem_id="tune-budget"
        )
    parts["questions"] = build_questions(settings, "tune", None)
    gr.HTML(WHY + SHORT if LENT else WHY)
    parts["runner"] = build_runner("Tune", "tune", width=120)
    parts["plot"] = clickable_plot(empty=EMPTY, name="mergescope-tuning", elem_id="tune-plot")
    with gr.Column(visible=False, elem_id="tune-result", elem_classes="cm-tuned") as parts["result"]:
        _build_result(parts)
    with gr.Accordion(
        "Which values the good trials have", open=False, visible=False, elem_classes="mg-more"
    ) as more:
        parts["parallel"] = clickable_plot(
            empty="Three trials over two numbers are needed for this.",
            name="mergescope-trials",
            elem_id="tune-parallel",
        )
    return TunePart(**parts, more=more)


def _build_result(parts: dict[str, Any]) -> None:
    """The best trial, what can be done with it, and the one look at the test files."""
    parts["best"] = gr.HTML(elem_id="tune-best")
    with gr.Row(elem_classes="actions"):
        parts["load"] = gr.Button(
            "Load into Merge", variant="primary", size="sm", scale=0, min_width=150, elem_id="tune-load"
        )
        parts["save"] = gr.Button("Save to history", size="sm", scale=0, min_width=150, elem_id="tune-save")
    parts["saved"] = gr.HTML(elem_id="tune-saved", elem_classes="status")
    parts["yaml"] = gr.Code(
        language="yaml",
        label="The tuned recipe (YAML)",
        lines=4,
        interactive=False,
        wrap_lines=True,
        show_line_numbers=False,
        buttons=["copy", "download"],
        elem_id="tune-yaml",
    )
    parts["tested"] = build_runner("Compare with the untuned on the test files", "tune-final", width=330)
    parts["test"] = gr.HTML(elem_id="tune-outcome")


def wire_tune(
    part: TunePart,
    settings: Settings,
    shared: Shared,
    own: gr.State,
    loader: Loader,
    came: Sequence[Any],
) -> None:
    """Connect the part's events.

    Args:
        own: what the visitor uploaded, a `Ruler`.
        came: the events of a visitor coming to this part.
    """
    recipe = loader.merge.recipe
    wire_questions(part.questions, settings, shared.family, own, came)
    gr.on(
        came,
        events.offer,
        [recipe, shared.family, part.strategy],
        [part.about, part.strategy],
        **PRIVATE,
    )
    part.unit.change(partial(events.budget_of, settings), part.unit, part.budget, **PRIVATE)
    said = [recipe, own, part.strategy, part.unit, part.budget, *part.questions.inputs]
    search = Work(
        settings,
        KIND,
        partial(events.begin, settings),
        partial(events.show, settings),
        inputs=said,
        outputs=part.outputs,
        endings=ENDINGS,
        failure="The search was not started",
    )
    wire_runner(part.runner, search, shared, came)
    tested = Work(
        settings,
        FINAL,
        partial(events.begin_final, settings),
        partial(events.show_final, settings),
        outputs=[part.test],
        ready=partial(events.can_final, settings),
        endings=FINAL_ENDINGS,
        failure="Nothing was compared",
    )
    wire_runner(part.tested, tested, shared, came)
    loader.wire(part.load, partial(events.best_recipe, search), [])
    part.save.click(
        partial(events.save, search), [shared.family, shared.owner], [part.saved, part.save], **PRIVATE
    )
