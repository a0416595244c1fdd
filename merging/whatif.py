"""Previews that follow a slider: families that fit stay in memory, larger ones are sampled first."""

from __future__ import annotations

from collections.abc import Iterator

from merging.events import Progress
from merging.inspection import preview_plan, trim_plan
from merging.methods import Scope
from merging.plan import Plan
from merging.report import Preview, Trim

MOST_BYTES = 512 << 20
"""Memory for all families together, by default."""


class Residents:
    """Families and samples that are kept in memory, at most so many bytes; shared by all visitors."""

    def __init__(self, most_bytes: int = MOST_BYTES):
        self.most_bytes = most_bytes

    def fits(self, plan: Plan) -> bool:
        """Whether the whole family can be kept, so that a preview is exact and takes a moment."""
        return plan.bytes_to_read <= self.most_bytes // 64


def preview(plan: Plan, residents: Residents) -> Preview:
    """The exact preview of a plan over a family that `fits`.

    Raises:
        MergingError: the merge itself would fail, or the models are too large to be kept.
    """
    *_, last = preview_plan(plan)
    assert isinstance(last, Preview)
    return last


def steps(plan: Plan, residents: Residents, *, device: str = "auto") -> Iterator[Progress | Preview]:
    """The preview of a plan: at once where the family fits; else first an estimate (`Preview.sample`), then progress,
    then the exact one. Closing the iterator stops the work."""
    yield from preview_plan(plan, device=device)


def trim_steps(
    plan: Plan, density: float, scope: Scope, residents: Residents, *, device: str = "auto"
) -> Iterator[Progress | Trim]:
    """What trimming at a density leaves, in the same steps."""
    yield from trim_plan(plan, density, scope, device=device)
