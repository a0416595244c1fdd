"""Every method at its paper's values as one job: merged in memory, asked, and kept as runs, one row after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from components.backend import run_history
from components.chat.recipe import summary
from components.compare.board import Board, Column, Row
from components.compare.job import Subject
from components.compare.search import Search, counted, follow, task_score
from components.compare.who import parents
from components.family import Family
from components.importance_job import measure_demo
from components.merge_recipe import at_root
from components.preview_store import shared_previews
from components.settings import Settings
from merging import METHODS, MergingError, Plan, Recipe
from merging.evaluation import SuiteResult
from merging.every_method import Attempt, every_method
from merging.history import Draft, subject_of_plan
from merging.plan import make_plan
from merging.suites import Suite
from merging.trials import Stop, Trials, results, sentence

KIND = "methods"
NOT_MEASURED = "It needs importance: measure it under Inspect, then run this again."


@dataclass(frozen=True)
class Request:
    """Whose models are merged by every method, and what the merges are asked."""

    owner: str
    family: Family
    recipe: Recipe
    suites: tuple[Suite, ...]


def work(settings: Settings, request: Request) -> Callable[[Path], Iterator[Any]]:
    """The job: progress, the table so far whenever a row is done, in the end the whole table."""
    return lambda out: follow(_Every(request.suites, settings=settings, request=request, scratch=out.parent))


@dataclass(kw_only=True)
class _Every(Search):
    settings: Settings
    request: Request
    scratch: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    unfit: list[list[str]] = field(default_factory=list)

    def results(self) -> dict[str, Any]:
        return {"rows": list(self.rows), "unfit": list(self.unfit)}

    def steps(self) -> Iterator[None]:
        """Ask the parents, then every merge; what one of them cannot do does not spoil the others."""
        models = parents(self.settings, self.request.family)
        attempts = every_method((yield from self._with_importance()))
        self.unfit += [[_title(one), _reason(one)] for one in attempts if one.recipe is None]
        tried = [one for one in attempts if one.recipe is not None]
        jobs = [partial(self._parent, one, number) for number, one in enumerate(models)]
        jobs += [partial(self._merge, one) for one in tried]
        names = [*(one.name for one in models), *map(_title, tried)]
        self.total = len(jobs)
        at_once = self.trials.side_by_side(make_plan(self.request.recipe))
        with closing(self.trials.each(jobs, at_once)) as steps:  # type: ignore[type-var]
            for row in steps:
                if row is not None:
                    (self.rows if "scores" in row else self.unfit).append(
                        row if "scores" in row else row["unfit"]
                    )
                    self.done += 1
                    self.found = self.done
                self.doing = f"{min(self.done + 1, self.total)}/{self.total} models · {names[min(self.done, self.total - 1)]}"
                yield

    def _with_importance(self) -> Generator[None, None, Recipe]:
        """The recipe with importance: what was measured, or of the demo what is measured now."""
        recipe, file = self.request.recipe, None
        if recipe.importance is not None:
            return recipe
        self.doing = "importance of the experts"
        with suppress(MergingError), closing(measure_demo(self.settings, self.request.family)) as steps:
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    file = end.value
                    break
                yield
        return recipe.model_copy(update={"importance": str(file)}) if file is not None else recipe

    @cached_property
    def trials(self) -> Trials:
        return Trials(shared_previews().residents, self.settings.device, self.scratch)

    def _parent(self, parent: Subject, number: int, stopped: Stop) -> dict[str, Any]:
        """Ask the base or an expert what the history does not know of it yet."""
        known, begun = self._known(parent.key), time.perf_counter()
        missing = self._missing(known)
        try:
            if missing:
                found = results(parent.load(self.scratch), missing, stopped)
                self._keep(parent.key, missing, found, known)
        except MergingError as error:
            return {"unfit": [parent.name, str(error)]}
        seconds = time.perf_counter() - begun if missing else None
        return self._row(parent.key, parent.name, "expert" if number else "base", known, seconds)

    def _merge(self, attempt: Attempt, stopped: Stop) -> dict[str, Any]:
        """Merge by one method, ask the result, and keep it as a run."""
        assert attempt.recipe is not None
        recipe, begun = at_root(attempt.recipe), time.perf_counter()
        try:
            plan = make_plan(recipe)
            subject = subject_of_plan(plan)
            known = self._known(subject)
            missing = self._missing(known)
            if missing:
                self._keep(subject, missing, self.trials.score(plan, missing, stopped), known)
        except MergingError as error:
            return {"unfit": [_title(attempt), sentence(error)]}
        name = summary(recipe, self.request.family)
        self._record(plan, subject, name)
        seconds = time.perf_counter() - begun if missing else None
        row = self._row(subject, name, "run", known, seconds)
        return {**row, "recipe": recipe.to_yaml(), "note": attempt.reason}

    def _missing(self, known: Mapping[str, SuiteResult]) -> tuple[Suite, ...]:
        return tuple(suite for suite in self.suites if suite.fingerprint not in known)

    def _known(self, subject: str) -> dict[str, SuiteResult]:
        found = run_history(self.settings).scores(self.request.owner, [subject])
        return {suite: result for (_, suite), result in found.items()}

    def _keep(
        self,
        subject: str,
        suites: tuple[Suite, ...],
        found: tuple[SuiteResult, ...],
        known: dict[str, SuiteResult],
    ) -> None:
        for suite, result in zip(suites, found, strict=True):
            run_history(self.settings).put_score(self.request.owner, subject, result, suite)
            known[suite.fingerprint] = result

    def _record(self, plan: Plan, subject: str, name: str) -> None:
        history, owner = run_history(self.settings), self.request.owner
        if all(run.subject != subject for run in history.list(owner)):
            history.add(owner, Draft.of(plan, title=name))

    def _row(
        self, key: str, name: str, kind: str, known: Mapping[str, SuiteResult], seconds: float | None
    ) -> dict[str, Any]:
        scores = counted([known[suite.fingerprint] for suite in self.suites])
        return {"key": key, "name": name, "kind": kind, "scores": scores, "seconds": seconds, "recipe": ""}


def _title(attempt: Attempt) -> str:
    return METHODS[attempt.method].title if attempt.method in METHODS else attempt.title


def _reason(attempt: Attempt) -> str:
    if attempt.method in METHODS and METHODS[attempt.method].needs_importance:
        return NOT_MEASURED
    return attempt.reason


def board_of(result: Mapping[str, Any] | None) -> Board:
    """A job's table as the page shows it: parents first, then the merges, the best mean first."""
    if not result:
        return Board((), ())
    columns = tuple(Column(key, name, scoring, n) for name, key, scoring, n in result["suites"])
    rows = [_row(row, columns) for row in result["rows"]]
    board = Board(tuple(rows), columns)
    runs = sorted(board.runs, key=lambda row: -(board.mean(row) or 0.0))
    return Board((*(row for row in rows if row.kind != "run"), *runs), columns)


def _row(row: Mapping[str, Any], columns: tuple[Column, ...]) -> Row:
    scores = {
        column.key: task_score(correct, n)
        for column, (correct, n) in zip(columns, row["scores"], strict=True)
    }
    seconds = row["seconds"]
    took = "measured before" if seconds is None else f"{seconds:.1f} s"
    detail = " · ".join(part for part in (took, row.get("note", "")) if part)
    return Row(row["key"], row["name"], row["kind"], scores, detail)
