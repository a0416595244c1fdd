"""What happens in the section on importance: plain functions from values to values.

`stored` is what the browser keeps as owner. Ids, choices and texts come from the browser and are checked here.
"""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from components.family import Family
from components.importance.examples import (
    DEMO,
    MOST_SAMPLES,
    OWN,
    Source,
    demo_file,
    read_all,
    read_examples,
    read_upload,
    usual_source,
)
from components.importance.job import KIND, Found, Request, find, work
from components.importance.views import progress_html, status_html
from components.progress import ending_html
from components.server.backend import job_store
from components.server.kept_bytes import require_room
from components.server.settings import Settings
from components.shared import owner_id
from components.toasts import toast
from merging import MergingError
from merging.folders.room import memory_problem
from merging.importances.measuring import Measurement
from merging.job_records import Job
from merging.sources import open_model

ROWS = 8
"""Experts there may be."""
NOT_STARTED = "Importance is not being measured"
ENDINGS = {
    "cancelled": "Cancelled. Nothing was kept.",
    "interrupted": "Interrupted: Mergescope was stopped while this ran. Compute again.",
}


def fill_rows(settings: Settings, family: Family) -> list[Any]:
    """For each row: the row, where its examples come from, their text, the upload button, what is wrong with it."""
    updates: list[Any] = []
    for number in range(ROWS):
        if number >= len(family.experts):
            hidden = gr.update(visible=False)
            updates += [hidden, gr.update(), gr.update(value="", visible=False), hidden, ""]
            continue
        expert, name = family.experts[number], family.names[number]
        usual = usual_source(settings, expert).kind
        choices = [("paste or upload", OWN)]
        if demo_file(settings, expert) is not None:
            choices.insert(0, ("the demo's", DEMO))
        own = gr.update(visible=usual == OWN)
        updates += [
            gr.update(visible=True),
            gr.update(choices=choices, value=usual, label=f"Examples for {name}"),
            gr.update(value="", visible=usual == OWN, label=f"{name}: one example a line"),
            own,
            "",
        ]
    return updates


def choose_source(kind: str) -> list[Any]:
    """Text, upload button and problem of a row whose source was chosen."""
    return [gr.update(visible=kind == OWN), gr.update(visible=kind == OWN), ""]


def check_text(number: int, family: Family, text: str | None) -> str:
    """What is wrong with a row's examples, in a sentence, or how many there are."""
    if number >= len(family.experts) or not (text or "").strip():
        return ""
    try:
        suite = read_examples(text or "", family.names[number])
    except MergingError as error:
        return f'<p class="problem" role="alert">{html.escape(str(error))}</p>'
    return f'<p class="quiet">{len(suite)} example{"s" if len(suite) != 1 else ""}.</p>'


def take_upload(number: int, family: Family, path: Any) -> list[Any]:
    """The text of an uploaded file, and what is wrong with it."""
    if path is None or number >= len(family.experts):
        return [gr.skip(), gr.skip()]
    try:
        text = read_upload(path, family.names[number])
    except MergingError as error:
        return [gr.skip(), f'<p class="problem" role="alert">{html.escape(str(error))}</p>']
    return [text, check_text(number, family, text)]


def start(settings: Settings, compare: bool, family: Family, stored: Any, *values: Any) -> list[Any]:
    """Queue a measurement with what the section says: see `running`. `values`: how, at, unit, samples, details, elements,
    then a source and a text for each row."""
    how, at, unit, samples, details, elements, *rest = values
    sources = [
        Source(kind if kind in (DEMO, OWN) else OWN, str(text or ""))
        for kind, text in zip(rest[:ROWS], rest[ROWS:], strict=True)
    ]
    try:
        wanted = Measurement(
            how=how,
            at=at,
            partition=unit,
            samples=_samples(samples),
            elements=bool(elements) and how == "gradient",
            agreement=compare,
        )
        if how == "exact" and unit in ("head", "row"):
            raise MergingError(
                "Exact intervention measures only a sample of heads or rows, which APL cannot use. Choose modules or blocks, "
                "or gradients."
            )
        examples = read_all(settings, family, sources[: len(family.experts)])
        return queue(settings, Request(family, examples, wanted, bool(details)), stored)
    except MergingError as error:
        raise toast(str(error), NOT_STARTED) from None


