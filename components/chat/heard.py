"""What a column said last, to the token, and the models that can be asked about it."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from components.chat.loading import asked_models
from components.chat.log import Log, Said
from components.chat.models import NOBODY, Visit, choices
from components.chat.recipe import RECIPE
from components.chat.views import Talk
from components.server.backend import job_store
from components.server.settings import Settings
from merging import MergingError, Recipe
from merging.inference import LoadedModel

KNOWN = 6
"""States that a handler of an analysis takes before its own values."""
PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
ANALYSIS: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "analysis", **PRIVATE}
Options = list[tuple[str, str]]


@dataclass(frozen=True)
class Columns:
    """What is in the columns: the conversations, the key of each one's model, and what was asked and said in all."""

    talk: Talk
    chosen: Sequence[str]
    log: Log

    def last(self, column: int) -> Said | None:
        """The last reply that a column shows, with its tokens; None where it shows none."""
        said, key = self.talk[column], self.chosen[column]
        if not said or said[-1]["role"] != "assistant":
            return None
        told = (one for turn in reversed(self.log) for one in turn.replies)
        return next(
            (one for one in told if one.key == key and one.text == said[-1]["content"] and one.ids.reply),
            None,
        )

    @property
    def heard(self) -> list[int]:
        """The columns that show a reply."""
        return [column for column in range(len(self.chosen)) if self.last(column) is not None]


def names(visit: Visit) -> dict[str, str]:
    """What the page calls every model that can be asked."""
    known = choices(job_store(visit.settings), visit.owner, visit.family, recipe=True)
    return {key: label for label, key in known if key != NOBODY}


def column_options(visit: Visit, columns: Columns) -> Options:
    """Label and number of every column that has a model."""
    known = names(visit)
    return [
        (f"{column + 1} · {known[key]}", str(column))
        for column, key in enumerate(columns.chosen)
        if key in known
    ]


def column_of(value: object, columns: Columns) -> int:
    """The column that a dropdown names.

    Raises:
        MergingError: it names none, or one without a model.
    """
    for column, key in enumerate(columns.chosen):
        if value == str(column) and key != NOBODY:
            return column
    raise MergingError("This column has no model now. Choose another column.")


def model_of(visit: Visit, key: str, recipe: str = "") -> LoadedModel:
    """The model of a key, loaded if need be.

    Args:
        recipe: the YAML by which a merge that was never saved answered; without it the page's recipe is meant.

    Raises:
        MergingError: it is gone, or cannot be loaded.
    """
    if key == RECIPE and recipe:
        visit = replace(visit, recipe=Recipe.from_yaml(recipe))
    return asked_models(visit, [key])[0].load()


@dataclass(frozen=True)
class Page:
    """What the analyses of a page wait for: the states they know its columns by, and when these change.

    `known` holds family, recipe, owner, conversations, keys and log, in this order.
    """

    settings: Settings
    known: list[gr.components.Component]
    changes: list[Callable[..., Any]]

    def answers(self, event: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        """An event of a visit, its columns and more values, as a handler of `known` and these values."""

        def handle(request: gr.Request, *values: Any) -> list[Any]:
            return event(*self._met(request, values), *values[KNOWN:])

        return handle

    def streams(self, event: Callable[..., Iterator[list[Any]]]) -> Callable[..., Iterator[list[Any]]]:
        """The same for an event with several answers."""

        def handle(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
            yield from event(*self._met(request, values), *values[KNOWN:])

        return handle

    def _met(self, request: gr.Request, values: Sequence[Any]) -> tuple[Visit, Columns]:
        visit = Visit(self.settings, request.session_hash or "", *values[:3])
        return visit, Columns(*values[3:KNOWN])


def problem_html(sentence: str) -> str:
    """A sentence about what went wrong."""
    return f'<p class="problem" role="alert">{html.escape(sentence)}</p>'
