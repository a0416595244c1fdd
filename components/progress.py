"""How far a job is, and how it ended, as HTML. All words are escaped here."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping

from components.numbers import clock, size
from merging.engine import Progress
from merging.job_records import Job

Draw = Callable[[float, str, str], str]


def bar_html(share: float, words: str, label: str) -> str:
    """A bar with the words beside it; `label` says what is measured to those who cannot see it."""
    return (
        f'<div class="progress"><progress max="1" value="{share:.4f}" aria-label="{html.escape(label)}"></progress>'
        f"<span>{html.escape(words)}</span></div>"
    )


def job_bar(
    job: Job | None,
    label: str,
    first: str,
    told: Callable[[Progress], Iterable[str]],
    draw: Draw = bar_html,
) -> str:
    """The bar of a job; empty where none waits or runs.

    Args:
        first: what it does before it reports anything.
        told: what to say of its progress, in parts.
    """
    if job is None or not job.active:
        return ""
    if job.state == "queued":
        before = f"{job.ahead} job{'s' if job.ahead != 1 else ''} before it"
        return draw(0.0, f"waiting · {before if job.ahead else 'about to start'}", label)
    if job.progress is None:
        return draw(0.0, first, label)
    return draw(job.progress.share, " · ".join(told(job.progress)), label)


def left(progress: Progress, after: float = 0.0) -> list[str]:
    """The time left, where it is known and more than `after` seconds were spent."""
    known = progress.seconds_left is not None and progress.seconds > after
    return [f"{clock(progress.seconds_left)} left"] if known else []


def told_in_bytes(progress: Progress) -> Iterator[str]:
    """Stage, bytes, speed and the time left, of what goes over the network."""
    yield f"{progress.stage} · {size(progress.bytes_done)} of {size(progress.bytes_done / max(progress.share, 1e-9))}"
    if progress.seconds > 1 and progress.bytes_done:
        yield f"{size(progress.bytes_per_second)}/s"
        yield from left(progress)


def ending_html(job: Job | None, endings: Mapping[str, str]) -> str:
    """Why a job stopped early, or what it remarks; empty where all is well, and while it runs.

    Args:
        endings: what to say of a job that was cancelled or interrupted.
    """
    if job is None or job.active:
        return ""
    if job.state == "failed":
        return _problem(job.error or "")
    if job.state != "done":
        return f'<p class="quiet" role="status">{html.escape(endings.get(job.state, job.state))}</p>'
    return "".join(_problem(str(remark)) for remark in (job.result or {}).get("remarks", []))


def _problem(text: str) -> str:
    return f'<p class="problem" role="alert">{html.escape(text)}</p>'
