"""What the Scores part shows of the board: the table, its figures, and two rows on the same items.

Keys come from the browser and are checked here.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import gradio as gr

from components.clickable_plot import payload
from components.compare.board import Board, score_models
from components.compare.page import Asked
from components.compare.views import board_html, comparison_html
from components.figures.pareto import pareto_chart
from components.figures.scores import scores_chart
from components.server.backend import run_history
from merging import MergingError
from merging.judging.intervals import compare

PICK_TWO = '<p class="quiet">Choose two models and a task that both were asked.</p>'
FEWER = "Two tasks and a measured model are needed for this."
BOARD = 10
"""Outputs that show the board."""


def refresh(asked: Asked, *picks: Any) -> list[Any]:
    """The board, its figures and the comparison: `BOARD` outputs.

    `picks` are the chosen keys: the tasks across and up, the rows before and after, and the task of the comparison.
    """
    return show_board(asked, asked.board(), *picks)


def show_board(asked: Asked, board: Board, *picks: Any) -> list[Any]:
    """See `refresh`."""
    models, names = score_models(board)
    tasks = list(zip(names, (column.key for column in board.tasks), strict=True))
    across, up = _two(picks[0], picks[1], [key for _, key in tasks])
    rows = [
        (row.name, row.key)
        for row in board.rows
        if any(row.score(column) is not None for column in board.tasks)
    ]
    before, after, task = _pair(board, *picks[2:])
    bars = payload(scores_chart(models, names))
    return [
        board_html(board),
        gr.update(visible=not board.empty),
        bars,
        gr.update(choices=tasks, value=across),
        gr.update(choices=tasks, value=up),
        pareto(board, across, up),
        gr.update(choices=rows, value=before),
        gr.update(choices=rows, value=after),
        gr.update(choices=tasks, value=task),
        compared(asked, board, before, after, task),
    ]


def show_pareto(asked: Asked, across: Any, up: Any) -> Any:
    """Another pair of tasks was chosen for the Pareto front."""
    return pareto(asked.board(), across, up)


def show_comparison(asked: Asked, before: Any, after: Any, task: Any) -> str:
    """Other rows or another task were chosen to be compared."""
    return compared(asked, asked.board(), before, after, task)


def pareto(board: Board, across: Any, up: Any) -> Any:
    """The Pareto front of two tasks by their keys, as payload."""
    models, names = score_models(board)
    keys = [column.key for column in board.tasks]
    if across not in keys or up not in keys or not models:
        return {"empty": FEWER}
    return payload(pareto_chart(models, names, keys.index(across), keys.index(up)), empty=FEWER)


def compared(asked: Asked, board: Board, before: Any, after: Any, task: Any) -> str:
    """Two rows on the same items."""
    one, other, column = board.row(before), board.row(after), board.column(task)
    if one is None or other is None or column is None or one is other:
        return PICK_TWO
    try:
        found = run_history(asked.settings).scores(asked.owner, [one.key, other.key])
        results = [found.get((row.key, column.key)) for row in (one, other)]
        if results[0] is None or results[1] is None:
            return PICK_TWO
        return comparison_html(
            (one.name, other.name), results[0], results[1], compare(results[0], results[1])
        )
    except MergingError as error:
        return f'<p class="problem" role="alert">{html.escape(str(error))}</p>'


def _two(first: Any, second: Any, keys: Sequence[str]) -> tuple[str | None, str | None]:
    """Two different tasks, as chosen where that is possible."""
    first = first if first in keys else next(iter(keys), None)
    others = [key for key in keys if key != first]
    return first, second if second in others else next(iter(others), None)


def _pair(board: Board, before: Any, after: Any, task: Any) -> tuple[str | None, str | None, str | None]:
    """Rows and task of the comparison: as chosen, else the newest run beside the own expert of the first task."""
    column = board.column(task)
    if column is None or column.is_text:
        column = next(iter(board.tasks), None)
    if column is None:
        return None, None, None
    scored = [row for row in board.rows if row.score(column) is not None]
    keys = [row.key for row in scored]
    own = board.own(column)
    newest = next((row.key for row in scored if row.kind == "run"), keys[-1] if keys else None)
    after = after if after in keys else newest
    if before not in keys or before == after:
        before = own.key if own is not None and own.key in keys and own.key != after else None
        before = before or next((key for key in keys if key != after), None)
    return before, after, column.key
