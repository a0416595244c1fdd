"""One family, every merge method at its paper's defaults: how well each of them does."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

from merging.errors import MergingError
from merging.evaluation import SuiteResult
from merging.events import Progress
from merging.importance import Data, keep_importance
from merging.importances.measuring import Measurement
from merging.judging.run_records import Draft
from merging.judging.subjects import subject_of_model
from merging.judging.suites import Suite
from merging.judging.trials import Job, Stop, Trials, mean_score, sentence
from merging.methods import METHODS, Method
from merging.plan import make_plan
from merging.recipe import ModelEntry, Recipe
from merging.sources import open_model

MEASURE_FIRST = (
    "It needs importance; give calibration data of the experts, or an importance file in the recipe."
)

Known = Callable[[str], Mapping[str, SuiteResult]]
"""The results of a subject that are known already, by their suites' fingerprints."""
Keep = Callable[[str, Suite, SuiteResult], object]
"""Keeps a subject's result."""
Ask = Callable[[Sequence[Suite], Stop], tuple[SuiteResult, ...]]


def nothing(subject: str) -> Mapping[str, SuiteResult]:
    """Nothing was scored before."""
    return {}


def nowhere(subject: str, suite: Suite, result: SuiteResult) -> None:
    """Scores are not kept."""


@dataclass(frozen=True)
class Attempt:
    """What one method is tried as; or a parent as it is (`model`).

    `recipe` is None where the method cannot be tried, and `reason` says why; beside a recipe it says what the recipe
    leaves out.
    """

    method: str | None
    recipe: Recipe | None
    reason: str = ""
    model: Path | None = None

    @property
    def title(self) -> str:
        """The method's name, or the parent's."""
        return self.method or (self.model.name if self.model else "")


@dataclass(frozen=True)
class Scored:
    """An attempt that is over: its results, one for each suite, and how long it took, None where all of it was known;
    without results, why.

    `subject` is what its scores are kept under, `draft` what the history keeps of a merge.
    """

    attempt: Attempt
    results: tuple[SuiteResult, ...]
    seconds: float | None
    problem: str = ""
    subject: str = ""
    draft: Draft | None = None

    @property
    def score(self) -> float | None:
        """The mean over the suites, 0 to 1; None without results."""
        return mean_score(self.results) if self.results else None


def every_method(recipe: Recipe) -> list[Attempt]:
    """An attempt with each of `METHODS` at its paper's defaults, over a recipe's models.

    Methods made for two models get the first two experts: which pair is best is another question, and one row for each
    keeps the table comparable. One that copies a single model is left to the parents' rows.

    Raises:
        MergingError: the recipe has slices, or no experts.
    """
    if recipe.slices:
        raise MergingError(
            "A recipe with slices has no whole models to try every method on; list them under models."
        )
    experts = _experts(recipe)
    if not experts:
        raise MergingError("The recipe names no experts; list them under models.")
    return [_attempt(recipe, method, experts) for method in METHODS.values()]


def parents(recipe: Recipe) -> list[Attempt]:
    """The base and the experts themselves, as rows beside the methods."""
    names = dict.fromkeys([*([recipe.base_model] if recipe.base_model else []), *_experts(recipe)])
    return [Attempt(None, None, model=recipe.locate(name)) for name in names]


def with_importance(
    recipe: Recipe, calibration: Data, cache: Path, device: str
) -> Generator[Progress, None, Recipe]:
    """The recipe with importance of its experts, measured on examples of their tasks unless the cache has it; without,
    where it cannot be measured."""
    family = Recipe(
        merge_method="task_arithmetic",
        base_model=recipe.base_model,
        models=tuple(ModelEntry(model=name) for name in _experts(recipe)),
    )
    family._folder = recipe._folder
    try:
        with closing(
            keep_importance(family, calibration, Measurement(), device=device, cache=cache)
        ) as events:  # type: ignore[type-var]
            for event in events:
                if isinstance(event, Path):
                    return recipe.model_copy(update={"importance": str(event)})
                yield event
    except MergingError:
        pass
    return recipe


