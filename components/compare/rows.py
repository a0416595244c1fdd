"""The board of a family as the history knows it, and what every part of the tab does with it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from components.chat.models import unable
from components.compare.board import Board, Column, Result, Row, TextScore
from components.compare.suites import SPLITS, Ruler, demo_suite, demo_tasks
from components.compare.who import parents
from components.family import Family
from components.figures.scores import TaskScore
from components.server.backend import run_history
from components.server.settings import Settings
from merging.evaluation import Perplexity
from merging.judging.history import Run, Score

MOST_ROWS = 40
"""Runs that the table shows, the newest of those that were measured."""
MOST_KEPT = 6
"""Suites of earlier visits that the table shows as well."""


@dataclass(frozen=True)
class Known:
    """What the history knows of some models, by (subject, fingerprint of what was asked)."""

    totals: Mapping[tuple[str, str], Score]
    texts: Mapping[tuple[str, str], Perplexity]

    def results(self, subject: str, columns: Sequence[Column]) -> dict[str, Result]:
        """The results of one model, by the keys of columns."""
        found: dict[str, Result] = {}
        for column in columns:
            score, text = self.totals.get((subject, column.key)), self.texts.get((subject, column.key))
            if score is not None:
                found[column.key] = TaskScore(score.value, score.interval.low, score.interval.high, score.n)
            elif text is not None:
                spread = (text.interval.low, text.interval.high) if text.interval else (None, None)
                found[column.key] = TextScore(text.value, *spread, text.tokens)
        return found


def make_board(settings: Settings, owner: str, family: Family, ruler: Ruler) -> Board:
    """Parents and measured runs of a family, on what is chosen and on uploads of earlier visits.

    Raises:
        MergingError: a model or the history cannot be read.
    """
    if not family.experts or unable(family.base):
        return Board((), ())
    history = run_history(settings)
    models = parents(settings, family)
    runs = newest_runs(history.list(owner), {model.key for model in models})
    keys = [*(model.key for model in models), *runs]
    known = Known(history.totals(owner, keys), history.perplexities(owner, keys))
    columns = (*ruler.columns, *_kept(settings, family, ruler, known))
    found = {key: known.results(key, columns) for key in keys}
    kinds = ("base", *("expert" for _ in family.experts))
    rows = [
        Row(model.key, model.name, "base" if kind == "base" else "expert", found[model.key])
        for model, kind in zip(models, kinds, strict=True)
    ]
    measured = [run for key, run in runs.items() if found[key]][:MOST_ROWS]
    rows += [
        Row(run.subject, name, "run", found[run.subject], detail(run))
        for name, run in zip(_names(measured, family), measured, strict=True)
    ]
    return Board(tuple(rows), columns)


def _names(runs: Sequence[Run], family: Family) -> list[str]:
    """The titles of runs without the experts where all take part; of two that are called alike, each with its time."""
    everyone = " · " + ", ".join(family.names)
    names = [run.title.removesuffix(everyone) for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} · {when(run.created)}"
        for name, run in zip(names, runs, strict=True)
    ]


def newest_runs(runs: Collection[Run], parents: Collection[str]) -> dict[str, Run]:
    """The runs over these parents only, by subject: of those with the same bits the newest."""
    found: dict[str, Run] = {}
    for run in runs:
        if run.models and all(model.fingerprint in parents for model in run.models):
            found.setdefault(run.subject, run)
    return found


def detail(run: Run) -> str:
    """When a run was made, and the beginning of its note."""
    note = run.note.replace("\n", " ")
    short = note if len(note) <= 60 else f"{note[:59]}…"
    return " · ".join(part for part in (when(run.created), short) if part)


def when(seconds: float) -> str:
    return time.strftime("%d %b %H:%M", time.localtime(seconds))


def _kept(settings: Settings, family: Family, ruler: Ruler, known: Known) -> list[Column]:
    """Columns of what was uploaded on an earlier visit: what the page itself no longer has."""
    here = {column.key for column in ruler.columns}
    here |= {
        demo_suite(settings, task, split).fingerprint
        for task in demo_tasks(settings, family)
        for split in SPLITS
    }
    found: dict[str, Column] = {}
    for score in sorted(known.totals.values(), key=lambda score: score.created, reverse=True):
        key = score.suite_fingerprint
        found.setdefault(key, Column(key, score.suite, score.scoring, score.n, kept=True))
    for (_, key), text in known.texts.items():
        found.setdefault(key, Column(key, text.name, kept=True))
    return [column for key, column in found.items() if key not in here][:MOST_KEPT]
