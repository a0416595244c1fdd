"""Which merge stands on the card, what can be done with it, and the list of a visitor's merges."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from components.downloads import model_bytes
from components.family import Family
from components.merge.html import result_html
from components.merge.recipe import is_of
from components.numbers import size
from components.server.backend import job_store
from components.server.settings import Settings
from merging import MergingError, Recipe
from merging.job_records import Job

KIND = "merge"
SHOWN_JOBS = 30


def merges(settings: Settings, owner: str) -> list[Job]:
    """This owner's merges, the newest first."""
    return [job for job in job_store(settings).list(owner) if job.kind == KIND]


def newest_of(settings: Settings, owner: str, family: Family) -> Job | None:
    """The newest of this owner's merges of a family that has ended; others are for the list."""
    return next((job for job in merges(settings, owner) if not job.active and fits(job, family)), None)


def fits(job: Job, family: Family) -> bool:
    """Whether a job merged models of this family only."""
    try:
        return is_of(Recipe.from_yaml(job.recipe or ""), family)
    except MergingError:
        return False


def card(settings: Settings, owner: str, job: Job | None) -> list[Any]:
    """Shown job, card, its buttons, and the list of merges."""
    has_model = job is not None and job.state == "done"
    weight = size(model_bytes(job_store(settings), owner, job.id)) if job is not None and has_model else ""
    choices = [(line(one), one.id) for one in merges(settings, owner) if not one.active][:SHOWN_JOBS]
    listed = job is not None and job.id in {id for _, id in choices}
    return [
        job.id if job is not None else "",
        result_html(job, others=bool(choices)),
        gr.update(visible=has_model),
        gr.update(visible=has_model, value=f"Download model (zip, {weight})"),
        gr.update(visible=job is not None and job.recipe is not None and not job.active),
        gr.update(visible=has_model),
        gr.update(visible=has_model),
        gr.update(visible=job is not None and not job.active),
        gr.update(
            choices=choices, value=job.id if job is not None and listed else None, visible=bool(choices)
        ),
    ]


def line(job: Job) -> str:
    """A job in the list: name, when, how it ended."""
    when = time.strftime("%d %b %H:%M:%S", time.localtime(job.created))
    return f"{job.title}\n{when} · {job.state}"
