"""Under the card of a merge: what it changed of its base as a LoRA adapter, as a job of its own."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from components.downloads import model_bytes, zip_model
from components.merge.cards import KIND as MERGE
from components.merge.recipe import at_root
from components.numbers import size
from components.progress import ending_html, job_bar, left
from components.server.backend import job_store
from components.server.kept_bytes import require_room
from components.server.settings import Settings
from components.shared import Shared, owner_id
from components.tables import html_table
from components.toasts import toast
from merging import MergingError, Progress, Recipe
from merging.checkpoint import Checkpoint
from merging.extraction import extract
from merging.hub.pinning import names_elsewhere
from merging.inspecting.extraction_report import TABLE, Extracted
from merging.job_records import Job
from merging.sources import open_model

KIND = "extraction"
TICK = 0.5
RANK, MOST_RANK = 16, 512
SHOWN = 10
"""Tensors in the table, those with the largest errors."""
PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
SAVE_FILE = "() => setTimeout(() => document.querySelector('#extraction-file')?.click(), 250)"
ENDINGS = {"cancelled": "Cancelled; nothing was written.", "interrupted": "Interrupted by a restart."}
NOT_STARTED = "The adapter was not made"
ABOUT = (
    "What this merge changed of its base, as a PEFT LoRA folder: weights as factors of the rank you choose, norms and "
    "biases whole. The error says what the rank leaves out."
)


@dataclass(frozen=True)
class ExtractionPart:
    """The components; `watched` holds the id of the job that is shown."""

    rank: gr.Number
    start: gr.Button
    cancel: gr.Button
    progress: gr.HTML
    result: gr.HTML
    download: gr.Button
    file: gr.DownloadButton
    timer: gr.Timer
    watched: gr.State

    @property
    def outputs(self) -> list[Any]:
        """What `shown` sets."""
        return [
            *(self.watched, self.timer, self.progress, self.result),
            *(self.start, self.cancel, self.download),
        ]


def build_extraction_part() -> ExtractionPart:
    """Build it inside the Merge tab; `wire_extraction_part` brings it to life."""
    with gr.Accordion("As a LoRA adapter", open=False, elem_id="extraction"):
        gr.HTML(f'<p class="quiet">{ABOUT}</p>')
        with gr.Row(elem_classes="actions"):
            rank = gr.Number(
                RANK, label="Rank", minimum=1, maximum=MOST_RANK, precision=0, scale=0, min_width=110
            )
            start = gr.Button(
                "Extract", size="sm", scale=0, min_width=110, interactive=True, elem_id="extraction-start"
            )
            cancel = gr.Button("Cancel", size="sm", scale=0, min_width=110, visible=False)
            download = gr.Button(
                "Download", size="sm", scale=0, min_width=210, visible=False, elem_id="extraction-download"
            )
        progress = gr.HTML(elem_id="extraction-progress")
        result = gr.HTML(elem_id="extraction-result")
        file = gr.DownloadButton("zip", visible="hidden", elem_id="extraction-file")
    timer = gr.Timer(TICK, active=False)
    return ExtractionPart(rank, start, cancel, progress, result, download, file, timer, gr.State(""))


def wire_extraction_part(part: ExtractionPart, merge: gr.State, settings: Settings, shared: Shared) -> None:
    """Connect it; `merge` holds the id of the merge on the card."""
    watched = [part.watched, shared.owner]
    part.start.click(partial(start, settings), [part.rank, merge, shared.owner], part.outputs, **PRIVATE)
    part.cancel.click(partial(cancel, settings), watched, part.cancel, **PRIVATE)
    part.timer.tick(partial(shown, settings), watched, part.outputs, trigger_mode="once", **PRIVATE)
    shared.known(partial(attach, settings), shared.owner, part.outputs, **PRIVATE)
    part.download.click(
        partial(download, settings), watched, part.file, show_progress="minimal", api_visibility="private"
    ).success(None, None, None, js=SAVE_FILE, api_visibility="private")


def start(settings: Settings, rank: Any, merge: str, stored: Any) -> list[Any]:
    """Queue the extraction of the merge on the card, whose id comes from the browser."""
    store, owner = job_store(settings), owner_id(settings, stored)
    job, folder = store.get(owner, merge), store.model(owner, merge)
    if job is None or folder is None or job.kind != MERGE:
        raise toast("There is no finished merge on the card. Merge first.", NOT_STARTED)
    if not isinstance(rank, int | float) or not 1 <= rank <= MOST_RANK:
        raise toast(f"The rank is a whole number from 1 to {MOST_RANK}.", NOT_STARTED)
    title = f"LoRA adapter of rank {int(rank)} of {job.title}"
    try:
        recipe = at_root(Recipe.from_yaml(job.recipe or ""))
        base = recipe.base_model
        if base is None:
            raise MergingError("This merge has no base, so there is no change of one.")
        model = Checkpoint.open(folder)
        model.label = job.title
        require_room(settings, model_bytes(store, owner, merge), "An adapter of this merge", owner)
        named = base if settings.single_owner else names_elsewhere(recipe, {}).get(base, base)
        id = store.start(owner, KIND, partial(_work, recipe, named, model, int(rank)), title=title)
    except MergingError as error:
        raise toast(str(error), NOT_STARTED) from None
    return shown(settings, id, stored)


def _work(recipe: Recipe, named: str, model: Checkpoint, rank: int, out: Path) -> Iterator[Any]:
    base = open_model(str(recipe.base_model), recipe.locate)
    for event in extract(base, model, out, rank, base_name=named):
        yield _found(event) if isinstance(event, Extracted) else event


def _found(done: Extracted) -> dict[str, Any]:
    worst = sorted(done.tensors, key=lambda one: -one.error)[:SHOWN]
    return {
        "relative": done.relative,
        "tensors": len(done.tensors),
        "unchanged": done.unchanged,
        "rows": [[one.name, one.kept, f"{one.relative:.2%}"] for one in worst],
        "seconds": done.seconds,
    }


def cancel(settings: Settings, watched: str, stored: Any) -> dict[str, Any]:
    """Ask the job to stop; the timer shows when it has."""
    job_store(settings).cancel(owner_id(settings, stored), watched)
    return gr.update(interactive=False, value="Cancelling")


def attach(settings: Settings, stored: Any) -> list[Any]:
    """This owner's newest extraction, running or not."""
    jobs = [job for job in job_store(settings).list(owner_id(settings, stored)) if job.kind == KIND]
    return shown(settings, jobs[0].id if jobs else "", stored)


