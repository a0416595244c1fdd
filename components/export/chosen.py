"""Which merge is taken home: the list, its card, and the model card as it will be read."""

from __future__ import annotations

import base64
import html
import re
import time
from typing import Any

import gradio as gr

from components.downloads import model_bytes
from components.export.parcels import going_home, zip_merge
from components.family import Family
from components.merge.cards import SHOWN_JOBS, fits, line, merges
from components.numbers import size
from components.server.backend import hub_desk, job_store
from components.server.settings import Settings
from components.shared import owner_id
from merging import MergingError
from merging.cards.front_matter import README
from merging.job_records import Job

EMPTY = (
    '<div class="ex-empty"><strong>Nothing to take home yet</strong> Merge first; every finished merge of yours is '
    "offered here.</div>"
)
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.S)
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^()\s]+\.png)\)")


def finished(settings: Settings, owner: str) -> list[Job]:
    """This owner's finished merges, the newest first."""
    return [job for job in merges(settings, owner) if job.state == "done"]


def come(settings: Settings, shown: str, newest: str, family: Family, stored: Any) -> list[Any]:
    """Somebody comes to the tab: what was chosen stays, unless the chosen models were merged anew since `newest`."""
    owner = owner_id(settings, stored)
    jobs = finished(settings, owner)
    of_family = next((job for job in jobs if fits(job, family)), None)
    latest = of_family or next(iter(jobs), None)
    kept = next((job for job in jobs if job.id == shown), None)
    anew = latest is not None and latest.id != newest
    job = latest if kept is None or anew else kept
    return [latest.id if latest is not None else "", *card(settings, owner, job, jobs)]


def show(settings: Settings, id: Any, stored: Any) -> list[Any]:
    """Another of the merges was chosen; `id` may be anything."""
    owner = owner_id(settings, stored)
    jobs = finished(settings, owner)
    return card(settings, owner, next((job for job in jobs if job.id == id), None), jobs)


def card(settings: Settings, owner: str, job: Job | None, jobs: list[Job]) -> list[Any]:
    """The chosen id, the list, the card, the way to Merge, the download, and the closed model card."""
    choices = [(line(one), one.id) for one in jobs[:SHOWN_JOBS]]
    weight = size(model_bytes(job_store(settings), owner, job.id)) if job is not None else ""
    value = job.id if job is not None and job.id in {id for _, id in choices} else None
    return [
        job.id if job is not None else "",
        gr.update(choices=choices, value=value, visible=bool(choices)),
        chosen_html(settings, job, weight),
        gr.update(visible=not jobs),
        gr.update(visible=job is not None, value=f"Download zip ({weight})"),
        gr.update(visible=job is not None, open=False),
        "",
    ]


def chosen_html(settings: Settings, job: Job | None, weight: str) -> str:
    """What is taken home; on one's own machine also where it lies."""
    if job is None:
        return EMPTY
    when = time.strftime("%d %b %Y, %H:%M", time.localtime(job.created))
    cells = [("made", html.escape(when)), ("on disk", weight)]
    parameters = (job.result or {}).get("parameters")
    if isinstance(parameters, int):
        cells.append(("parameters", f"{parameters:,}"))
    if settings.single_owner and (folder := job_store(settings).model(job.owner, job.id)):
        cells.append(("folder", f"<code>{html.escape(str(folder))}</code>"))
    body = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in cells)
    return f'<div class="ex-chosen"><h3>{html.escape(job.title)}</h3><dl>{body}</dl></div>'


def download(settings: Settings, shown: str, stored: Any) -> dict[str, Any]:
    """Make the zip of the chosen merge.

    Raises:
        MergingError: it is not this owner's, or there is no room.
    """
    return gr.update(value=str(zip_merge(settings, owner_id(settings, stored), shown)))


def read_card(settings: Settings, shown: str, stored: Any) -> str:
    """The model card as Markdown, its pictures inside; a sentence where there is none."""
    try:
        parts = going_home(settings, owner_id(settings, stored), shown)
    except MergingError as error:
        return html.escape(str(error))
    text = FRONT_MATTER.sub("", parts.get(README, b"").decode("utf-8", errors="replace"))

    def inside(found: re.Match[str]) -> str:
        picture = parts.get(found[2])
        if picture is None:
            return found[1]
        return f"![{found[1]}](data:image/png;base64,{base64.b64encode(picture).decode()})"

    return PICTURE.sub(inside, text)


def may_push(settings: Settings, owner: str) -> bool:
    """Whether there is something to push, and an account to push to."""
    return hub_desk(settings).hub(owner).has_token and bool(finished(settings, owner))
