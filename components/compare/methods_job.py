"""Every method at its paper's values as one job: merged in memory, asked, and kept as runs, one row after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from components.chat.recipe import summary
from components.compare.board import Board, Column, Row
from components.compare.search import Search, counted, follow, task_score
from components.family import Family
from components.importance.job import cache_of, demo_examples
from components.merge.recipe import at_root, reference
from components.preview.store import shared_previews
from components.server.backend import model_cache, run_history
from components.server.settings import Settings
from components.server.zero_gpu import on_gpu, size_of
from merging import METHODS, MergingError, Recipe
from merging.evaluation import SuiteResult
from merging.judging.every_method import Attempt, Scored, try_every_method, with_importance
from merging.judging.history import Draft
from merging.judging.suites import Suite
from merging.judging.trials import Trials
from merging.plan import make_plan

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
    merges = len(METHODS)
    plain = request.recipe.model_copy(
        update={"importance": None}
    )  # which is for the methods that use it alone
    plan = make_plan(at_root(plain))
    size = size_of(plan, merges, merges * sum(map(len, request.suites)))
    return on_gpu(replace(size, gradients=True), _follow, settings, request)


def _follow(settings: Settings, request: Request, out: Path) -> Iterator[Any]:
    return follow(_Every(request.suites, settings=settings, request=request, scratch=out.parent))


@dataclass(kw_only=True)
class _Every(Search):
    settings: Settings
    request: Request
    scratch: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    unfit: list[list[str]] = field(default_factory=list)

    def results(self) -> dict[str, Any]:
        return {"rows": list(self.rows), "unfit": list(self.unfit)}

    def steps(self) -> Iterator[object]:
        """Ask the parents, then every merge; what one of them cannot do does not spoil the others."""
        recipe = yield from self._with_importance()
        trials = Trials(
            shared_previews().residents,
            self.settings.device,
            self.scratch,
            load=model_cache(self.settings).get,
        )
        names = self._names(recipe)
        run = try_every_method(recipe, self.suites, trials, known=self._known, keep=self._keep)
        with closing(run) as events:  # type: ignore[type-var]
            for event in events:
                if isinstance(event, Scored):
                    self._take(event, names)
                else:
                    self.done, self.total = event.tensors_done, event.tensors
                    title = METHODS[event.stage].title if event.stage in METHODS else event.stage
                    self.doing = f"{min(self.done + 1, self.total)}/{self.total} models · {title}"
                yield

    def _with_importance(self) -> Generator[object, None, Recipe]:
        """The recipe with importance: what was measured, or of the demo what is measured now."""
        recipe, examples = at_root(self.request.recipe), None
        if recipe.importance is None:
            with suppress(MergingError):
                examples = demo_examples(self.settings, self.request.family)
        if examples is None:
            return recipe
        self.doing = "importance of the experts"
        data = {reference(expert): suite for expert, suite in examples.items()}
        return (yield from with_importance(recipe, data, cache_of(self.settings), self.settings.device))

    def _names(self, recipe: Recipe) -> dict[Path, str]:
        """The parents' short names by where they are, the base first."""
        family = self.request.family
        named = ((family.base, family.base_name), *zip(family.experts, family.names, strict=True))
        return {recipe.locate(reference(model)): name for model, name in named}

    def _take(self, scored: Scored, names: Mapping[Path, str]) -> None:
        """A row of the table, and a merge as a run; or among those that are left out."""
        attempt, draft = scored.attempt, scored.draft
        name = names[attempt.model] if attempt.model is not None else _title(attempt)
        row = {"key": scored.subject, "scores": counted(scored.results), "seconds": scored.seconds}
        if scored.problem:
            self.unfit.append([name, scored.problem if attempt.recipe is not None else _reason(scored)])
        elif draft is None:
            kind = "base" if attempt.model == next(iter(names)) else "expert"
            self.rows.append({**row, "name": name, "kind": kind, "recipe": ""})
        else:
            name = summary(attempt.recipe, self.request.family)
            self._record(replace(draft, title=name))
            self.rows.append(
                {
                    **row,
                    "name": name,
                    "kind": "run",
                    "recipe": attempt.recipe.to_yaml(),
                    "note": attempt.reason,
                }
            )
        self.found = len(self.rows) + len(self.unfit)

    def _known(self, subject: str) -> dict[str, SuiteResult]:
        found = run_history(self.settings).scores(self.request.owner, [subject])
        return {suite: result for (_, suite), result in found.items()}

    def _keep(self, subject: str, suite: Suite, result: SuiteResult) -> None:
        run_history(self.settings).put_score(self.request.owner, subject, result, suite)

    def _record(self, draft: Draft) -> None:
        history, owner = run_history(self.settings), self.request.owner
        if all(run.subject != draft.subject for run in history.list(owner)):
            history.add(owner, draft)


def _title(attempt: Attempt) -> str:
    return METHODS[attempt.method].title if attempt.method in METHODS else attempt.title


def _reason(scored: Scored) -> str:
    method = scored.attempt.method
    if method in METHODS and METHODS[method].needs_importance:
        return NOT_MEASURED
    return scored.problem


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
