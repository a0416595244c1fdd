"""The section of the Inspect tab on importance: examples, options, progress, and how far to trust the result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from components.clickable_plot import clickable_plot
from components.importance import events
from components.importance.events import ROWS
from components.importance.examples import DEMO, FORMAT, LIMITS, MOST_SAMPLES, OWN
from components.importance.views import ABOUT, show_agreement
from components.server.settings import Settings
from components.shared import Shared

CSS = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
TICK = 0.4
"""Seconds between two looks at a running job."""
PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
PLACEHOLDER = '{"prompt": "2 + 3", "answer": "5"}\nseven minus four\tthree'
UNITS = [("blocks", "layer"), ("modules", "module"), ("heads", "head"), ("rows", "row")]
POINTS = [
    ("the base", "base"),
    ("the expert", "expert"),
    ("the midpoint", "midpoint"),
    ("both ends (trapezoid)", "trapezoid"),
]


@dataclass(frozen=True)
class ExampleRow:
    """One expert's examples: where they come from, their text, and what is wrong with it."""

    row: gr.Row
    source: gr.Radio
    text: gr.Textbox
    upload: gr.UploadButton
    problem: gr.HTML


@dataclass(frozen=True)
class ImportanceSection:
    """The components of the section; `watched` holds the id of the job that waits or runs."""

    accordion: gr.Accordion
    rows: tuple[ExampleRow, ...]
    how: gr.Radio
    at: gr.Dropdown
    unit: gr.Dropdown
    samples: gr.Slider
    details: gr.Checkbox
    elements: gr.Checkbox
    compute: gr.Button
    compare: gr.Button
    cancel: gr.Button
    progress: gr.HTML
    status: gr.HTML
    report: gr.HTML
    removal: gr.Column
    curves: gr.HTML
    timer: gr.Timer
    watched: gr.State

    @property
    def running(self) -> list[Any]:
        """What a start, a tick and a reload set."""
        return [
            self.watched, self.timer, self.progress, self.compute, self.compare, self.cancel, self.status
        ]  # fmt: skip


@dataclass(frozen=True)
class ImportanceStory:
    """What importance adds to the story of a cell."""

    whole: gr.Column
    table: gr.HTML
    heads: gr.HTML
    rows: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [self.whole, self.table, self.heads, self.rows]


def build_importance() -> ImportanceSection:
    """Build the section; its rows are filled once the family is known."""
    parts: dict[str, Any] = {}
    with gr.Accordion(
        "Importance (APL): what each task depends on",
        open=False,
        elem_classes="explain",
        elem_id="importance",
    ) as accordion:
        gr.HTML(ABOUT, elem_classes="im-about")
        with gr.Column(elem_classes="im-examples"):
            rows = tuple(_build_row(number) for number in range(ROWS))
        gr.HTML(f'<p class="quiet im-limits">{FORMAT.replace("<", "&lt;")} {LIMITS}</p>')
        _build_options(parts)
        parts["status"] = gr.HTML(elem_id="importance-status", elem_classes="im-status")
        parts["report"] = gr.HTML(elem_id="importance-agreement")
        with gr.Column(visible=False) as parts["removal"]:
            parts["curves"] = clickable_plot(
                empty="Compare with exact intervention to see removal curves.",
                name="mergescope-removal",
                elem_id="importance-curves",
            )
    return ImportanceSection(
        **parts,
        accordion=accordion,
        rows=rows,
        timer=gr.Timer(TICK, active=False),
        watched=gr.State(""),
    )


def _build_row(number: int) -> ExampleRow:
    with gr.Row(visible=number < 3, elem_classes="im-row") as row:
        source = gr.Radio(
            [("the demo's", DEMO), ("paste or upload", OWN)],
            value=DEMO,
            label=f"Examples for expert {number + 1}",
            scale=0,
            min_width=330,
            elem_classes="segments",
            elem_id=f"importance-source-{number}",
        )
        with gr.Column(scale=1, min_width=280, elem_classes="im-own"):
            text = gr.Textbox(
                lines=4,
                max_lines=10,
                placeholder=PLACEHOLDER,
                label=f"Expert {number + 1}: one example a line",
                visible=False,
                elem_id=f"importance-text-{number}",
            )
            upload = gr.UploadButton(
                "Upload a JSONL file",
                file_types=[".jsonl", ".json", ".txt", ".tsv"],
                size="sm",
                visible=False,
                elem_id=f"importance-upload-{number}",
            )
            problem = gr.HTML(elem_id=f"importance-problem-{number}", elem_classes="status")
    return ExampleRow(row, source, text, upload, problem)


