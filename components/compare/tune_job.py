"""Tuning as a job, and the one look at the test files afterwards as another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from components.compare.search import Search, counted, follow
from components.figures.tuning import TrialPoint
from components.merge.recipe import at_root, check
from components.preview.store import shared_previews
from components.server.backend import run_history
from components.server.settings import Settings
from components.server.zero_gpu import MOST_SECONDS, on_gpu, seconds_lent, size_of
from merging import MergingError, Progress, Recipe
from merging.evaluation import SuiteResult
from merging.judging.history import subject_of_plan
from merging.judging.intervals import Interval, compare, mcnemar, paired_bootstrap
from merging.judging.suites import Suite
from merging.judging.trials import Stop, Trials
from merging.plan import make_plan
from merging.tuning import Trial, Tuned, tune

KIND = "tune"
FINAL = "tune-final"
ALL = "all items together"
CUT_SHORT = (
    "The search ended after {trials} trials in {seconds:.0f} seconds, because the GPU is lent for no longer. To go on, load the "
    "best trial into Merge and tune that."
)


@dataclass(frozen=True)
class Request:
    """The recipe that a search begins with, what it is judged by, how it searches and for how long; `lent`: that it ends
    then because a lent GPU is given back."""

    owner: str
    recipe: Recipe
    suites: tuple[Suite, ...]
    strategy: str
    trials: int | None
    minutes: float | None
    lent: bool = False


def work(settings: Settings, request: Request) -> Callable[[Path], Iterator[Any]]:
    """The job: progress, every trial as it is done, in the end all of them with the best recipe."""
    trials = request.trials or MOST_SECONDS  # so many that all that may be asked for is
    size = size_of(make_plan(at_root(request.recipe)), trials, trials * sum(map(len, request.suites)))
    lent = seconds_lent(size)
    if lent is not None and 60 * (request.minutes or lent) >= lent:
        request = replace(request, minutes=lent / 60, lent=True)
    return on_gpu(size, _search, settings, request)


def _search(settings: Settings, request: Request, out: Path) -> Iterator[Any]:
    return follow(_Tuning(request.suites, settings=settings, request=request, scratch=out.parent))


@dataclass(kw_only=True)
class _Tuning(Search):
    settings: Settings
    request: Request
    scratch: Path
    trials: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    far: float = 0.0

    def steps(self) -> Iterator[None]:
        """Search; the first trial is the recipe as it stands."""
        request = self.request
        maker = Trials(shared_previews().residents, self.settings.device, self.scratch)
        search = tune(
            request.recipe,
            self.suites,
            trials=maker,
            strategy=request.strategy,
            budget=request.trials,
            minutes=request.minutes,
        )
        with closing(search) as events:  # type: ignore[type-var]
            for event in events:
                if isinstance(event, Trial):
                    self._take(event)
                elif isinstance(event, Progress):
                    self.doing, self.far = event.stage, event.share
                else:
                    self._ended(event)
                yield

    def _ended(self, tuned: Tuned) -> None:
        """Say so where the search ended because a lent GPU is given back."""
        minutes, scored = self.request.minutes, sum(trial.score is not None for trial in tuned.trials)
        late = minutes is not None and tuned.seconds >= 60 * minutes
        if self.request.lent and late and scored != self.request.trials:
            self.remarks.append(CUT_SHORT.format(trials=scored, seconds=tuned.seconds))

    def _take(self, trial: Trial) -> None:
        self.trials.append(
            {
                "number": trial.number + 1,
                "score": trial.score,
                "values": dict(trial.values),
                "scores": counted(trial.results),
                "problem": trial.problem,
            }
        )
        if trial.best:
            recipe = at_root(trial.recipe)
            self.best = {**self.trials[-1], "recipe": recipe.to_yaml()}
            self._kept(recipe, trial.results)
        self.found += 1

    def _kept(self, recipe: Recipe, results: Sequence[SuiteResult]) -> None:
        """Keep the scores in the history; a search goes on where that cannot be written, and says so."""
        try:
            keep(self.settings, self.request.owner, recipe, self.suites, results)
        except MergingError as error:
            if (words := f"Not all scores are in the history: {error}") not in self.remarks:
                self.remarks.append(words)

    def results(self) -> dict[str, Any]:
        return {"strategy": self.request.strategy, "trials": list(self.trials), "best": self.best}

    def share(self) -> float:
        return self.far


def final_work(
    settings: Settings, owner: str, tuned: Mapping[str, str], suites: tuple[Suite, ...]
) -> Callable[[Path], Iterator[Any]]:
    """The job that asks the tuned and the untuned recipe what the search never saw.

    Args:
        tuned: the search's `job`, and the YAML of both recipes as `before` and `after`.
    """
    plan = make_plan(at_root(Recipe.from_yaml(tuned["after"])))
    size = size_of(plan, 2, 2 * sum(map(len, suites)))
    return on_gpu(size, _ask_both, settings, owner, tuned, suites)


def _ask_both(
    settings: Settings, owner: str, tuned: Mapping[str, str], suites: tuple[Suite, ...], out: Path
) -> Iterator[Any]:
    return follow(_Final(suites, settings=settings, owner=owner, tuned=tuned, scratch=out.parent))


@dataclass(kw_only=True)
class _Final(Search):
    settings: Settings
    owner: str
    tuned: Mapping[str, str]
    scratch: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def steps(self) -> Iterator[None]:
        """Ask both recipes, then compare them item by item."""
        trials = Trials(shared_previews().residents, self.settings.device, self.scratch)
        recipes = [at_root(Recipe.from_yaml(self.tuned[which])) for which in ("before", "after")]
        jobs = [partial(_ask, trials, recipe, self.suites) for recipe in recipes]
        found: list[tuple[SuiteResult, ...]] = []
        self.total = len(jobs)
        with closing(trials.each(jobs, trials.side_by_side(make_plan(recipes[0])))) as steps:  # type: ignore[type-var]
            for step in steps:
                if step is not None:
                    keep(self.settings, self.owner, recipes[len(found)], self.suites, step)
                    found.append(step)
                    self.done = len(found)
                self.doing = f"{min(self.done + 1, 2)}/2 recipes on the test files"
                yield
        self.rows = compared(found[0], found[1])
        self.found += 1

    def results(self) -> dict[str, Any]:
        return {"tuned": self.tuned["job"], "rows": self.rows}


def _ask(trials: Trials, recipe: Recipe, suites: tuple[Suite, ...], stopped: Stop) -> tuple[SuiteResult, ...]:
    return trials.score(recipe, suites, stopped)


def compared(before: Sequence[SuiteResult], after: Sequence[SuiteResult]) -> list[dict[str, Any]]:
    """Two models beside each other, on each suite and, with several of them, on all items together."""
    rows = []
    for old, new in zip(before, after, strict=True):
        found = compare(old, new)
        rows.append(_row(old.suite, [old], [new], found.interval, (len(found.gained), len(found.lost))))
    if len(before) > 1:
        ones = [[item.correct for result in some for item in result.items] for some in (before, after)]
        gained = sum(new and not old for old, new in zip(*ones, strict=True))
        lost = sum(old and not new for old, new in zip(*ones, strict=True))
        rows.insert(0, _row(ALL, before, after, paired_bootstrap(*ones), (gained, lost)))
    return rows


def _row(
    name: str,
    before: Sequence[SuiteResult],
    after: Sequence[SuiteResult],
    interval: Interval,
    changed: tuple[int, int],
) -> dict[str, Any]:
    n = sum(result.n for result in before)
    right = [sum(item.correct for result in some for item in result.items) for some in (before, after)]
    return {
        "name": name,
        "n": n,
        "before": right[0] / n,
        "after": right[1] / n,
        "low": interval.low,
        "high": interval.high,
        "gained": changed[0],
        "lost": changed[1],
        "p": mcnemar(*changed),
    }


def keep(
    settings: Settings, owner: str, recipe: Recipe, suites: Sequence[Suite], results: Sequence[SuiteResult]
) -> None:
    """Keep what a recipe scored; a run that is saved later then has it."""
    plan = check(recipe).plan
    if plan is None:
        return
    for suite, result in zip(suites, results, strict=True):
        run_history(settings).put_score(owner, subject_of_plan(plan), result, suite)


def points_of(result: Mapping[str, Any]) -> list[TrialPoint]:
    """The trials of a table as the figures take them."""
    return [
        TrialPoint(
            trial["number"],
            trial["score"],
            {
                name: value
                for name, value in trial["values"].items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            },
            trial["problem"],
        )
        for trial in result["trials"]
    ]
