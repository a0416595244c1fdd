"""Which layers did it: the Chat tab's bars of one answer with one part of a model put back to another's."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from components.chat.heard import (
    ANALYSIS,
    PRIVATE,
    Columns,
    Options,
    Page,
    column_of,
    column_options,
    model_of,
    names,
    problem_html,
)
from components.chat.layer_views import Told
from components.chat.models import Visit
from components.clickable_plot import clickable_plot
from components.late_choice import LateDropdown
from merging import MergingError
from merging.answering.put_back import PartPutBack, PutBack
from merging.heartbeats import Stopped, heartbeats
from merging.inference import LoadedModel

LONGEST_ANSWER = 4000
"""Characters of an answer."""
ABOUT = (
    "<p>One part of the model after another (its embeddings, each block, its end) is put back to the base or to one expert, "
    "and the answer's log-likelihood is measured again: an exact intervention, nothing is estimated. "
    "<strong>A bar downwards</strong>: without this part's change the answer is less likely, so the change there supports "
    "it. <strong>A bar upwards</strong>: the change there works against the answer. Parts act together, so bars do not add "
    "up to the whole difference.</p>"
)
EMPTY = "No bars yet: ask something above, choose a column and what to put back, and press Run."
NOTHING_SAID = "This column has not replied yet. Ask something above, then press Run."
NO_ANSWER = "There is no answer to measure. Type the right one, or ask something above."
OWN = "This column holds that model already. Choose another to put back to."
NO_DONOR = "This model is no longer there. Choose another to put back to."
UNEXPECTED = "Something went wrong while the parts were put back; the server's log has the details."
BUSY = "This page measures already. Cancel that first."

_running: dict[str, threading.Event] = {}
"""What stops the run of each page: one at a time."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerPanel:
    """The components of the panel."""

    column: gr.Dropdown
    donor: gr.Dropdown
    answer: gr.Textbox
    run: gr.Button
    cancel: gr.Button
    said: gr.HTML
    plot: gr.HTML
    table: gr.HTML


def build_layers() -> LayerPanel:
    """Build the panel; `wire_layers` brings it to life."""
    with gr.Accordion(
        "Which layers did it: one part at a time put back to a parent",
        open=False,
        elem_classes="mg-more",
        elem_id="chat-layers",
    ):
        gr.HTML(ABOUT, elem_classes="ch-about")
        with gr.Row(elem_classes="ch-choice"):
            column = LateDropdown(
                [], label="Model of column", filterable=False, min_width=220, elem_id="layers-column"
            )
            donor = LateDropdown(
                [], label="Put back to", filterable=False, min_width=160, elem_id="layers-donor"
            )
            answer = gr.Textbox(
                label="Answer to the last question",
                placeholder="The column's reply, or the right answer",
                lines=1,
                max_lines=4,
                min_width=220,
                elem_id="layers-answer",
            )
        with gr.Row(elem_classes="actions"):
            run = gr.Button(
                "Run", variant="primary", scale=0, min_width=110, interactive=False, elem_id="layers-run"
            )
            cancel = gr.Button("Cancel", scale=0, min_width=110, interactive=False, elem_id="layers-cancel")
        said = gr.HTML(elem_classes="status", elem_id="layers-said")
        plot = clickable_plot(empty=EMPTY, name="mergescope-layers", elem_id="layers-plot")
        table = gr.HTML(elem_id="layers-table")
    return LayerPanel(column, donor, answer, run, cancel, said, plot, table)


def wire_layers(panel: LayerPanel, page: Page) -> None:
    """Connect the panel's events."""
    choice = [panel.column, panel.donor]
    gr.on(
        page.changes,
        page.answers(follow),
        [*page.known, *choice],
        [*choice, panel.answer, panel.run],
        trigger_mode="always_last",
        **PRIVATE,
    )
    panel.column.input(
        page.answers(choose), [*page.known, panel.column], panel.answer, trigger_mode="always_last", **PRIVATE
    )
    shown = [panel.said, panel.plot, panel.table, panel.run, panel.cancel]
    panel.run.click(page.streams(run), [*page.known, *choice, panel.answer], shown, **ANALYSIS)
    panel.cancel.click(cancel, None, None, queue=False, **PRIVATE)


def donor_options(visit: Visit) -> Options:
    """Label and key of the base and the experts."""
    return [
        (label, key) for key, label in names(visit).items() if key.startswith(("base:", "expert:"))
    ]  # fmt: skip


def follow(visit: Visit, columns: Columns, column: object, donor: object) -> list[Any]:
    """The panel's fields and button once the columns hold something else.

    A choice stays while it means something; else the first merge that replied, an expert, or the base, and the first parent that is
    not that model. The answer is the column's last reply.
    """
    options = column_options(visit, columns)
    known = [value for _, value in options]
    replied = [str(number) for number in columns.heard if str(number) in known]
    if column not in replied:
        told = sorted(replied, key=lambda value: _closeness(columns.chosen[int(value)]))
        column = next(iter(told), None)
    donors = donor_options(visit)
    own = columns.chosen[int(str(column))] if column is not None else None
    others = [key for _, key in donors if key != own]
    return [
        gr.update(choices=options, value=column),
        gr.update(choices=donors, value=donor if donor in others else next(iter(others), None)),
        choose(visit, columns, column),
        gr.update(interactive=bool(replied) and visit.session not in _running),
    ]


