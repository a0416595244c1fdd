"""What happens in the Scores part of the Compare tab: plain functions from values to values.

`stored` is what the browser keeps as owner, `own` what the visitor uploaded. Keys and choices come from the browser and
are checked here.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from components.chat.models import unable
from components.compare.job import KIND, Request, missing, work
from components.compare.page import Asked, said
from components.compare.runner import MOST_KEPT
from components.compare.shown import BOARD, show_board
from components.compare.suites import DEMO, Ruler, Text, options, pasted, read_suite, read_text
from components.compare.views import progress_html
from components.compare.who import JOB, candidates, parents, wanted
from components.family import Family
from components.progress import ending_html
from components.server.backend import job_store
from components.server.settings import Settings
from components.shared import owner_id
from components.toasts import toast
from merging import MergingError
from merging.job_records import Job
from merging.judging.suites import Suite

NOT_STARTED = "Nothing is being measured"
ENDINGS = {
    "cancelled": "Cancelled. What was measured until then is kept.",
    "interrupted": "Interrupted: Mergescope was stopped while this ran. Measure again; what was measured is kept.",
}


def offer(asked: Asked, who: Any, fresh: str = "", seen: str = "") -> list[Any]:
    """What can be measured, the files of the demo's tasks, who can be measured, who is in any case, and `fresh`.

    What was chosen stays. The demo's tasks are chosen where nothing is; so is the newest merge, `fresh`, the first time it
    is another than `seen`.
    """
    things = options(asked.settings, asked.family, asked.own)
    demo = [key for _, key in things if key.startswith(DEMO)]
    people = candidates(asked.settings, asked.owner, asked.family, asked.recipe)
    newest = [JOB + fresh] if fresh and fresh != seen else []
    return [
        _choice(things, asked.what, _still(asked.what, things) or demo),
        gr.update(visible=bool(demo)),
        _choice(people, who, _still([*_keys(who), *newest], people)),
        beside(asked.family),
        fresh,
    ]


def _choice(choices: Sequence[tuple[str, str]], before: Any, now: list[str]) -> dict[str, Any]:
    """Other choices; what is chosen is left alone where it can stay, for the visitor may be choosing meanwhile."""
    same = set(_keys(before)) == set(now)
    return gr.update(choices=choices) if same else gr.update(choices=choices, value=now)


def _keys(chosen: Any) -> list[str]:
    return [key for key in chosen if isinstance(key, str)] if isinstance(chosen, list) else []


def _still(chosen: Any, choices: Sequence[tuple[str, str]]) -> list[str]:
    """What is chosen and can still be, in the order of the choices."""
    return [key for _, key in choices if key in _keys(chosen)]


def beside(family: Family) -> str:
    """Who is measured in any case."""
    if not family.experts:
        return '<p class="quiet">Choose a base and its experts on the Models tab first.</p>'
    if reason := unable(family.base):
        return f'<p class="quiet">{html.escape(reason)}</p>'
    names = ", ".join((family.base_name, *family.names))
    return f'<p class="quiet">Always measured too, by the same ruler: {html.escape(names)}.</p>'


def estimate(asked: Asked, who: Any) -> str:
    """How many scores are wanted, and how many of them are known."""
    try:
        request = _request(asked, who)
        todo = missing(asked.settings, request)
    except (MergingError, OSError) as error:
        return f'<p class="quiet">{html.escape(said(error))}</p>'
    models, things = len(request.subjects), len(request.ruler)
    left = sum(map(len, todo.values()))
    scores = models * things
    known = f"{scores - left} known already" if left < scores else "none known yet"
    if not left:
        known = "all known already"
    tasks = f"{things} task{'s' if things != 1 else ''}"
    return f'<p class="mg-plan">{models} models × {tasks} = {scores} scores, {known}</p>'


def _request(asked: Asked, who: Any) -> Request:
    """Who is to be measured by what.

    Raises:
        MergingError: nothing is chosen, a model is gone, or the recipe cannot run.
    """
    ruler = asked.ruler
    if not len(ruler):
        raise MergingError("Choose at least one task, or add a suite or a text of your own.")
    models = parents(asked.settings, asked.family)
    merges = wanted(asked.settings, asked.owner, asked.family, asked.recipe, who)
    subjects = {subject.key: subject for subject in (*models, *merges)}
    return Request(asked.owner, tuple(subjects.values()), ruler)


def start(asked: Asked, who: Any) -> list[Any]:
    """Queue a measurement: see `running`."""
    owner, settings = asked.owner, asked.settings
    try:
        if not settings.single_owner and owner != asked.stored:
            raise MergingError("This browser has no identity yet. Reload the page.")
        request = _request(asked, who)
        tasks, models = len(request.ruler), len(request.subjects)
        title = f"Scores · {models} models · {tasks} task{'s' if tasks != 1 else ''}"
        id = job_store(settings).start(owner, KIND, work(settings, request), title=title)
    except (MergingError, OSError) as error:
        raise toast(said(error), NOT_STARTED) from None
    job_store(settings).forget_oldest(owner, KIND, MOST_KEPT)
    job = job_store(settings).get(owner, id)
    if job is not None and not job.active:  # quicker than this answer; the timer shows how it ended
        job = job.model_copy(update={"state": "running"})
    return running(job)


def cancel(settings: Settings, watched: str, stored: Any) -> dict[str, Any]:
    """Ask the job to stop; the timer shows when it has."""
    job_store(settings).cancel(owner_id(settings, stored), watched)
    return gr.update(interactive=False, value="Cancelling")


def tick(asked: Asked, watched: str, seen: int, *picks: Any) -> list[Any]:
    """One look at the running job: `running`, how many of its scores the page shows, and the board once there are more."""
    job = job_store(asked.settings).get(asked.owner, watched)
    active = job is not None and job.active
    done = job.progress.tensors_done if job is not None and job.progress is not None else 0
    first = [gr.skip(), gr.skip(), progress_html(job), *[gr.skip()] * 3] if active else attach(asked)
    if active and done == seen:
        return [*first, gr.skip(), *[gr.skip()] * BOARD]
    board = asked.board()
    across, up, before, after, task = picks
    row = board.row(after)
    after = after if row is not None and row.kind == "run" else None  # a first run takes a parent's place
    return [*first, done if active else 0, *show_board(asked, board, across, up, before, after, task)]


def attach(asked: Asked) -> list[Any]:
    """This owner's measurements as they are now: see `running`."""
    jobs = [job for job in job_store(asked.settings).list(asked.owner) if job.kind == KIND]
    active = [job for job in jobs if job.active]
    found = running(active[-1] if active else None)
    if jobs and not active:
        found[-1] = ending_html(jobs[0], ENDINGS)
    return found