def _build_options(parts: dict[str, Any]) -> None:
    """How to measure, the buttons, and the running job."""
    with gr.Row(elem_classes="im-options"):
        parts["how"] = gr.Radio(
            [("gradients (fast)", "gradient"), ("exact intervention (slow)", "exact")],
            value="gradient",
            label="How",
            elem_id="importance-how",
            elem_classes="segments",
            min_width=430,
        )
        parts["at"] = gr.Dropdown(
            POINTS,
            value="base",
            label="Gradients at",
            filterable=False,
            min_width=130,
            elem_id="importance-at",
        )
        parts["unit"] = gr.Dropdown(
            UNITS,
            value="module",
            label="A merge uses it by",
            filterable=False,
            min_width=130,
            elem_id="importance-unit",
        )
        parts["samples"] = gr.Slider(
            1,
            MOST_SAMPLES,
            value=16,
            step=1,
            label="Examples an expert",
            min_width=200,
            elem_id="importance-samples",
        )
        parts["details"] = gr.Checkbox(
            True, label="Heads and rows", info="For the story of a cell: two more passes.", min_width=190
        )
        parts["elements"] = gr.Checkbox(
            False, label="Every weight", info="For APL with drop: taylor; takes more disk.", min_width=190
        )
    with gr.Row(elem_classes="actions im-actions"):
        parts["compute"] = gr.Button(
            "Compute importance", variant="primary", scale=0, min_width=190, elem_id="importance-compute"
        )
        parts["compare"] = gr.Button(
            "Compare with exact intervention (slower)", scale=0, min_width=300, elem_id="importance-compare"
        )
        parts["cancel"] = gr.Button(
            "Cancel", scale=0, min_width=110, visible=False, interactive=False, elem_id="importance-cancel"
        )
    parts["progress"] = gr.HTML(elem_id="importance-progress", elem_classes="status")


def build_importance_story() -> ImportanceStory:
    """The part of a cell's story that appears once importance was measured."""
    with gr.Column(visible=False, elem_id="importance-story") as whole:
        table = gr.HTML(elem_id="importance-cell")
        with gr.Row(elem_classes="pair"):
            with gr.Column(min_width=320):
                heads = clickable_plot(empty="", name="mergescope-heads", elem_id="importance-heads")
            with gr.Column(min_width=320):
                rows = clickable_plot(empty="", name="mergescope-rows", elem_id="importance-rows")
    return ImportanceStory(whole, table, heads, rows)


def wire_importance(section: ImportanceSection, settings: Settings, shared: Shared) -> None:
    """Connect the section's events; `shared.importance` changes when there is something else to show."""
    _wire_rows(section, settings, shared)
    who = [shared.family, shared.owner]
    said = [section.how, section.at, section.unit, section.samples, section.details, section.elements]
    said += [row.source for row in section.rows] + [row.text for row in section.rows]
    for button, compare in ((section.compute, False), (section.compare, True)):
        button.click(partial(events.start, settings, compare), [*who, *said], section.running, **PRIVATE)
    section.cancel.click(
        partial(events.cancel, settings), [section.watched, shared.owner], section.cancel, **PRIVATE
    )
    section.timer.tick(
        partial(events.tick, settings),
        [section.watched, *who],
        section.running,
        trigger_mode="once",
        queue=False,
        **PRIVATE,
    )
    gr.on(
        [shared.opened.change, shared.family.change],
        partial(events.attach, settings),
        who,
        section.running,
        **PRIVATE,
    )
    # calls that bypass the queue, as the timer's, do not trigger a state's change; the status line does
    section.status.change(partial(events.refresh, settings), who, shared.importance, **PRIVATE)
    shared.importance.change(
        show_agreement, shared.importance, [section.report, section.removal, section.curves], **PRIVATE
    )


def _wire_rows(section: ImportanceSection, settings: Settings, shared: Shared) -> None:
    every = [
        part for row in section.rows for part in (row.row, row.source, row.text, row.upload, row.problem)
    ]
    gr.on(
        [shared.opened.change, shared.family.change],
        partial(events.fill_rows, settings),
        shared.family,
        every,
        **PRIVATE,
    )
    for number, row in enumerate(section.rows):
        row.source.input(events.choose_source, row.source, [row.text, row.upload, row.problem], **PRIVATE)
        row.text.blur(partial(events.check_text, number), [shared.family, row.text], row.problem, **PRIVATE)
        row.upload.upload(
            partial(events.take_upload, number),
            [shared.family, row.upload],
            [row.text, row.problem],
            **PRIVATE,
        )
