"""How a search chooses what to try next: Optuna's samplers, and the procedures of two papers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol

from merging.errors import MergingError
from merging.evaluation import SuiteResult
from merging.judging.search_space import Dimension, Value, Values, current, dimension, labelled, search_space
from merging.judging.trials import mean_score
from merging.methods import get_method
from merging.recipe import Recipe

STRATEGIES = {
    "tpe": "Optuna's tree-structured Parzen estimator, for numbers and choices",
    "cma-es": "Optuna's CMA-ES, for numbers; choices stay as the recipe has them",
    "dppa": "DPPA's greedy search of its factors (2403.02799)",
    "pcb-es": "a factor for each expert by CMA-ES, PCB-Merging's second stage (2410.02396)",
}
AT_ONCE = 2
"""Proposals that are made before either is scored; the same on every machine, so that the trials are the same."""
FIRST_FACTOR, NEXT_FACTOR, STEP = 1.8, 1.0, 0.1
"""Where DPPA's search begins for the strictest level and for the others, and how far it goes at once."""

Objective = Callable[[Sequence[SuiteResult]], float]


class Strategy(Protocol):
    """Proposes values and is told how they did; None: their merge failed."""

    def ask(self, most: int) -> list[Values]:
        """What to try next, at most so much; nothing where the search is over."""
        ...

    def tell(self, scores: Sequence[float | None]) -> None:
        """The scores of all that was asked for last, in that order."""
        ...


def make_strategy(name: str, recipe: Recipe, seed: int, first: float | None) -> Strategy:
    """A strategy by its name, for a recipe that scored `first` as it is.

    Raises:
        MergingError: the strategy does not fit the recipe.
    """
    if name == "dppa":
        return Greedy(recipe)
    return Sampled(name, recipe, space_of(name, recipe), seed, first)


def space_of(name: str, recipe: Recipe) -> tuple[Dimension, ...]:
    """What a strategy varies in a recipe.

    Raises:
        MergingError: nothing that it could.
    """
    method = get_method(recipe.merge_method)
    if name == "dppa":
        if method.name != "dppa":
            raise MergingError(
                f"The strategy dppa searches for DPPA's factors; {method.name} has none. Use tpe."
            )
        length = len(recipe.parameters.get("amplify", method.defaults(recipe.profile)["amplify"]))
        return tuple(dimension(recipe, "amplify", place=place) for place in range(length))
    if name == "pcb-es":
        if "weight" not in method.per_model():
            raise MergingError(
                f"The strategy pcb-es searches for the experts' weights; {method.name} has none. Use tpe."
            )
        return tuple(dimension(recipe, "weight", entry.model) for entry in recipe.experts)
    space = search_space(recipe)
    if name == "cma-es":
        space = tuple(one for one in space if not one.choices)
    if not space:
        raise MergingError(f"{method.name} has nothing that {name} could search over; choose another method.")
    return space


class Sampled:
    """Proposals of an Optuna sampler, two at a time."""

    def __init__(self, name: str, recipe: Recipe, space: Sequence[Dimension], seed: int, first: float | None):
        self._labels = labelled(space)
        self._study = _study(name, recipe, space, seed)
        self._open: list[Any] = []
        known = {one: current(recipe, one) for one in self._labels}
        if first is not None and all(_inside(one, value) for one, value in known.items()):
            self._add(known, first)

    def ask(self, most: int) -> list[Values]:
        self._open = [self._study.ask() for _ in range(min(AT_ONCE, most))]
        return [
            {one: _suggest(trial, one, label) for one, label in self._labels.items()} for trial in self._open
        ]

    def tell(self, scores: Sequence[float | None]) -> None:
        from optuna.trial import TrialState

        for trial, score in zip(self._open, scores, strict=True):
            if score is None:
                self._study.tell(trial, state=TrialState.PRUNED)
            else:
                self._study.tell(trial, score)

    def _add(self, values: Mapping[Dimension, Value | None], score: float) -> None:
        from optuna.trial import create_trial

        self._study.add_trial(
            create_trial(
                params={self._labels[one]: value for one, value in values.items()},
                distributions={self._labels[one]: _distribution(one) for one in values},
                value=score,
            )
        )


class Greedy:
    """DPPA's search: the factor of the strictest level from 1.8 on, the others 0, a tenth more while the score rises; then
    that of the next level from 1.0 on in the same way, which stays 0 where 1.0 is worse.

    Source: DPPA, 2403.02799.
    """

    def __init__(self, recipe: Recipe):
        self._space = space_of("dppa", recipe)
        self._steps = self._search()
        self._next: Values | None = next(self._steps)

    def ask(self, most: int) -> list[Values]:
        return [] if self._next is None else [self._next]

    def tell(self, scores: Sequence[float | None]) -> None:
        (score,) = scores
        try:
            self._next = self._steps.send(-math.inf if score is None else score)
        except StopIteration:
            self._next = None

    def _search(self) -> Generator[Values, float, None]:
        chosen: dict[Dimension, Value] = dict.fromkeys(self._space, 0.0)
        best = -math.inf
        for one in self._space:
            factor = NEXT_FACTOR if math.isfinite(best) else FIRST_FACTOR
            while (score := (yield {**chosen, one: factor})) > best:
                best, chosen[one] = score, factor
                factor = round(factor + STEP, 1)


def retention_objective(own: Sequence[Sequence[SuiteResult]]) -> Objective:
    """DPPA's score: the geometric mean over suites of a score by the best expert's; suites that no expert can do are left
    out.

    Args:
        own: every expert's results.
    """
    best = [max(result.score for result in column) for column in zip(*own, strict=True)]

    def score(found: Sequence[SuiteResult]) -> float:
        kept = [one.score / own for one, own in zip(found, best, strict=True) if own > 0]
        if not kept:
            return mean_score(found)
        return math.prod(kept) ** (1 / len(kept))

    return score


def _study(name: str, recipe: Recipe, space: Sequence[Dimension], seed: int) -> Any:
    import optuna
    from optuna.samplers import CmaEsSampler, RandomSampler, TPESampler

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler: Any
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of experimental arguments
        if name == "tpe" or len(space) < 2:  # CMA-ES has no covariance to adapt in one dimension
            sampler = TPESampler(seed=seed)
        else:
            known = {one: current(recipe, one) for one in space}
            labels = labelled(space)
            start = {labels[one]: value for one, value in known.items() if _inside(one, value)}
            sampler = CmaEsSampler(
                x0=start if len(start) == len(known) else None,
                seed=seed,
                independent_sampler=RandomSampler(seed=seed),
                warn_independent_sampling=False,
            )
        return optuna.create_study(sampler=sampler, direction="maximize")


def _distribution(one: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.choices:
        return CategoricalDistribution(one.choices)
    if one.whole:
        return IntDistribution(math.ceil(one.low), math.floor(one.high))
    return FloatDistribution(one.low, one.high, log=one.logarithmic)


def _suggest(trial: Any, one: Dimension, label: str) -> Value:
    if one.choices:
        found: Value = trial.suggest_categorical(label, one.choices)
    elif one.whole:
        found = trial.suggest_int(label, math.ceil(one.low), math.floor(one.high))
    else:
        found = trial.suggest_float(label, one.low, one.high, log=one.logarithmic)
    return found


def _inside(one: Dimension, value: Value | None) -> bool:
    if one.choices:
        return value in one.choices
    return isinstance(value, int | float) and one.low <= value <= one.high
