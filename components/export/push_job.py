"""Pushing the chosen merge to the Hub, as a job: progress in bytes, cancel, and found again after a reload."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from components.compare.runner import Work
from components.export.chosen import may_push
from components.export.parcels import merge_folder, pack
from components.family import Family
from components.hub.downloads import is_news
from components.progress import job_bar, told_in_bytes
from components.server.backend import hub_desk, push_store
from components.server.settings import Settings
from merging import MergingError, Progress
from merging.executors import unwanted
from merging.hub.client import Hub
from merging.hub.push import MESSAGE, Order, Pushed, push, repository_name
from merging.job_records import Job

KIND = "push"
ENDINGS = {
    "cancelled": "Cancelled. Nothing of it is left on the Hub.",
    "interrupted": "Interrupted: Mergescope was stopped while this ran. An empty repository may be left on the Hub; push again "
    "with “add a commit” ticked, or delete it there.",
}
NO_ACCOUNT = "To push, the Hub has to know you: give an access token with the right to write, or sign in."


def name_problem(typed: Any) -> str:
    """What is wrong with the name of a repository, as HTML; empty where nothing is, and nothing was typed."""
    if not isinstance(typed, str) or not typed.strip():
        return ""
    try:
        repository_name(typed)
    except MergingError as error:
        return f'<p class="problem" role="alert">{html.escape(str(error))}</p>'
    return ""


def start(settings: Settings, owner: str, family: Family, *asked: Any) -> str:
    """Queue the push of the chosen merge.

    Raises:
        MergingError: no merge of this owner's, no name of a repository, no account, or a push runs already.
    """
    shown, name, public, add, message = asked
    merge_folder(settings, owner, shown)
    order = Order(repository_name(str(name or "")), public is not True, add is True, str(message or MESSAGE))
    hub = hub_desk(settings).hub(owner)
    if not hub.has_token:
        raise MergingError(NO_ACCOUNT)
    store = push_store(settings)
    if any(job.active for job in store.list(owner)):
        raise MergingError("A push runs already. Let it end, or cancel it.")
    return store.start(owner, KIND, partial(pushing, settings, owner, shown, hub, order), title=order.name)


def pushing(settings: Settings, owner: str, id: str, hub: Hub, order: Order, out: Path) -> Iterator[Any]:
    """The work of a job: progress in bytes, in the end where the merge is. Nothing is written into `out`."""
    folder, packing = merge_folder(settings, owner, id), pack(settings, owner, id, order.name)
    with closing(push(hub, folder, order, packing, cancelled=unwanted)) as events:  # type: ignore[type-var]
        for event in events:
            yield asdict(event) if isinstance(event, Pushed) else event


def result_html(job: Job | None) -> str:
    """Where the merge can be found."""
    result = job.result if job is not None and job.state == "done" else None
    if not result:
        return ""
    url, name = html.escape(str(result.get("url"))), html.escape(str(result.get("id")))
    seen = "private: only you see it" if result.get("private") else "public: everybody sees it"
    return (
        f'<p class="ex-pushed" role="status"><a href="{url}" target="_blank" rel="noopener">{name}</a> is on the Hub, {seen}. '
        f"Commit {html.escape(str(result.get('commit'))[:8])}.</p>"
    )


def work(settings: Settings, inputs: Sequence[Any], result: Any) -> Work:
    """What the runner of pushes runs; `inputs` as `start` takes them."""

    def show(owner: str, family: Family, job: Job | None) -> list[Any]:
        return [result_html(job)]

    def ready(owner: str, family: Family, job: Job | None) -> bool:
        return may_push(settings, owner)

    return Work(
        settings=settings,
        kind=KIND,
        start=partial(start, settings),
        show=show,
        inputs=inputs,
        outputs=[result],
        ready=ready,
        endings=ENDINGS,
        failure="The merge was not pushed",
        mine=is_news,
        store=push_store,
        progress=_bar,
    )


def _bar(job: Job | None) -> str:
    return job_bar(job, f"pushing {job.title}" if job is not None else "", "asking the Hub", _told)


def _told(progress: Progress) -> Iterator[str]:
    if progress.bytes_done:
        yield from told_in_bytes(progress)
    else:
        yield progress.stage