def try_every_method(
    recipe: Recipe,
    suites: Sequence[Suite],
    trials: Trials,
    *,
    calibration: Data | None = None,
    known: Known = nothing,
    keep: Keep = nowhere,
) -> Iterator[Progress | Scored]:
    """What cannot be tried, then the parents and every other method, each as soon as it is scored; two at a time where
    the family is small.

    Args:
        calibration: examples of the experts' tasks, from which importance is measured where the recipe names no file.
        known: what has been scored before is not asked again.
        keep: gets every new score at once.

    Raises:
        MergingError: as `every_method`; what goes wrong with one method is told in its `Scored`.
    """
    run = _Run(trials, tuple(suites), known, keep)
    with tempfile.TemporaryDirectory(prefix="mergescope-importance-") as folder:
        if calibration is not None and recipe.importance is None:
            recipe = yield from with_importance(recipe, calibration, Path(folder), trials.device)
        attempts = every_method(recipe)
        yield from (Scored(one, (), None, one.reason) for one in attempts if one.recipe is None)
        tried = [one for one in attempts if one.recipe is not None]
        yield from run.all([*parents(recipe), *tried], run.side_by_side(recipe))


class _Run:
    """The clock and the share of one run over all attempts."""

    def __init__(self, trials: Trials, suites: tuple[Suite, ...], known: Known, keep: Keep):
        self.trials, self.suites, self.known, self.keep = trials, suites, known, keep
        self.started = time.perf_counter()

    def side_by_side(self, recipe: Recipe) -> int:
        """How many merges of these models are scored at once."""
        try:
            return self.trials.side_by_side(make_plan(recipe))
        except MergingError:
            return 1

    def all(self, attempts: Sequence[Attempt], at_once: int = 1) -> Iterator[Progress | Scored]:
        jobs: list[Job[Scored]] = [partial(self._score, attempt) for attempt in attempts]
        done = 0
        with closing(self.trials.each(jobs, at_once)) as steps:  # type: ignore[type-var]
            for step in steps:
                if step is not None:
                    done += 1
                    yield step
                title = attempts[min(done, len(attempts) - 1)].title
                seconds = time.perf_counter() - self.started
                yield Progress(title, done, len(attempts), 0, done / len(attempts), seconds)

    def _score(self, attempt: Attempt, stopped: Stop) -> Scored:
        started = time.perf_counter()
        try:
            subject, draft, ask = self._asked(attempt)
            found = dict(self.known(subject))
            missing = [suite for suite in self.suites if suite.fingerprint not in found]
            for suite, result in zip(missing, ask(missing, stopped) if missing else (), strict=True):
                self.keep(subject, suite, result)
                found[suite.fingerprint] = result
        except MergingError as error:
            return Scored(attempt, (), time.perf_counter() - started, sentence(error))
        results = tuple(found[suite.fingerprint] for suite in self.suites)
        seconds = time.perf_counter() - started if missing else None
        return Scored(attempt, results, seconds, subject=subject, draft=draft)

    def _asked(self, attempt: Attempt) -> tuple[str, Draft | None, Ask]:
        """What an attempt's scores are kept under, of a merge its draft, and how to score it."""
        if attempt.model is not None:
            subject = subject_of_model(open_model(str(attempt.model)))
            return subject, None, partial(self.trials.score_model, attempt.model)
        assert attempt.recipe is not None
        plan = make_plan(attempt.recipe)
        draft = Draft.of(plan)
        return draft.subject, draft, partial(self.trials.score, plan)


def _attempt(recipe: Recipe, method: type[Method], experts: Sequence[str]) -> Attempt:
    tried = partial(Attempt, method.name)
    if method.name == "passthrough":
        return tried(None, "It takes over one model as it is; see the parents.")
    if method.needs_importance and recipe.importance is None:
        return tried(None, MEASURE_FIRST)
    pair = method.experts_wanted is not None
    if pair and len(experts) < 2:
        return tried(None, "It is made for two experts, and the recipe has one.")
    if method.needs_base and not pair and recipe.base_model is None:
        return tried(None, "It works on changes from a base, and the recipe names none.")
    names, base = list(experts), recipe.base_model if method.needs_base else None
    reason = ""
    if pair:
        names, others = names[:2], names[2:]
        base = names.pop(0) if method.experts_wanted == 1 else None
        if others:
            shown = " and ".join(PurePath(name).name for name in experts[:2])
            reason = f"It is made for two models: of {shown} only."
    return tried(_plain(recipe, method, base, names), reason)


def _plain(recipe: Recipe, method: type[Method], base: str | None, names: Sequence[str]) -> Recipe:
    """The method at its paper's defaults over these models; all that is no parameter stays as it is."""
    return recipe.model_copy(
        update={
            "merge_method": method.name,
            "base_model": base,
            "models": tuple(ModelEntry(model=name) for name in names),
            "parameters": {},
            "profile": "paper",
            "scope": None,
            "overrides": (),
            "importance": recipe.importance if method.needs_importance else None,
        }
    )


def _experts(recipe: Recipe) -> list[str]:
    return list(dict.fromkeys(entry.model for entry in recipe.experts))
