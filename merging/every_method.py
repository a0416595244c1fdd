"""One family, every merge method at its paper's defaults: how well each of them does."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

from merging.artefact import Importance
from merging.errors import MergingError
from merging.evaluation import SuiteResult
from merging.events import Progress
from merging.importance import Data, measure_importance
from merging.methods import METHODS, Method
from merging.plan import make_plan
from merging.recipe import ModelEntry, Recipe
from merging.suites import Suite
from merging.trials import Job, Stop, Trials, mean_score, sentence

MEASURE_FIRST = (
    "It needs importance; give calibration data of the experts, or an importance file in the recipe."
)


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
    """An attempt that is over: its results, one for each suite, and how long it took; without results, why."""

    attempt: Attempt
    results: tuple[SuiteResult, ...]
    seconds: float
    problem: str = ""

    @property
    def score(self) -> float | None:
        """The mean over the suites, 0 to 1; None without results."""
        return mean_score(self.results) if self.results else None


def every_method(recipe: Recipe, importance: str | Path | None = None) -> list[Attempt]:
    """An attempt with each of `METHODS` at its paper's defaults, over a recipe's models.

    Methods made for two models get the first two experts: which pair is best is another question, and one row for each
    keeps the table comparable. One that copies a single model is left to the parents' rows.

    Args:
        importance: the file for methods that need it; by default the recipe's.

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
    file = str(importance) if importance is not None else recipe.importance
    return [_attempt(recipe, method, experts, file) for method in METHODS.values()]


def parents(recipe: Recipe) -> list[Attempt]:
    """The base and the experts themselves, as rows beside the methods."""
    names = dict.fromkeys([*([recipe.base_model] if recipe.base_model else []), *_experts(recipe)])
    return [Attempt(None, None, model=recipe.locate(name)) for name in names]


def try_every_method(
    recipe: Recipe, suites: Sequence[Suite], trials: Trials, *, calibration: Data | None = None
) -> Iterator[Progress | Scored]:
    """The parents, then every method, each as soon as it is scored; two at a time where the family is small.

    Args:
        calibration: examples of the experts' tasks, from which importance is measured where the recipe names no file.

    Raises:
        MergingError: as `every_method`; what goes wrong with one method is told in its `Scored`.
    """
    run = _Run(trials, tuple(suites))
    with tempfile.TemporaryDirectory(prefix="mergescope-importance-") as folder:
        file = None
        if calibration is not None and recipe.importance is None:
            file = yield from run.measure(recipe, calibration, Path(folder) / "importance.safetensors")
        yield from run.all([*parents(recipe), *every_method(recipe, file)])


class _Run:
    """The clock and the share of one run over all attempts."""

    def __init__(self, trials: Trials, suites: tuple[Suite, ...]):
        self.trials, self.suites = trials, suites
        self.started = time.perf_counter()

    def measure(
        self, recipe: Recipe, calibration: Data, file: Path
    ) -> Generator[Progress, None, Path | None]:
        """Importance for the methods that need it; the file, or None where it cannot be measured."""
        family = Recipe(
            merge_method="task_arithmetic",
            base_model=recipe.base_model,
            models=tuple(ModelEntry(model=name) for name in _experts(recipe)),
        )
        family._folder = recipe._folder
        try:
            with closing(measure_importance(family, calibration, device=self.trials.device)) as events:  # type: ignore[type-var]
                for event in events:
                    if isinstance(event, Importance):
                        event.save(file)
                        return file
                    yield self._progress(event.stage, 0, 1)
        except MergingError:
            return None
        return None

    def all(self, attempts: Sequence[Attempt]) -> Iterator[Progress | Scored]:
        at_once = min(map(self._side_by_side, attempts), default=1)
        jobs: list[Job[Scored]] = [partial(self._score, attempt) for attempt in attempts]
        done = 0
        with closing(self.trials.each(jobs, at_once)) as steps:  # type: ignore[type-var]
            for step in steps:
                if step is not None:
                    done += 1
                    yield step
                title = attempts[min(done, len(attempts) - 1)].title
                yield self._progress(title, done, len(attempts))

    def _side_by_side(self, attempt: Attempt) -> int:
        try:
            return self.trials.side_by_side(make_plan(attempt.recipe)) if attempt.recipe else 2
        except MergingError:
            return 2

    def _score(self, attempt: Attempt, stopped: Stop) -> Scored:
        started = time.perf_counter()
        try:
            if attempt.model is not None:
                found = self.trials.score_model(attempt.model, self.suites, stopped)
            elif attempt.recipe is not None:
                found = self.trials.score(attempt.recipe, self.suites, stopped)
            else:
                return Scored(attempt, (), 0.0, attempt.reason)
        except MergingError as error:
            return Scored(attempt, (), time.perf_counter() - started, sentence(error))
        return Scored(attempt, found, time.perf_counter() - started)

    def _progress(self, stage: str, done: int, count: int) -> Progress:
        return Progress(stage, done, count, 0, done / count, time.perf_counter() - self.started)


def _attempt(recipe: Recipe, method: type[Method], experts: Sequence[str], importance: str | None) -> Attempt:
    tried = partial(Attempt, method.name)
    if method.name == "passthrough":
        return tried(None, "It takes over one model as it is; see the parents.")
    if method.needs_importance and importance is None:
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
    return tried(_plain(recipe, method, base, names, importance), reason)


def _plain(
    recipe: Recipe, method: type[Method], base: str | None, names: Sequence[str], importance: str | None
) -> Recipe:
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
            "importance": importance if method.needs_importance else None,
        }
    )


def _experts(recipe: Recipe) -> list[str]:
    return list(dict.fromkeys(entry.model for entry in recipe.experts))