def start_default(settings: Settings, family: Family, stored: Any) -> list[Any]:
    """Queue the usual measurement on the demo's own examples."""
    try:
        sources = [usual_source(settings, expert) for expert in family.experts]
        examples = read_all(settings, family, sources)
        return queue(settings, Request(family, examples, Measurement(), True), stored)
    except MergingError as error:
        raise toast(str(error), NOT_STARTED) from None


def has_defaults(settings: Settings, family: Family) -> bool:
    """Whether every expert comes with examples."""
    experts = family.experts
    return bool(experts) and all(usual_source(settings, expert).kind == DEMO for expert in experts)


def queue(settings: Settings, request: Request, stored: Any) -> list[Any]:
    """Start the job and watch it.

    Raises:
        MergingError: nothing to measure, no room, no owner, or too many jobs.
    """
    owner = owner_id(settings, stored)
    if not settings.single_owner and owner != stored:
        raise MergingError("This browser has no identity yet. Reload the page.")
    if not request.family.experts:
        raise MergingError("There is no expert yet. Choose a base and an expert on the Models tab.")
    _require_memory(request.family)
    wanted = request.wanted
    files = (
        [open_model(expert).parameters * 4 for expert in request.family.experts] if wanted.elements else []
    )
    require_room(settings, sum(files), "Importance of every parameter" if files else "Importance", owner)
    how = wanted.how if wanted.how == "exact" else f"gradients at {wanted.at}"
    id = job_store(settings).start(
        owner,
        KIND,
        work(settings, request),
        title=f"Importance · {how} · {', '.join(request.family.names)}",
    )
    return running(job_store(settings).get(owner, id), request.family)


def _require_memory(family: Family) -> None:
    """A model in float32, once more as it is read, and the gradients of a few tensors."""
    largest = max(open_model(expert).parameters for expert in family.experts)
    if problems := memory_problem(10 * largest):
        raise MergingError(problems[0].replace("this merge", "measuring importance", 1))


def cancel(settings: Settings, watched: str, stored: Any) -> dict[str, Any]:
    """Ask the job to stop; the timer shows when it has."""
    job_store(settings).cancel(owner_id(settings, stored), watched)
    return gr.update(interactive=False, value="Cancelling")


def tick(settings: Settings, watched: str, family: Family, stored: Any) -> list[Any]:
    """One look at the running job."""
    job = job_store(settings).get(owner_id(settings, stored), watched)
    if job is not None and job.active:
        return [gr.skip(), gr.skip(), progress_html(job), *[gr.skip()] * 4]
    return attach(settings, family, stored)


def attach(settings: Settings, family: Family, stored: Any) -> list[Any]:
    """This owner's measurements as they are now: `running`, and what is known of the family."""
    owner = owner_id(settings, stored)
    jobs = [job for job in job_store(settings).list(owner) if job.kind == KIND]
    active = next((job for job in jobs if job.active), None)
    ended = ending_html(jobs[0], ENDINGS) if jobs else ""
    return [*running(active, family)[:-1], ended + status_html(find(settings, owner, family))]


def refresh(settings: Settings, family: Family, stored: Any) -> Found | None:
    """What this owner measured on the family."""
    return find(settings, owner_id(settings, stored), family)


def running(job: Job | None, family: Family) -> list[Any]:
    """Watched job, timer, progress, the buttons Compute, Compare and Cancel, status."""
    active = job is not None and job.active
    ready = bool(family.experts) and not active
    return [
        job.id if job is not None and active else "",
        gr.Timer(active=active),
        progress_html(job),
        gr.update(interactive=ready),
        gr.update(interactive=ready),
        gr.update(interactive=active, visible=active, value="Cancel"),
        gr.skip(),
    ]


def _samples(given: Any) -> int:
    """Examples an expert, within the limits."""
    if not isinstance(given, int | float) or isinstance(given, bool) or not 1 <= given <= MOST_SAMPLES:
        raise MergingError(
            f"examples: {given!r} is not possible; give a whole number from 1 to {MOST_SAMPLES}."
        )
    return int(given)
