"""Searching for better values of a recipe's parameters, judged by task suites."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from merging.errors import MergingError, did_you_mean
from merging.evaluation import SuiteResult
from merging.events import Progress
from merging.heartbeats import Stopped
from merging.judging.search_space import Dimension, Value, Values, current, labelled, with_values
from merging.judging.strategies import STRATEGIES, Objective, make_strategy, retention_objective, space_of
from merging.judging.suites import Suite
from merging.judging.trials import Job, Stop, Trials, go_on, mean_score, never, sentence
from merging.plan import make_plan
from merging.recipe import Recipe

TRIALS = 30
"""Trials where nobody says how many, or for how long."""
FAILURES = 4
"""Failed trials for each of the budget after which a search ends."""
UNBOUNDED = 10_000
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Trial:
    """One recipe that was tried: its number from 0 (the recipe as it is), the values it varies by label, its results and
    `score` (what the strategy compares); without results, why. `best`: it is the best so far."""

    number: int
    values: Mapping[str, Value]
    recipe: Recipe
    score: float | None
    results: tuple[SuiteResult, ...]
    seconds: float
    problem: str = ""
    best: bool = False

    @property
    def mean(self) -> float | None:
        """The mean over the suites, 0 to 1; None without results."""
        return mean_score(self.results) if self.results else None


@dataclass(frozen=True)
class Tuned:
    """The end of a search: the best recipe, its trial and all others."""

    best: Trial
    trials: tuple[Trial, ...]
    strategy: str
    seed: int
    suites: tuple[str, ...]
    seconds: float

    @property
    def recipe(self) -> Recipe:
        return self.best.recipe

    @property
    def note(self) -> str:
        """How it was found, in a line."""
        tried, failed = len(self.trials), sum(trial.score is None for trial in self.trials)
        before = f", {_per_cent(self.trials[0].mean)} before" if self.best.number else ", as it was before"
        return (
            f"Tuned by {self.strategy} (seed {self.seed}) on {', '.join(self.suites)}: {tried} trials"
            f"{f', {failed} of them failed,' if failed else ''} in {self.seconds / 60:.1f} minutes; mean score "
            f"{_per_cent(self.best.mean)}{before}."
        )

    def to_yaml(self) -> str:
        """The best recipe, with the note as a comment above it."""
        return f"# {self.note}\n{self.recipe.to_yaml()}"


def tune(
    recipe: Recipe,
    suites: Sequence[Suite],
    *,
    trials: Trials,
    strategy: str = "tpe",
    budget: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    stopped: Stop = never,
) -> Iterator[Progress | Trial | Tuned]:
    """Search over a method's parameters and the experts' weights; the first trial is the recipe as it is.

    The same seed makes the same trials. Every `Trial` carries its recipe, so whoever closes the iterator has the best one.

    Args:
        suites: what a trial is judged by; keep others for the last word.
        budget, minutes: trials that are scored, and time; the search ends with the first of them. By default 30 trials.
        stopped: once true, the search ends within a second with the best so far.

    Raises:
        MergingError: the recipe cannot run, the strategy does not fit it, the budget is none, or every trial failed.
    """
    _require(strategy, suites, budget, minutes)
    if not 0 <= seed <= LARGEST_SEED:
        raise MergingError(f"seed {seed}: give a whole number from 0 to {LARGEST_SEED:,}.")
    space = space_of(strategy, recipe)
    at_once = trials.side_by_side(make_plan(recipe))
    most = budget if budget is not None else (TRIALS if minutes is None else UNBOUNDED)
    search = _Search(recipe, space, tuple(suites), trials, most, minutes, stopped, at_once)
    with suppress(Stopped):
        yield from search.run(strategy, seed)
    if (best := search.best) is None:
        if search.trials and not stopped():
            raise MergingError(f"No trial could be scored. The first: {search.trials[0].problem}")
        return
    names = tuple(suite.name for suite in suites)
    yield Tuned(best, tuple(search.trials), strategy, seed, names, search.seconds)


@dataclass
class _Search:
    """The trials of a search, its clock and its budget."""

    recipe: Recipe
    space: tuple[Dimension, ...]
    suites: tuple[Suite, ...]
    maker: Trials
    most: int
    minutes: float | None
    stopped: Stop
    at_once: int
    trials: list[Trial] = field(default_factory=list)
    best: Trial | None = None
    objective: Objective = mean_score
    started: float = field(default_factory=time.perf_counter)
    known: dict[str, Trial] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def run(self, name: str, seed: int) -> Iterator[Progress | Trial]:
        go_on(self.stopped)
        if name == "dppa":
            self.objective = retention_objective((yield from self._experts()))
        first = (yield from self._try([{}]))[0]
        strategy = make_strategy(name, self.recipe, seed, first.score)
        while not self._over():
            proposals = strategy.ask(self.most - self._scored)
            if not proposals:
                return
            tried = yield from self._try(proposals)
            strategy.tell([trial.score for trial in tried])

    def _over(self) -> bool:
        failed = len(self.trials) - self._scored
        return self._scored >= self.most or failed > FAILURES * self.most or self.stopped() or self._late()

    @property
    def _scored(self) -> int:
        return sum(trial.score is not None for trial in self.trials)

    def _late(self) -> bool:
        return self.minutes is not None and self.seconds >= 60 * self.minutes

    def _try(self, proposals: Sequence[Values]) -> Generator[Progress | Trial, None, list[Trial]]:
        """Score recipes with these values, next to each other where there is room; the trials in their order."""
        recipes = [with_values(self.recipe, values) if values else self.recipe for values in proposals]
        jobs: list[Job[Trial]] = [partial(self._score, recipe) for recipe in recipes]
        tried: list[Trial] = []
        for found in self._each(jobs):
            if isinstance(found, Progress):
                yield found
                continue
            tried.append(self._added(found))
            yield tried[-1]
        return tried

    def _added(self, trial: Trial) -> Trial:
        """The trial with its number, kept."""
        best = trial.score is not None and (self.best is None or trial.score > (self.best.score or 0))
        trial = Trial(**{**vars(trial), "number": len(self.trials), "best": best})
        self.trials.append(trial)
        self.known[trial.recipe.to_yaml()] = trial
        if best:
            self.best = trial
        return trial

    def _score(self, recipe: Recipe, unwanted: Stop) -> Trial:
        known_as = labelled(self.space).items()
        labels = {label: now for one, label in known_as if (now := current(recipe, one)) is not None}
        made = partial(Trial, 0, labels, recipe)
        if (known := self.known.get(recipe.to_yaml())) is not None:
            return made(known.score, known.results, 0.0, known.problem)
        started = time.perf_counter()
        try:
            found = self.maker.score(recipe, self.suites, unwanted)
        except MergingError as error:
            return made(None, (), time.perf_counter() - started, sentence(error))
        return made(self.objective(found), found, time.perf_counter() - started)

    def _experts(self) -> Generator[Progress, None, list[tuple[SuiteResult, ...]]]:
        """Every expert's own results."""
        jobs: list[Job[Any]] = [
            partial(self.maker.score_model, self.recipe.locate(entry.model), self.suites)
            for entry in self.recipe.experts
        ]
        found = []
        for one in self._each(jobs):
            if isinstance(one, Progress):
                yield one
            else:
                found.append(one)
        return found

    def _each(self, jobs: Sequence[Job[Any]]) -> Iterator[Any]:
        """What comes of the jobs, and progress in between.

        Raises:
            Stopped: nobody waits any more, or the time is up and there is a trial to show for it.
        """
        with closing(self.maker.each(jobs, self.at_once)) as steps:  # type: ignore[type-var]
            for step in steps:
                if step is not None:
                    yield step
                yield self._progress()
                if self.stopped() or (self._late() and self.best is not None):
                    raise Stopped

    def _progress(self) -> Progress:
        done = self._scored
        shares = [done / self.most] + ([self.seconds / 60 / self.minutes] if self.minutes else [])
        best = f" · best {_per_cent(self.best.mean)}" if self.best else ""
        stage = f"trial {done + 1}{f' of {self.most}' if self.most < UNBOUNDED else ''}{best}"
        return Progress(stage, done, self.most, 0, min(1.0, max(shares)), self.seconds)


def _require(strategy: str, suites: Sequence[Suite], budget: int | None, minutes: float | None) -> None:
    if strategy not in STRATEGIES:
        raise MergingError(
            f"There is no strategy '{strategy}'.{did_you_mean(strategy, list(STRATEGIES))} Known: {', '.join(STRATEGIES)}."
        )
    if not suites:
        raise MergingError("There is nothing to judge a trial by; give at least one suite.")
    if budget is not None and not 1 <= budget <= UNBOUNDED:
        raise MergingError(f"{budget} trials: give from 1 to {UNBOUNDED:,}.")
    if minutes is not None and not minutes > 0:
        raise MergingError(f"{minutes:g} minutes: give more than 0.")


def _per_cent(score: float | None) -> str:
    return "nothing" if score is None else f"{score:.1%}"
