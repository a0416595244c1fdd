"""What the Merge tab says about plans and jobs, as HTML. Everything from people and models is escaped here."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from components.merge.health import health_html, unsound_html
from components.merge.recipe import ONE_CLICK_METHOD, ONE_CLICK_PARAMETERS, Checked, expert_names
from components.numbers import count, size
from components.progress import job_bar, left
from merging import METHODS, MergingError, Recipe
from merging.engine import Progress
from merging.job_records import Job

MISSED = 1e-4
"""A share kept that is less than this below what was asked is just rounding."""
NO_MODEL = "\nNo model was written."
ENDINGS = {
    "failed": ("The merge failed", "mg-bad"),
    "cancelled": ("Cancelled. Nothing was written.", "mg-quiet"),
    "interrupted": ("Interrupted: Mergescope was stopped while this ran. Merge again.", "mg-quiet"),
}


def notice_html(text: str) -> str:
    """A quiet line in place of the plan."""
    return f'<p class="mg-plan">{html.escape(text)}</p>'


def share(value: float) -> str:
    """A share as per cent with two digits that mean something; small ones are not rounded away."""
    if 0 < value < 0.0001:
        return "below 0.01 %"
    if value in (0, 1):
        return f"{value * 100:.0f} %"
    return f"{value * 100:.2f} %" if value < 0.1 else f"{value * 100:.1f} %"


def seconds(value: float) -> str:
    """How long something took, never as nothing."""
    return f"{value:.1f} s" if value >= 0.05 else "below 0.1 s"


def plan_html(checked: Checked) -> str:
    """One line about a merge that can run, or all that is in its way."""
    if checked.plan is None:
        return problems_html("This cannot be merged yet", checked.problems)
    plan = checked.plan
    experts = f"{len(plan.experts)} expert{'s' if len(plan.experts) != 1 else ''}"
    line = (
        f"{experts} · {len(plan.tensors)} tensors · {count(plan.parameters)} parameters · "
        f"writes {size(plan.bytes_to_write)}"
    )
    return f'<p class="mg-plan">{line}</p>' + warnings_html(plan.warnings)


def problems_html(heading: str, problems: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(problem)}</li>" for problem in problems)
    return (
        f'<div class="mg-problems" role="alert"><strong>{html.escape(heading)}</strong><ul>{items}</ul></div>'
    )


def warnings_html(warnings: Sequence[str]) -> str:
    return "".join(f'<p class="mg-warning">{html.escape(warning)}</p>' for warning in warnings)


def progress_html(job: Job | None) -> str:
    """The one progress bar: how far, how fast, how long still; empty where nothing waits or runs."""
    return job_bar(job, job.title if job is not None else "", "reading headers", _told, _bar)


def _told(progress: Progress) -> list[str]:
    speed = [f"{size(progress.bytes_per_second)}/s"] if progress.seconds > 0 else []
    return [progress.stage, f"{progress.tensors_done}/{progress.tensors} tensors", *speed, *left(progress)]


def _bar(share: float, words: str, title: str) -> str:
    title, words = html.escape(title), html.escape(words)
    return (
        f'<div class="mg-progress"><div class="mg-line"><strong>{title}</strong><span>{words}</span></div>'
        f'<progress max="1" value="{share:.4f}" aria-label="{title}"></progress></div>'
    )


def result_html(job: Job | None, *, others: bool = False) -> str:
    """The card of a job that has ended: what was attained, or why not; without one, whether merges of `others` models
    are listed."""
    if job is None and others:
        return '<div class="mg-empty"><strong>No merge of these models yet</strong> Earlier ones are listed below.</div>'
    if job is None:
        return (
            '<div class="mg-empty"><strong>No merge yet</strong>'
            "<p>Use the button above: a few seconds later the merged model is here, with what the merge kept.</p></div>"
        )
    if job.active:
        return '<div class="mg-empty"><p>Merging: the result appears here.</p></div>'
    if job.state != "done":
        words, look = ENDINGS[job.state]
        said = _renamed(job, [job.error])[0] + NO_MODEL if job.error else ""
        reason = f"<p>{html.escape(said)}</p>" if said else ""
        return f'<div class="mg-result {look}" role="alert"><strong>{words}</strong>{reason}</div>'
    return _card(job, job.result or {})


def _card(job: Job, result: dict[str, Any]) -> str:
    facts = []
    if result.get("relative_change") is not None:
        facts.append((share(result["relative_change"]), "relative change", "‖merged − base‖ / ‖base‖"))
        facts.append(
            (
                share(result.get("lost_share", 0.0)),
                "rounded away",
                "changed weights the number format puts back",
            )
        )
    facts.append(
        (seconds(result.get("seconds", 0)), "to merge", f"{count(result.get('parameters', 0))} parameters")
    )
    facts.append((size(result.get("bytes_written", 0)), "written", f"{result.get('tensors', 0)} tensors"))
    health = result.get("health")
    cells = "".join(
        f'<div class="mg-fact"><b>{html.escape(value)}</b><span>{html.escape(name)}</span>'
        f"<small>{html.escape(meaning)}</small></div>"
        for value, name, meaning in facts
    )
    return (
        f'<div class="mg-result" role="status"><h3>{html.escape(job.title)}</h3>{unsound_html(health)}'
        f'<div class="mg-facts">{cells}</div>{_kept_table(job, result)}{_lineage_html(result)}{health_html(health)}'
        f"{warnings_html(_renamed(job, result.get('warnings', ())))}</div>"
    )


def _lineage_html(result: dict[str, Any]) -> str:
    """What the merge's parents were merged of, where they are merges themselves."""
    words = result.get("lineage")
    return (
        f'<p class="mg-kept-words">Lineage: {html.escape(words)}.</p>'
        if isinstance(words, str) and words
        else ""
    )