def _closeness(key: str) -> int:
    """Merges have most to ask about, the base least."""
    return {"expert": 1, "base": 2}.get(key.partition(":")[0], 0)


def choose(visit: Visit, columns: Columns, column: object) -> Any:
    """The answer to begin with: the last reply of a column."""
    try:
        said = columns.last(column_of(column, columns))
    except MergingError:
        return ""
    return said.text if said is not None else ""


def cancel(request: gr.Request) -> None:
    """End the run of this page; the bars so far stay."""
    stop = _running.get(request.session_hash or "")
    if stop is not None:
        stop.set()


def run(visit: Visit, columns: Columns, column: object, donor: object, answer: str) -> Iterator[list[Any]]:
    """Put one part after another back, and show each bar when it is there.

    Yields:
        What is said, the figure, its table, the buttons to run and to cancel.
    """
    stop = threading.Event()
    if _running.setdefault(visit.session, stop) is not stop:
        yield [problem_html(BUSY), *[gr.skip()] * 4]
        return
    try:
        yield from _run(visit, columns, (column, donor, answer), stop)
    finally:
        stop.set()
        if _running.get(visit.session) is stop:
            del _running[visit.session]


def _run(
    visit: Visit, columns: Columns, choice: tuple[Any, Any, Any], stop: threading.Event
) -> Iterator[list[Any]]:
    busy = [gr.update(interactive=False), gr.update(interactive=True)]
    idle = [gr.update(interactive=True), gr.update(interactive=False)]
    yield ['<p class="quiet">Loading both models …</p>', None, "", *busy]
    told = Told(("", ""))
    try:
        task = _task(visit, columns, *choice)
        told = Told(task.called)
        with closing(heartbeats(task.run(stop), stop)) as beats:
            for one in beats:
                if isinstance(one, tuple):
                    told.parts = one
                elif one is not None:
                    told.found.append(one)
                    yield [told.progress, told.figure, gr.skip(), *busy]
                elif stop.is_set():
                    raise Stopped
                else:
                    yield [gr.skip()] * 5
    except Stopped:
        yield [told.stopped, told.figure, told.table, *idle]
        return
    except MergingError as error:
        yield [problem_html(str(error)), told.figure, told.table, *idle]
        return
    except Exception:
        _log.exception("putting back failed")
        yield [problem_html(UNEXPECTED), told.figure, told.table, *idle]
        return
    yield ["" if told.complete else told.stopped, told.figure, told.table, *idle]


@dataclass(frozen=True)
class _Task:
    """A run before its models are loaded; `called` names them on the page."""

    visit: Visit
    key: str
    recipe: str
    donor: str
    prompt: Sequence[int]
    said: tuple[str, Sequence[int]]
    answer: str
    called: tuple[str, str]

    def run(self, stop: threading.Event) -> Iterator[tuple[str, ...] | PartPutBack]:
        """First the parts, then what each one changes."""
        merged = model_of(self.visit, self.key, self.recipe)
        donor = model_of(self.visit, self.donor)
        swap = PutBack(merged, donor, self.prompt, self._ids(merged), stop)
        yield swap.parts
        yield from swap.run()

    def _ids(self, model: LoadedModel) -> Sequence[int]:
        """The answer's tokens: exactly those of the reply where it is that, else new ones and the token that ends it."""
        text, ids = self.said
        if self.answer == text:
            return ids
        return [*model.tokenizer(self.answer, add_special_tokens=False)["input_ids"], *model.end_ids[:1]]


def _task(visit: Visit, columns: Columns, column: object, donor: object, answer: object) -> _Task:
    """What a visitor asks for.

    Raises:
        MergingError: it makes no sense; the sentence says what to choose or type.
    """
    number = column_of(column, columns)
    said, key, known = columns.last(number), columns.chosen[number], names(visit)
    if said is None:
        raise MergingError(NOTHING_SAID)
    if not isinstance(donor, str) or donor not in {key for _, key in donor_options(visit)}:
        raise MergingError(NO_DONOR)
    if donor == key:
        raise MergingError(OWN)
    text = answer if isinstance(answer, str) else ""
    if text != said.text and not text.strip():
        raise MergingError(NO_ANSWER)
    if len(text) > LONGEST_ANSWER:
        raise MergingError(
            f"The answer has {len(text):,} characters, and at most {LONGEST_ANSWER:,} are measured. Shorten it."
        )
    return _Task(
        visit,
        key,
        said.recipe,
        donor,
        said.ids.prompt,
        (said.text, said.ids.reply),
        text,
        (known.get(key, said.model), known[donor]),
    )