def running(job: Job | None) -> list[Any]:
    """Watched job, timer, progress, the buttons Measure and Cancel, and how the last one ended."""
    active = job is not None and job.active
    return [
        job.id if job is not None and active else "",
        gr.Timer(active=active),
        progress_html(job),
        gr.update(interactive=not active),
        gr.update(interactive=active, visible=active, value="Cancel"),
        "",
    ]


def take_suite(asked: Asked, path: Any) -> list[Any]:
    """An uploaded suite joins what can be measured: what the visitor uploaded, the choice, and what is wrong with it."""
    return _take(asked, lambda: Ruler(suites=(read_suite(path),)), path)


def take_text_file(asked: Asked, path: Any) -> list[Any]:
    """An uploaded text joins what can be measured: see `take_suite`."""
    return _take(asked, lambda: Ruler(texts=(read_text(path),)), path)


def take_text(asked: Asked, text: Any) -> list[Any]:
    """A pasted text joins what can be measured: see `take_suite`."""
    return _take(asked, lambda: Ruler(texts=(pasted(text),)), text)


def _take(asked: Asked, read: Callable[[], Ruler], given: Any) -> list[Any]:
    if given is None:
        return [gr.skip(), gr.skip(), gr.skip()]
    try:
        new = read()
        own = asked.own.adding(new)
    except MergingError as error:
        return [gr.skip(), gr.skip(), f'<p class="problem" role="alert">{html.escape(str(error))}</p>']
    added = [one.fingerprint for one in (*new.suites, *new.texts)]
    keys = [key for key in _keys(asked.what) if key not in added]
    choice = gr.update(choices=options(asked.settings, asked.family, own), value=[*keys, *added])
    return [own, choice, f'<p class="quiet" role="status">{html.escape(_added(new))}</p>']


def _added(new: Ruler) -> str:
    thing: Suite | Text = (*new.suites, *new.texts)[0]
    if isinstance(thing, Suite):
        items = f"{len(thing):,} item{'s' if len(thing) != 1 else ''}"
        return (
            f"Added {thing.name}: {items}, scored by {thing.scoring} match."
            if thing.scoring != "choice"
            else (f"Added {thing.name}: {items}, scored by choice.")
        )
    return f"Added {thing.name}: {len(thing.content):,} letters."