def _renamed(job: Job, texts: Sequence[str]) -> list[str]:
    """Texts with the experts' short names, which the rest of the page uses, in place of their folders."""
    try:
        recipe = Recipe.from_yaml(job.recipe or "")
    except MergingError:
        return list(texts)
    names = {entry.model: name for entry, name in zip(recipe.models, expert_names(recipe), strict=True)}
    found = "|".join(re.escape(model) for model in sorted(names, key=len, reverse=True))
    if not found:
        return list(texts)
    return [re.sub(rf"(?<![\w/.-])({found})(?=[:\s])", lambda at: names[at[1]], text) for text in texts]


def _kept_table(job: Job, result: dict[str, Any]) -> str:
    """What trimming kept of each expert's change, and why that is not what was asked; nothing for methods that trim
    nothing."""
    density = result.get("density")
    if not density:
        return ""
    names = _names(job, len(density))
    asked, tied = result.get("asked") or density, result.get("tied") or [0] * len(density)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{share(wanted)}</td><td><span class="mg-meter" '
        f'style="--share:{kept:.4f}"></span>{share(kept)}</td></tr>'
        for name, wanted, kept in zip(names, asked, density, strict=False)
    )
    said = "".join(
        f'<p class="mg-kept-words">{html.escape(text)}</p>'
        for text in kept_words(names, list(zip(asked, density, tied, strict=False)))
    )
    return (
        '<table class="mg-kept"><thead><tr><th scope="col">expert</th><th scope="col">to keep</th>'
        f'<th scope="col">kept</th></tr></thead><tbody>{rows}</tbody></table>{said}'
    )


def kept_words(names: Sequence[str], facts: Sequence[tuple[float, float, int]]) -> list[str]:
    """What (share asked, share kept, elements tied at the cut) of each expert mean, where they mean something."""
    found = []
    for name, (asked, kept, _) in zip(names, facts, strict=False):
        if kept < asked - MISSED:
            found.append(
                f"{name}: {share(asked)} was to be kept, but only {share(kept)} of the weights changed; the rest are zeros."
            )
    ties = ", ".join(f"{name} {tied:,}" for name, (_, _, tied) in zip(names, facts, strict=False) if tied > 1)
    if ties:
        found.append(
            f"Changes of exactly the size at which the cut lies: {ties}. Their position decides which of them stay, so that "
            "the share is exact."
        )
    return found


def _names(job: Job, length: int) -> tuple[str, ...]:
    try:
        names = expert_names(Recipe.from_yaml(job.recipe or ""))
    except MergingError:
        names = ()
    return names if len(names) == length else tuple(f"expert {n}" for n in range(1, length + 1))


def default_text(names: Sequence[str]) -> str:
    """What the one-click merge does, before it is clicked."""
    method = METHODS[ONE_CLICK_METHOD]
    share = ONE_CLICK_PARAMETERS["lambda"]
    whose = ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else "no expert"
    return (
        '<div class="mg-lead"><h2>Merge the experts into one model</h2>'
        f"<p>{html.escape(method.title)} adds {share:g} of what each of {html.escape(whose)} changed to the base. "
        "It takes seconds; the parents stay as they are.</p></div>"
    )
