"""What the Compare tab says of scores, as HTML. Everything from people and models is escaped here."""

from __future__ import annotations

import html
from collections.abc import Sequence

from components.compare.board import Board, Column, Row, TextScore, board_table, short_names
from components.figures.scores import TaskScore
from components.numbers import signed
from components.progress import job_bar, left
from components.tables import csv_link
from merging.evaluation import ItemResult, SuiteResult
from merging.job_records import Job
from merging.judging.intervals import Comparison

NOTHING_YET = (
    '<div class="mg-empty"><strong>Nothing measured yet</strong><p>Choose the tasks above and press Measure: base, experts '
    "and your merges are then asked the same questions, and this table says what every merge kept.</p></div>"
)
NO_MODELS = (
    '<div class="mg-empty"><strong>No expert yet</strong><p>Choose a base and its experts on the Models tab; then they can '
    "be measured here.</p></div>"
)
MOST_ITEMS = 60
"""Items that a list of gained or lost ones shows."""
CHANCE = 0.05


def percent(value: float) -> str:
    """A share with one digit, such as 68.3 %."""
    return f"{100 * value:.1f} %"


def board_html(board: Board) -> str:
    """The table of runs × tasks: each score with its interval, and how much of the own expert's a merge kept."""
    if not board.rows:
        return NO_MODELS
    if board.empty:
        return NOTHING_YET
    texts = [column for column in board.columns if column.is_text]
    titles = [("Model", ""), *([("Mean", _over(board))] if board.tasks else [])]
    titles += [
        (name, _about(board, column))
        for name, column in zip(short_names(board.tasks), board.tasks, strict=True)
    ]
    titles += [(column.name, "perplexity, lower is better") for column in texts]
    heads = [_head(name, about, place=place) for place, (name, about) in enumerate(titles)]
    best = _best(board)
    body = "".join(_line(board, row, texts, best) for row in board.rows)
    return (
        '<div class="cm-scroll" tabindex="0" role="region" aria-label="Scores of every model">'
        '<table class="cm-board"><caption>Scores of parents and merges on the same items</caption>'
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<p class="chart-note cm-legend">{_legend(board)}</p>'
        f'<p class="links">{csv_link(board_table(board), "mergescope-scores.csv", "Save the table as CSV")}</p>'
    )


def _head(name: str, about: str, *, place: int) -> str:
    shown = f"<small>{html.escape(about)}</small>" if about else ""
    return (
        f'<th scope="col" aria-sort="none"><button type="button" data-place="{place}">{html.escape(name)}'
        f'<span aria-hidden="true"></span></button>{shown}</th>'
    )


def _over(board: Board) -> str:
    tasks = len(board.counted)
    return f"of {tasks} task{'s' if tasks != 1 else ''}"


def _about(board: Board, column: Column) -> str:
    """What stands under a task's name: its file, its size, and who sets its measure."""
    file = column.name.partition("/")[2]
    own = board.own(column)
    rule = column.scoring if column.scoring != "exact" else ""
    whose = ""
    if own is not None and own.score(column) is not None:
        whose = f"{'own' if board.is_named(column) else 'best'} expert: {own.name}"
    return " · ".join(part for part in (file, f"n {column.n:,}", rule, whose) if part)


def _best(board: Board) -> dict[str, float]:
    """The best run's score on every task, where there is more than one run."""
    found = {}
    for column in board.tasks:
        scores = [score for row in board.runs if (score := row.score(column)) is not None]
        if len(scores) > 1:
            found[column.key] = max(scores)
    return found


def _line(board: Board, row: Row, texts: Sequence[Column], best: dict[str, float]) -> str:
    kind = {"base": "base", "expert": "expert"}.get(row.kind, "")
    badge = f'<span class="badge badge-plain">{kind}</span>' if kind else ""
    title, _, rest = row.name.partition(" · ") if row.kind == "run" else (row.name, "", "")
    more = "".join(f"<small>{html.escape(part)}</small>" for part in (rest, row.detail) if part)
    cells = [f'<th scope="row"><span class="cm-name">{html.escape(title)}{badge}</span>{more}</th>']
    cells += [_mean_cell(board, row)] if board.tasks else []
    cells += [_cell(board, row, column, best) for column in board.tasks]
    cells += [_text_cell(row.results.get(column.key)) for column in texts]
    return f'<tr class="cm-{row.kind}">{"".join(cells)}</tr>'


def _mean_cell(board: Board, row: Row) -> str:
    mean = board.mean(row)
    if mean is None:
        return _EMPTY
    kept = board.mean_retention(row)
    told = f'<span class="cm-kept">{100 * kept:.0f} % kept</span>' if kept is not None else ""
    return f'<td data-sort="{mean:.6f}" class="cm-mean"><b>{percent(mean)}</b>{told}</td>'


_EMPTY = '<td data-sort=""><span class="cm-none">–</span></td>'


