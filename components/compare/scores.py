"""The Scores part of the Compare tab: what to measure, who, the board, its figures, and two rows beside each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from components.chat.recipe import RECIPE
from components.clickable_plot import clickable_plot
from components.compare.events import beside
from components.compare.shown import PICK_TWO
from components.compare.suites import DEMO, SPLITS, demo_tasks
from components.compare.views import NOTHING_YET
from components.compare.who import STANDING
from components.family import Family
from components.late_choice import LateCheckboxGroup, LateDropdown
from components.server.settings import Settings

TICK = 0.4
"""Seconds between two looks at a running job."""
SORTING = """
let wanted = null;
function sort() {
  const body = element.querySelector('.cm-board tbody');
  if (!body || !wanted) return;
  const rows = [...body.rows];
  const value = (row) => row.cells[wanted.place].dataset.sort;
  const order = (one, other) => {
    if (wanted.place === 0) return one.cells[0].innerText.localeCompare(other.cells[0].innerText) * wanted.sign;
    if (!value(one) || !value(other)) return Number(!value(one)) - Number(!value(other));
    return (Number(value(one)) - Number(value(other))) * wanted.sign;
  };
  rows.sort(order).forEach((row) => body.append(row));
  element.querySelectorAll('.cm-board thead th').forEach((head, place) => {
    const here = place === wanted.place;
    head.setAttribute('aria-sort', here ? (wanted.sign > 0 ? 'ascending' : 'descending') : 'none');
  });
}
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-place]');
  if (!button) return;
  const place = Number(button.dataset.place);
  const first = place === 0 ? 1 : -1;
  wanted = {place, sign: wanted && wanted.place === place ? -wanted.sign : first};
  sort();
});
watch('value', () => setTimeout(sort));
"""
"""A click on a header sorts the rows by its column, the largest first; a new table keeps the order."""


@dataclass(frozen=True)
class ScoresPart:
    """The components; `watched` holds the id of the job that waits or runs, `seen` how many scores the page shows,
    `newest` the merge that was the newest when somebody came last."""

    what: gr.CheckboxGroup
    split: gr.Radio
    upload: gr.UploadButton
    text: gr.Textbox
    add_text: gr.Button
    text_upload: gr.UploadButton
    problem: gr.HTML
    who: gr.CheckboxGroup
    beside: gr.HTML
    plan: gr.HTML
    measure: gr.Button
    cancel: gr.Button
    progress: gr.HTML
    status: gr.HTML
    table: gr.HTML
    figures: gr.Column
    bars: gr.HTML
    across: gr.Dropdown
    up: gr.Dropdown
    pareto: gr.HTML
    before: gr.Dropdown
    after: gr.Dropdown
    task: gr.Dropdown
    comparison: gr.HTML
    timer: gr.Timer
    watched: gr.State
    seen: gr.State
    newest: gr.State

    @property
    def picks(self) -> list[Any]:
        """What is chosen of the board."""
        return [self.across, self.up, self.before, self.after, self.task]

    @property
    def board(self) -> list[Any]:
        """What shows the board."""
        return [
            self.table, self.figures, self.bars, self.across, self.up, self.pareto, self.before, self.after, self.task,
            self.comparison,
        ]  # fmt: skip

    @property
    def running(self) -> list[Any]:
        """What a start, a tick and a reload set."""
        return [self.watched, self.timer, self.progress, self.measure, self.cancel, self.status]


def build_scores(settings: Settings) -> ScoresPart:
    """Build the part over the demo family."""
    family = Family.demo(settings.demo)
    parts: dict[str, Any] = {}
    with gr.Row(elem_classes="section-head"):
        gr.HTML(
            "<h2>What survived the merge?</h2><p>Base, experts and merges answer the same questions; the table says what "
            "each merge kept of every expert.</p>"
        )
    with gr.Row(elem_classes="cm-setup"):
        with gr.Column(min_width=300):
            _build_what(parts, settings, family)
        with gr.Column(min_width=300):
            parts["who"] = LateCheckboxGroup(
                [(STANDING, RECIPE)],
                value=[RECIPE],
                label="Which merges",
                elem_id="compare-who",
                elem_classes="cm-who",
            )
            parts["beside"] = gr.HTML(beside(family))
    _build_go(parts)
    parts["table"] = gr.HTML(
        NOTHING_YET, elem_id="compare-board", js_on_load=SORTING, apply_default_css=False
    )
    with gr.Column(visible=False, elem_classes="cm-figures") as parts["figures"]:
        _build_figures(parts)
    return ScoresPart(
        **parts,
        timer=gr.Timer(TICK, active=False),
        watched=gr.State(""),
        seen=gr.State(0),
        newest=gr.State(""),
    )


def _build_what(parts: dict[str, Any], settings: Settings, family: Family) -> None:
    """Tasks, and what a visitor adds to them."""
    tasks = [(task, DEMO + task) for task in demo_tasks(settings, family)]
    parts["what"] = LateCheckboxGroup(
        tasks, value=[key for _, key in tasks], label="Tasks", elem_id="compare-what"
    )
    parts["split"] = gr.Radio(
        [("test files", "test"), ("validation files", "validation")],
        value=SPLITS[0],
        label="The demo's questions from",
        info="Choose a merge by validation, report it by test.",
        elem_classes="segments",
        elem_id="compare-split",
    )
    with gr.Accordion("Add a suite or a text of your own", open=False, elem_classes="mg-more cm-add"):
        gr.HTML(
            '<p class="quiet">A suite has one item a line: <code>{"prompt": "2 + 3", "answer": "5"}</code>, with '
            '<code>"choices": ["4", "5"]</code> for multiple choice. A first line <code>{"scoring": "normalised"}</code> '
            "ignores case and punctuation. At most 5 MB.</p>"
        )
        with gr.Row(elem_classes="actions"):
            parts["upload"] = gr.UploadButton(
                "Upload a suite (JSONL)",
                file_types=[".jsonl", ".json", ".txt"],
                size="sm",
                scale=0,
                min_width=190,
                elem_id="compare-upload",
            )
        parts["text"] = gr.Textbox(
            lines=4,
            max_lines=10,
            label="Perplexity of a text",
            placeholder="Paste a text that the models should find likely",
            elem_id="compare-text",
        )
        with gr.Row(elem_classes="actions"):
            parts["add_text"] = gr.Button(
                "Add the text", size="sm", scale=0, min_width=130, elem_id="compare-add-text"
            )
            parts["text_upload"] = gr.UploadButton(
                "Upload a text file", file_types=["text"], size="sm", scale=0, min_width=160
            )
    parts["problem"] = gr.HTML(elem_id="compare-problem", elem_classes="status")


def _build_go(parts: dict[str, Any]) -> None:
    """What it comes to, the buttons, and the running job."""
    with gr.Row(elem_classes="mg-go cm-go"):
        parts["plan"] = gr.HTML(elem_id="compare-plan")
        parts["cancel"] = gr.Button(
            "Cancel", scale=0, min_width=110, visible=False, interactive=False, elem_id="compare-cancel"
        )
        parts["measure"] = gr.Button(
            "Measure", variant="primary", scale=0, min_width=130, elem_id="compare-measure"
        )
    parts["progress"] = gr.HTML(elem_id="compare-progress", elem_classes="status")
    parts["status"] = gr.HTML(elem_id="compare-status", elem_classes="status")


def _build_figures(parts: dict[str, Any]) -> None:
    """The scores as bars, two tasks against each other, two rows against each other."""
    parts["bars"] = clickable_plot(
        empty="Measure the models to see their scores.", name="mergescope-scores", elem_id="compare-bars"
    )
    with gr.Row(elem_classes="section-head story-head"):
        gr.HTML("<h2>Two tasks against each other</h2><p>What one gains is often what the other loses.</p>")
        parts["across"] = _dropdown("Across", "compare-across")
        parts["up"] = _dropdown("Up", "compare-up")
    parts["pareto"] = clickable_plot(
        empty="Two tasks and a measured model are needed for this.",
        name="mergescope-pareto",
        elem_id="compare-pareto",
    )
    with gr.Row(elem_classes="section-head story-head"):
        gr.HTML(
            "<h2>Two models on the same items</h2><p>Which questions did one gain, which did it lose, and is the difference "
            "more than chance?</p>"
        )
    with gr.Row(elem_classes="cm-pair"):
        parts["before"] = _dropdown("Before", "compare-before")
        parts["after"] = _dropdown("After", "compare-after")
        parts["task"] = _dropdown("Task", "compare-task")
    parts["comparison"] = gr.HTML(PICK_TWO, elem_id="compare-pairs")


def _dropdown(label: str, id: str) -> gr.Dropdown:
    return LateDropdown([], label=label, filterable=False, min_width=150, elem_id=id)
