"""How well a cheap score agrees with exact intervention: rank correlations, their intervals, and the report of both.

Nothing here runs a model; `merging.importance` measures and hands over tables of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

CHANGE = "‖δ‖²"
"""The null predictor that has to be beaten: how far the partition moved."""
SIZE = "size"
"""The other one: how many elements it has."""
SHUFFLED = "shuffled answers"
"""Gradients of the prompts with each other's answers: they see the models, not the task."""
RESAMPLES = 200
COVERED = 0.95
"""Share of the resamples that an interval covers."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's correlation of one predictor with the exact scores, and its bootstrap interval over the examples.

    None where a ranking has no order: fewer than two partitions, or all scores equal.
    """

    predictor: str
    spearman: float | None
    low: float | None
    high: float | None


def interval(found: Correlation) -> str:
    """`0.57 (0.31 to 0.79)`; a dash where there is no order."""
    if found.spearman is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{found.spearman:.2f}"
    return f"{found.spearman:.2f} ({found.low:.2f} to {found.high:.2f})"


@dataclass(frozen=True)
class ExpertAgreement:
    """The report for one expert.

    `keys` name the sampled partitions, `exact` and `predictions` are their absolute scores. `curves` give, for each
    predictor, the expert's loss with its top `counts` partitions put back to the base. `ahead`: share of the resamples
    in which the score beats ‖δ‖².
    """

    expert: str
    keys: tuple[str, ...]
    exact: tuple[float, ...]
    predictions: dict[str, tuple[float, ...]]
    correlations: tuple[Correlation, ...]
    counts: tuple[int, ...]
    curves: dict[str, tuple[float, ...]]
    ahead: float | None
    recommended: bool

    def spearman(self, predictor: str) -> float | None:
        """The correlation of one predictor; None where it was not measured or has no order."""
        return next((c.spearman for c in self.correlations if c.predictor == predictor), None)


@dataclass(frozen=True)
class Agreement:
    """How far the score of an importance file can be trusted, for each expert.

    `score` is the predictor whose scores the file holds. `recommended`: over the experts its mean correlation is
    higher than that of ‖δ‖²; where it is not, importance by gradients tells less than how far the weights moved.
    """

    score: str
    experts: tuple[ExpertAgreement, ...]
    examples: int
    resamples: int
    seed: int
    recommended: bool

    def mean(self, predictor: str) -> float | None:
        """Mean correlation of a predictor over the experts where it has one."""
        known = [one for expert in self.experts if (one := expert.spearman(predictor)) is not None]
        return sum(known) / len(known) if known else None

    @property
    def as_good(self) -> tuple[str, ...]:
        """Null predictors, blind to the task, that agree with exact intervention at least as well as the score."""
        mine = self.mean(self.score)
        names = (CHANGE, SIZE, f"{SHUFFLED} at {self.score.rpartition(' at ')[2]}")
        means = {name: self.mean(name) for name in names}
        return tuple(
            name for name, mean in means.items() if mean is not None and (mine is None or mean >= mine)
        )

    @property
    def better(self) -> str | None:
        """The gradient that agrees best with exact intervention on average, where that is not the score used."""
        names = [
            one.predictor for one in self.experts[0].correlations if one.predictor.startswith("gradient at")
        ]
        means = {name: mean for name in names if (mean := self.mean(name)) is not None}
        best = max(means, key=means.__getitem__, default=self.score)
        return best if means.get(best, 0.0) > means.get(self.score, 1.0) else None


def summarise(score: str, experts: Sequence[ExpertAgreement], examples: int, seed: int) -> Agreement:
    """The report over all experts, with its recommendation."""
    pairs = [(expert.spearman(score), expert.spearman(CHANGE)) for expert in experts]
    known = [(one, two) for one, two in pairs if one is not None and two is not None]
    ahead = sum(one for one, _ in known) > sum(two for _, two in known)
    return Agreement(score, tuple(experts), examples, RESAMPLES, seed, bool(known) and ahead)


def spearman(one: torch.Tensor, two: torch.Tensor) -> float | None:
    """Spearman's rank correlation, ties at their average rank; None where a side has no order."""
    if len(one) < 2:
        return None
    first, second = (ranks(values) for values in (one, two))
    first, second = first - first.mean(), second - second.mean()
    scale = float(first.norm() * second.norm())
    return float(first @ second) / scale if scale > 0 else None


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks from 1 in float64; equal values share the mean of their ranks."""
    _, inverse, counts = values.double().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


@dataclass(frozen=True)
class Tables:
    """What the bootstrap draws from. Per example and sampled partition: `exact` [examples, P], the sum over the
    answer's tokens by which the loss rises; `gradients` likewise for each predictor. `tokens` [examples].
    `fixed` predictors [P] do not depend on the examples."""

    exact: torch.Tensor
    gradients: Mapping[str, torch.Tensor]
    fixed: Mapping[str, torch.Tensor]
    tokens: torch.Tensor

    def scores(self, predictor: str | None, chosen: torch.Tensor) -> torch.Tensor:
        """Absolute scores [P] over the `chosen` examples (None: the exact ones)."""
        if predictor is not None and predictor in self.fixed:
            return self.fixed[predictor]
        sums = self.exact if predictor is None else self.gradients[predictor]
        return (sums[chosen].sum(0) / self.tokens[chosen].sum()).abs()


def correlate(tables: Tables, seed: int, score: str) -> tuple[tuple[Correlation, ...], float | None]:
    """Every predictor's correlation with its interval, and the share of resamples where `score` beats ‖δ‖²."""
    examples = len(tables.tokens)
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randint(examples, (examples,), generator=generator) for _ in range(RESAMPLES)]
    names = [*tables.gradients, *tables.fixed]

    def all_at(chosen: torch.Tensor) -> dict[str, float | None]:
        exact = tables.scores(None, chosen)
        return {name: spearman(tables.scores(name, chosen), exact) for name in names}

    whole = all_at(torch.arange(examples))
    resampled = [all_at(chosen) for chosen in draws]
    found = tuple(
        Correlation(name, whole[name], *_interval([resample[name] for resample in resampled]))
        for name in names
    )
    pairs = [(resample.get(score), resample[CHANGE]) for resample in resampled]
    wins = [one > two for one, two in pairs if one is not None and two is not None]
    return found, sum(wins) / len(wins) if wins else None


def _interval(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """The quantiles that cover the middle 95 %."""
    known = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    if not len(known):
        return None, None
    low, high = known.quantile(
        torch.tensor([(1 - COVERED) / 2, (1 + COVERED) / 2], dtype=torch.float64)
    ).tolist()
    return low, high


def removal_counts(partitions: int) -> tuple[int, ...]:
    """How many partitions to put back: 0, powers of two, and all."""
    powers = [2**power for power in range(partitions.bit_length()) if 2**power < partitions]
    return tuple(dict.fromkeys((0, *powers, partitions)))


def orders(
    scores: Mapping[str, torch.Tensor], partitions: torch.Tensor, seed: int, repeats: int = 3
) -> dict[str, list[torch.Tensor]]:
    """Name -> orders in which to put partitions back: by falling score (equal scores by number), and at random."""
    generator = torch.Generator().manual_seed(seed)
    found = {
        name: [partitions[values[partitions].argsort(descending=True, stable=True)]]
        for name, values in scores.items()
    }
    random = [partitions[torch.randperm(len(partitions), generator=generator)] for _ in range(repeats)]
    return {**found, "random": random}
