"""How alike the experts' changes are over the whole model, in three numbers a pair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from merging.reports.report import Report

PARALLEL = 0.7
"""Two changes with a larger cosine are largely the same change."""
ORTHOGONAL = 0.1
"""Two changes with a smaller |cosine| can be added with next to no effect on each other's length."""


@dataclass(frozen=True)
class Kinship:
    """Pearson correlation, signed cosine and Euclidean distance of every pair of task vectors over the whole model,
    and their means (Model Kinship, 2410.12613; its authors' code takes |cosine|).

    None for a pair where one expert changed nothing; the means leave it out. `suggestion` says what the numbers mean.
    """

    pairs: tuple[tuple[int, int], ...]
    pearson: tuple[float | None, ...]
    cosine: tuple[float | None, ...]
    distance: tuple[float | None, ...]

    @property
    def means(self) -> tuple[float | None, float | None, float | None]:
        """Mean Pearson correlation, cosine and distance."""
        return _mean(self.pearson), _mean(self.cosine), _mean(self.distance)

    @property
    def suggestion(self) -> str:
        """What the mean cosine suggests, and what it does not prove."""
        mean = self.means[1]
        if mean is None:
            return "Kinship needs two experts that changed something."
        return f"{_reading(mean)} This compares directions of weights, not skills: only a test of the merge shows its skills."


def kinship(report: Report) -> Kinship:
    """The kinship of a report's experts, over its tensors without NaN."""
    whole = report.intact
    if whole is None:
        return Kinship((), (), (), ())
    pairs = tuple(report.pairs)
    present = [bool(whole.change[a] > 0 and whole.change[b] > 0) for a, b in pairs]

    def values(number: Iterable[float | None]) -> tuple[float | None, ...]:
        return tuple(value if known else None for value, known in zip(number, present, strict=True))

    numbers = range(len(pairs))
    return Kinship(
        pairs,
        values(whole.pearson(pair) for pair in numbers),
        values(whole.cosine(pair) for pair in numbers),
        values(whole.distance(pair) for pair in numbers),
    )


def _reading(mean: float) -> str:
    if mean >= PARALLEL:
        return (
            "The experts changed the base in much the same direction: a sum counts that change several times, an average "
            "keeps it, and a merge adds little that one of them lacks."
        )
    if mean >= ORTHOGONAL:
        return "The experts share a part of their change; a sum counts that part several times."
    if mean > -ORTHOGONAL:
        return (
            "The experts changed the base in nearly unrelated directions, as experts of different tasks do."
        )
    return (
        "The experts' changes point against each other: a sum takes back a part of what each of them learnt."
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
