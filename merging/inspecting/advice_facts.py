"""What the rules of `advice` look at, and what they say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from merging.inspecting.changes import TensorStatistics
from merging.plan import Plan
from merging.reports.report import Report

MOST_NAMED = 3
"""Names listed before "and n more"."""


@dataclass(frozen=True)
class Advice:
    """One sentence or two on what to do, and the numbers it rests on."""

    text: str
    evidence: str
    severity: Literal["note", "warning"]


@dataclass(frozen=True)
class Facts:
    """What the rules look at; `whole` sums the tensors without NaN."""

    report: Report
    plan: Plan | None
    names: tuple[str, ...]
    whole: TensorStatistics

    @cached_property
    def active(self) -> list[int]:
        """The experts whose change has a length; that of changes below 1e-19 may be 0 in float32."""
        return [expert for expert in range(len(self.names)) if self.whole.change[expert] > 0]

    @cached_property
    def twins(self) -> list[tuple[int, int]]:
        """Pairs of experts with the same change."""
        return [pair for number, pair in enumerate(self.report.pairs) if self._same(number, *pair)]

    def cosines(self) -> Iterator[tuple[int, int, float]]:
        """Every pair of experts that differ and changed something, with its cosine."""
        for number, (a, b) in enumerate(self.report.pairs):
            cosine = self.whole.cosine(number)
            if cosine is not None and (a, b) not in self.twins:
                yield a, b, cosine

    def _same(self, pair: int, a: int, b: int) -> bool:
        w = self.whole
        return (
            w.nonzero[a] == w.nonzero[b] == w.signs.shared[pair] > 0
            and w.signs.opposite[pair] == 0
            and w.histogram[a] == w.histogram[b]
            and (w.total[a], w.mass[a], w.largest[a]) == (w.total[b], w.mass[b], w.largest[b])
            and all(
                t.change[a] == t.change[b] and t.dot[pair] >= t.change[a] * (1 - 1e-6)
                for t in self.report.tensors.values()
                if not any(t.broken)
            )
        )


def some_names(names: Sequence[str]) -> str:
    """The first names, in quotes."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:MOST_NAMED]) + more