def shown(settings: Settings, id: str, stored: Any) -> list[Any]:
    """Watched job, timer, progress, result, and the buttons, as the job is now."""
    store, owner = job_store(settings), owner_id(settings, stored)
    job = store.get(owner, id)
    active, done = job is not None and job.active, job is not None and job.state == "done"
    weight = size(model_bytes(store, owner, id)) if done else ""
    return [
        id,
        gr.Timer(active=active),
        job_bar(job, job.title if job is not None else "", "reading headers", _told),
        result_html(job),
        gr.update(interactive=not active),
        gr.update(visible=active, interactive=active, value="Cancel"),
        gr.update(visible=done, value=f"Download adapter (zip, {weight})"),
    ]


def _told(progress: Progress) -> list[str]:
    return [progress.stage, f"{progress.tensors_done}/{progress.tensors} tensors", *left(progress)]


def result_html(job: Job | None) -> str:
    """What the adapter leaves out, over all and of the tensors with the largest errors; or why there is none."""
    if job is None or job.state != "done":
        return ending_html(job, ENDINGS)
    found = job.result or {}
    words = (
        f"{job.title}: it leaves out {found.get('relative', 0.0):.2%} of the change of {found.get('tensors', 0)} tensors. "
        f"Every tensor is in its {TABLE}; those with the largest errors:"
    )
    table = html_table(
        "Errors by tensor", ("tensor", "kept", "error, of its change"), found.get("rows", []), wide=True
    )
    return f"<p>{html.escape(words)}</p>{table}"


def download(settings: Settings, watched: str, stored: Any) -> dict[str, Any]:
    """Make the zip of the adapter that is shown."""
    try:
        path = zip_model(job_store(settings), owner_id(settings, stored), watched)
    except MergingError as error:
        raise toast(str(error), "The download was not made") from None
    return gr.update(value=str(path))