def _cell(board: Board, row: Row, column: Column, best: dict[str, float]) -> str:
    found = row.results.get(column.key)
    if not isinstance(found, TaskScore):
        return _EMPTY
    own = board.own(column)
    target = own.score(column) if own is not None else None
    tick = f'<i style="left:{100 * target:.2f}%"></i>' if target is not None else ""
    bar = (
        f'<span class="cm-bar" aria-hidden="true" style="--low:{found.low:.4f};--high:{found.high:.4f};'
        f'--at:{found.value:.4f}">{tick}</span>'
    )
    kept = board.retention(row, column)
    told = f'<span class="cm-kept">{100 * kept:.0f} % kept</span>' if kept is not None else ""
    if own is row:
        told = f'<span class="cm-own">{"own" if board.is_named(column) else "best"} expert</span>'
    look = ' class="cm-best"' if found.value == best.get(column.key) and row.kind == "run" else ""
    return (
        f'<td data-sort="{found.value:.6f}"{look}><b>{percent(found.value)}</b>{bar}'
        f"<small>{100 * found.low:.0f} to {100 * found.high:.0f}</small>{told}</td>"
    )


def _text_cell(found: object) -> str:
    if not isinstance(found, TextScore):
        return _EMPTY
    spread = (
        f"{found.low:.3g} to {found.high:.3g} · " if found.low is not None and found.high is not None else ""
    )
    return f'<td data-sort="{found.value:.6f}"><b>{found.value:.3g}</b><small>{spread}{found.tokens:,} tokens</small></td>'


def _legend(board: Board) -> str:
    parts = ["Bar and small numbers: the 95 % interval (Wilson) of the score, in per cent."]
    if any(board.own(column) for column in board.tasks):
        parts.append(
            "The tick is what the task's own expert scores; “kept” is a merge's score over that. A task that no expert is "
            "called after is measured against the expert that scores best on it."
        )
    return html.escape(" ".join(parts))


def progress_html(job: Job | None) -> str:
    """How far the running measurement is; empty where none waits or runs."""
    return job_bar(
        job, "measuring scores", "looking up what is known", lambda now: [now.stage, *left(now, 2)]
    )


def comparison_html(
    names: tuple[str, str], before: SuiteResult, after: SuiteResult, found: Comparison
) -> str:
    """Two models on the same items: the difference, how sure it is, and the items gained and lost."""
    points = 100 * found.difference
    low, high = 100 * found.interval.low, 100 * found.interval.high
    first, second = (html.escape(name) for name in names)
    p = f"p = {found.p:.2g}" if found.p >= 0.0001 else "p < 0.0001"
    tiles = (
        f"<div><dt>Difference</dt><dd>{signed(points)} points</dd>"
        f'<dd class="unit">95 % interval {signed(low)} to {signed(high)}, paired bootstrap</dd></div>'
        f'<div><dt>Exact McNemar</dt><dd>{p}</dd><dd class="unit">{len(found.gained)} gained against {len(found.lost)} '
        "lost</dd></div>"
        f'<div><dt>Scores</dt><dd>{percent(before.score)} → {percent(after.score)}</dd><dd class="unit">{after.n:,} '
        "items</dd></div>"
    )
    return (
        f'<p class="cm-verdict" role="status">{_verdict(first, second, found)}</p><dl class="tiles">{tiles}</dl>'
        + _changed("gained", "Gained", names, before, after)
        + _changed("lost", "Lost", names, before, after)
    )


def _verdict(first: str, second: str, found: Comparison) -> str:
    """The outcome in a sentence; the names are escaped."""
    if not found.gained and not found.lost:
        return f"<strong>{first}</strong> and <strong>{second}</strong> answer every item equally well."
    which = "better" if found.difference > 0 else "worse"
    if found.p >= CHANCE or found.difference == 0:
        return (
            f"<strong>{second}</strong> and <strong>{first}</strong> cannot be told apart by these items: so uneven a split "
            "could be chance."
        )
    return (
        f"<strong>{second}</strong> is {which} than <strong>{first}</strong> by {abs(100 * found.difference):.1f} points, more "
        "than chance would explain."
    )


def _changed(which: str, title: str, names: tuple[str, str], before: SuiteResult, after: SuiteResult) -> str:
    """The items that one model answers right and the other wrong."""
    gained = which == "gained"
    pairs: list[tuple[ItemResult, ItemResult]] = [
        (old, new)
        for old, new in zip(before.items, after.items, strict=True)
        if old.correct != new.correct and new.correct == gained
    ]
    if not pairs:
        return ""
    heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in ("prompt", "expected", *names))
    rows = "".join(
        f'<tr><th scope="row">{html.escape(new.prompt)}</th><td>{html.escape(new.answer)}</td>'
        f"<td>{_reply(old)}</td><td>{_reply(new)}</td></tr>"
        for old, new in pairs[:MOST_ITEMS]
    )
    more = f", the first {MOST_ITEMS} of them" if len(pairs) > MOST_ITEMS else ""
    label = html.escape(f"{title} items", quote=True)
    return (
        f'<details class="fold"><summary>{title}: {len(pairs):,} item{"s" if len(pairs) != 1 else ""}{more}</summary>'
        f'<div class="cm-scroll" tabindex="0" role="region" aria-label="{label}"><table class="cm-items">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _reply(item: ItemResult) -> str:
    look = "good" if item.correct else "bad"
    said = html.escape(item.reply) if item.reply.strip() else "<em>nothing</em>"
    note = f" <small>({html.escape(item.note)})</small>" if item.note else ""
    return f'<span class="cm-reply cm-{look}">{said}</span>{note}'
