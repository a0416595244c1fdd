"""How sure a score is, and whether two models differ on the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from merging.errors import MergingError

if TYPE_CHECKING:
    from merging.evaluation import ItemResult, SuiteResult

FEW = 32
"""Up to so many distinct differences a resample is drawn as their counts, which is the same law and far less work."""
DRAWN = 1 << 20
"""Items drawn at once."""


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items: the difference of their scores with its interval, the chance p of so uneven a split
    of gained and lost items if both were equally good, and these items as the second model answered them."""

    difference: float
    interval: Interval
    p: float
    gained: tuple[ItemResult, ...]
    lost: tuple[ItemResult, ...]


def wilson(correct: int, n: int, level: float = 0.95) -> Interval:
    """The interval of a share of which `correct` of `n` were seen; without any, from 0 to 1.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference"; without continuity
    correction.
    """
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = correct / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = (middle - half) / scale if correct else 0.0
    return Interval(low, (middle + half) / scale if correct < n else 1.0)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p: how likely `gained` and `lost` split so unevenly, or more so, if each were a fair coin.

    Source: McNemar 1947, with the binomial law in place of χ²: p = 2·P(X ≤ min), at most 1, X ~ B(gained + lost, ½).
    """
    n, fewer = gained + lost, min(gained, lost)
    term = 1.0
    total = 0.0
    for k in range(fewer, -1, -1):
        total += term
        term *= k / (n - k + 1)
        if term < total * 1e-17:
            break
    logarithm = math.lgamma(n + 1) - math.lgamma(fewer + 1) - math.lgamma(n - fewer + 1) - n * math.log(2)
    return min(1.0, 2 * math.exp(logarithm) * total)


def bootstrap(
    values: Sequence[float], *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval:
    """The percentile interval of a mean, from values drawn anew with replacement.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".

    Raises:
        MergingError: there are no values.
    """
    if not len(values):
        raise MergingError("There are no items to compare.")
    given = np.asarray(values, dtype=np.float64)
    n = len(given)
    generator = np.random.default_rng(seed)
    distinct, counts = np.unique(given, return_counts=True)
    if len(distinct) <= FEW:
        means = generator.multinomial(n, counts / n, size=draws) @ distinct / n
    else:
        step = max(1, DRAWN // n)
        parts = [min(step, draws - start) for start in range(0, draws, step)]
        means = np.concatenate([given[generator.integers(n, size=(part, n))].mean(1) for part in parts])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def paired_bootstrap(
    before: Sequence[float],
    after: Sequence[float],
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The same for mean(after) − mean(before), where items are drawn anew in pairs.

    Raises:
        MergingError: there are no items, or not the same number of them.
    """
    if len(before) != len(after):
        raise MergingError(f"{len(before)} and {len(after)} items cannot be compared; give the same items.")
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return bootstrap(differences.tolist(), level=level, draws=draws, seed=seed)


def compare(before: SuiteResult, after: SuiteResult) -> Comparison:
    """Two results on the same suite, item by item.

    Raises:
        MergingError: they do not answer the same questions by the same rule.
    """
    same = [(one.prompt, one.answer) for one in before.items] == [(o.prompt, o.answer) for o in after.items]
    if not same or before.scoring != after.scoring:
        raise MergingError(
            f"The results on {before.suite} and {after.suite} are not of the same items, so they cannot be compared in "
            "pairs. Score both models on one suite."
        )
    pairs = list(zip(before.items, after.items, strict=True))
    gained = tuple(new for old, new in pairs if new.correct and not old.correct)
    lost = tuple(new for old, new in pairs if old.correct and not new.correct)
    interval = paired_bootstrap([one.correct for one in before.items], [one.correct for one in after.items])
    return Comparison(after.score - before.score, interval, mcnemar(len(gained), len(lost)), gained, lost)


def retention(merged: float, expert: float) -> float | None:
    """What a merge kept of its expert's score; None where the expert scores 0."""
    return merged / expert if expert else None
