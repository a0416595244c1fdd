"""A button that starts a long job, its progress, its cancel button, and finding it again after a reload.

The parts of the Compare tab that search share it: a job yields `Partial` results, which are shown as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from components.compare.views import progress_html
from components.family import Family
from components.merge.cards import fits
from components.progress import ending_html
from components.server.backend import job_store
from components.server.settings import Settings
from components.shared import Shared, owner_id
from components.toasts import toast
from merging import MergingError
from merging.job_records import Job
from merging.jobs import JobStore

TICK = 0.4
"""Seconds between two looks at a running job."""
MOST_KEPT = 20
"""Ended jobs of a kind that are kept of one owner: the page shows the newest, and every look reads all of them."""
PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
NO_IDENTITY = "This browser has no identity yet. Reload the page."


@dataclass(frozen=True)
class Runner:
    """`watched` holds the id of the job that waits or runs, `seen` which of its results the page shows."""

    run: gr.Button
    cancel: gr.Button
    progress: gr.HTML
    status: gr.HTML
    timer: gr.Timer
    watched: gr.State
    seen: gr.State

    @property
    def outputs(self) -> list[Any]:
        """What a start, a tick and a reload set."""
        return [self.watched, self.timer, self.progress, self.run, self.cancel, self.status, self.seen]


@dataclass(frozen=True)
class Work:
    """What a runner runs and shows.

    `start(owner, family, *values)` queues a job and returns its id, or raises a MergingError; `values` are those of
    `inputs`. `show(owner, family, job)` gives updates for `outputs` from the newest job of this kind, or None; `ready`
    says whether a job can be started after it. `endings`: what to say of a job that was cancelled or interrupted. `mine`
    says which jobs of an owner belong to a family, `store` where they are, and `progress` how far one is.
    """

    settings: Settings
    kind: str
    start: Callable[..., str]
    show: Callable[[str, Family, Job | None], list[Any]]
    inputs: Sequence[Any] = ()
    outputs: Sequence[Any] = ()
    ready: Callable[[str, Family, Job | None], bool] = lambda owner, family, job: bool(family.experts)
    endings: Mapping[str, str] = field(default_factory=dict)
    failure: str = "Nothing was started"
    mine: Callable[[Job, Family], bool] = fits
    store: Callable[[Settings], JobStore] = job_store
    progress: Callable[[Job | None], str] = progress_html

    @property
    def jobs(self) -> JobStore:
        return self.store(self.settings)


def build_runner(
    label: str, name: str, *, width: int = 150, visible: bool = True, ready: bool = True
) -> Runner:
    """The buttons in a row with the progress below; `name` begins the ids of all of them, `ready` says whether it can start
    as the page opens."""
    with gr.Row(elem_classes="actions cm-actions"):
        run = gr.Button(
            label,
            variant="primary",
            scale=0,
            min_width=width,
            visible=visible,
            interactive=ready,
            elem_id=f"{name}-run",
        )
        cancel = gr.Button(
            "Cancel", scale=0, min_width=110, visible=False, interactive=False, elem_id=f"{name}-cancel"
        )
    progress = gr.HTML(elem_id=f"{name}-progress", elem_classes="status")
    status = gr.HTML(elem_id=f"{name}-status", elem_classes="status")
    timer = gr.Timer(TICK, active=False, render=False)
    return Runner(run, cancel, progress, status, timer, gr.State(""), gr.State(""))


def wire_runner(runner: Runner, work: Work, shared: Shared, came: Sequence[Any]) -> None:
    """Connect a runner's events.

    Args:
        came: the events after which the newest job is looked for, as a visitor coming to this part of the page.
    """
    runner.timer.render()  # at the root of the page: one in a column that is not shown yet would never tick
    who = [shared.family, shared.owner]
    every = [*runner.outputs, *work.outputs]
    in_turn: dict[str, Any] = {"concurrency_id": work.kind, "concurrency_limit": 1}

    def started(family: Family, stored: Any, *values: Any) -> list[Any]:
        return start(work, family, stored, *values)

    def looked(watched: str, seen: str, family: Family, stored: Any) -> list[Any]:
        return tick(work, watched, seen, family, stored)

    def attached(family: Family, stored: Any) -> list[Any]:
        return attach(work, family, stored)

    def cancelled(watched: str, stored: Any) -> dict[str, Any]:
        return cancel(work, watched, stored)

    runner.run.click(started, [*who, *work.inputs], every, **PRIVATE, **in_turn)
    runner.cancel.click(cancelled, [runner.watched, shared.owner], runner.cancel, **PRIVATE)
    runner.timer.tick(
        looked, [runner.watched, runner.seen, *who], every, trigger_mode="once", **PRIVATE, **in_turn
    )
    gr.on(
        came,
        attached,
        who,
        every,
        **PRIVATE,
        **in_turn,
    )


def start(work: Work, family: Family, stored: Any, *values: Any) -> list[Any]:
    """Queue a job and watch it; what cannot be started is said in a toast."""
    owner = owner_id(work.settings, stored)
    try:
        if not work.settings.single_owner and owner != stored:
            raise MergingError(NO_IDENTITY)
        id = work.start(owner, family, *values)
    except (MergingError, OSError) as error:
        raise toast(_sentence(error), work.failure) from None
    work.jobs.forget_oldest(owner, work.kind, MOST_KEPT)
    job = work.jobs.get(owner, id)
    if job is not None and not job.active:  # quicker than this answer; the timer shows how it ended
        job = job.model_copy(update={"state": "running"})
    return shown(work, owner, family, job)


def cancel(work: Work, watched: str, stored: Any) -> dict[str, Any]:
    """Ask the job to stop; the timer shows when it has."""
    work.jobs.cancel(owner_id(work.settings, stored), watched)
    return gr.update(interactive=False, value="Cancelling")


def tick(work: Work, watched: str, seen: str, family: Family, stored: Any) -> list[Any]:
    """One look at the running job; its results are sent only where there are new ones."""
    owner = owner_id(work.settings, stored)
    job = work.jobs.get(owner, watched)
    if job is None or not job.active:
        return attach(work, family, stored)
    if mark(job) == seen:
        return [gr.skip(), gr.skip(), work.progress(job), *[gr.skip() for _ in range(4 + len(work.outputs))]]
    first = [gr.skip(), gr.skip(), work.progress(job), gr.skip(), gr.skip(), gr.skip(), mark(job)]
    return [*first, *work.show(owner, family, job)]


def attach(work: Work, family: Family, stored: Any) -> list[Any]:
    """This owner's newest job of the kind over these models, as it is now."""
    owner = owner_id(work.settings, stored)
    return shown(work, owner, family, newest(work, owner, family))


def newest(work: Work, owner: str, family: Family) -> Job | None:
    """The running job of the kind over a family, else the newest."""
    jobs = [job for job in work.jobs.list(owner) if job.kind == work.kind and work.mine(job, family)]
    return next((job for job in jobs if job.active), next(iter(jobs), None))


def shown(work: Work, owner: str, family: Family, job: Job | None) -> list[Any]:
    """Updates for a runner's outputs and the work's."""
    active = job is not None and job.active
    return [
        job.id if job is not None and active else "",
        gr.Timer(active=active),
        work.progress(job),
        gr.update(interactive=not active and work.ready(owner, family, job)),
        gr.update(interactive=active, visible=active, value="Cancel"),
        ending_html(job, work.endings),
        mark(job),
        *work.show(owner, family, job),
    ]


def mark(job: Job | None) -> str:
    """What tells one state of a job's results from the next."""
    if job is None:
        return ""
    return f"{job.id} {job.state} {(job.result or {}).get('mark', 0)}"


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or 'A file'} could not be read: {error.strerror or error}. Try again."
    return str(error)
