"""A run as the history keeps it: a row of its table, and the limits of what may be in it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from merging.errors import MergingError
from merging.judging.subjects import ModelRef, models_of_plan, subject_of_plan
from merging.plan import Plan

MOST_NOTE = 2_000
"""Characters of a note."""
MOST_TITLE = 200
"""Characters of a title; what is longer is cut."""
MOST_RECIPE = 200_000
"""Characters of a recipe."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What is known of a run when it is added: the recipe as YAML, its models, and what its scores are kept under."""

    recipe: str
    models: tuple[ModelRef, ...]
    subject: str
    title: str = ""
    seconds: float | None = None
    note: str = ""
    job: str | None = None

    @classmethod
    def of(
        cls, plan: Plan, *, title: str = "", seconds: float | None = None, job: str | None = None
    ) -> Draft:
        """The draft of a plan that was run, or is about to be."""
        return cls(
            recipe=plan.recipe.to_yaml(),
            models=models_of_plan(plan),
            subject=subject_of_plan(plan),
            title=title or plan.recipe.merge_method,
            seconds=seconds,
            job=job,
        )


@dataclass(frozen=True, kw_only=True)
class Run(Draft):
    """A run of the history. `created` is in seconds since the epoch; `seconds` is what the merge took."""

    id: str
    owner: str
    created: float


COLUMNS = tuple(field.name for field in fields(Run))


def new_run(owner: str, draft: Draft) -> Run:
    """The run of a draft, with an id.

    Raises:
        MergingError: note or recipe are too long.
    """
    if len(draft.recipe) > MOST_RECIPE:
        raise MergingError(f"The recipe is longer than {MOST_RECIPE:,} characters; it was not kept.")
    values = {field.name: getattr(draft, field.name) for field in fields(Draft)}
    values |= {"title": clean(draft.title)[:MOST_TITLE], "note": checked_note(draft.note)}
    values["recipe"] = clean(draft.recipe)
    return Run(id=secrets.token_hex(16), owner=owner, created=time.time(), **values)


def row_of(run: Run) -> tuple[Any, ...]:
    """The values of `COLUMNS`."""
    values = {name: getattr(run, name) for name in COLUMNS}
    values["models"] = json.dumps([[model.name, model.path, model.fingerprint] for model in run.models])
    return tuple(values.values())


def run_of(row: tuple[Any, ...]) -> Run | None:
    """The run of a row; None where the row is damaged."""
    values = dict(zip(COLUMNS, row, strict=True))
    texts = (values[name] for name in ("title", "recipe", "note", "subject"))
    if not all(isinstance(text, str) for text in texts) or not isinstance(values["created"], float):
        return None
    try:
        values["models"] = tuple(ModelRef(*map(str, model)) for model in json.loads(values["models"]))
    except (ValueError, TypeError):  # the recipe still names them
        values["models"] = ()
    return Run(**values)


def has_words(run: Run, words: Sequence[str]) -> bool:
    """Whether title, recipe, note and models hold every word; the words in lower case (`str.casefold`)."""
    names = (text for model in run.models for text in (model.name, model.path))
    text = "\n".join((run.title, run.recipe, run.note, *names)).casefold()
    return all(word in text for word in words)


def checked_note(text: str) -> str:
    """A note as it is kept.

    Raises:
        MergingError: it is too long.
    """
    if len(text) > MOST_NOTE:
        raise MergingError(
            f"A note may have {MOST_NOTE:,} characters and this one has {len(text):,}; shorten it."
        )
    return clean(text.strip())


def clean(text: str) -> str:
    """The text without halves of characters, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
