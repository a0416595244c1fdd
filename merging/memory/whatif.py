"""Previews that follow a slider: families that fit stay in memory, larger ones are sampled first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from merging.checkpoint import TensorSource
from merging.events import Progress
from merging.executors import quietly
from merging.inspecting.fate import FateWatch
from merging.inspecting.sampling import SampledFamily, samplable, sample_rows
from merging.inspection import (
    TrimWatch,
    origin_of,
    preview_of,
    preview_plan,
    require_one_family,
    trim_of,
    trim_plan,
)
from merging.memory.replay import replay
from merging.memory.resident import Family, family_bytes, family_key, sources_of
from merging.methods import Scope
from merging.plan import Plan
from merging.reports.report import Preview, Trim

MOST_BYTES = 1 << 30
"""Memory for all families together, by default."""
MOST_CHANGES = 12 << 20
"""Elements times experts up to which a preview takes less than a second."""
F = TypeVar("F", bound=Family)


class Residents:
    """Families and samples that are kept in memory, those that were used last; shared by all visitors."""

    def __init__(self, most_bytes: int = MOST_BYTES):
        self.most_bytes = most_bytes
        self._kept: OrderedDict[Hashable, tuple[Family, int]] = OrderedDict()
        self._lock = threading.Lock()

    def fits(self, plan: Plan) -> bool:
        """Whether the whole family can be kept, so that a preview is exact and takes a moment."""
        changes = plan.parameters * len(plan.experts)
        return changes <= MOST_CHANGES and family_bytes(plan) <= self.most_bytes

    def family(self, plan: Plan) -> Family:
        """The plan's family, whole."""
        return self._get(("whole", family_key(plan)), family_bytes(plan), lambda: Family([*sources_of(plan)]))

    def sample(self, plan: Plan, seed: int = 0) -> SampledFamily:
        """A sample of the plan's family."""
        rows = sample_rows(plan, seed)
        return self._get(
            ("sample", seed, family_key(plan)),
            family_bytes(plan, rows.elements),
            lambda: SampledFamily([*sources_of(plan)], rows),
        )

    def _get(self, key: Hashable, size: int, make: Callable[[], F]) -> F:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = (make(), size)
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > self.most_bytes:
                self._kept.popitem(last=False)
            found: Any = self._kept[key][0]
        return found


def preview(
    plan: Plan, residents: Residents, *, origin: TensorSource | None = None, casts: bool = True
) -> Preview:
    """The exact preview of a plan over a family that `fits`.

    Args:
        origin: what changes are measured from where the method uses no base; by default the recipe's `base_model`.
        casts: whether to measure what every output dtype would lose, a quarter of the time.

    Raises:
        MergingError: nothing to measure changes from, or the merge itself would fail.
    """
    plan = measured_from(plan, origin)
    return quietly(_preview, plan, residents.family(plan), casts)


def estimate(
    plan: Plan, residents: Residents, seed: int = 0, *, origin: TensorSource | None = None
) -> Preview:
    """The preview of a plan from a sample of its rows, where that is `samplable`; see `preview`.

    Raises:
        MergingError: nothing to measure changes from, or the merge of the sample fails.
    """
    plan = measured_from(plan, origin)
    return quietly(_preview, plan, residents.sample(plan, seed))


def steps(
    plan: Plan, residents: Residents, *, device: str = "auto", origin: TensorSource | None = None
) -> Iterator[Progress | Preview]:
    """The preview of a plan: at once where the family fits; else first an estimate (`Preview.sample`), then progress,
    then the exact one. Closing the iterator stops the work; see `preview`.

    Raises:
        MergingError: nothing to measure changes from, or the merge itself would fail.
    """
    if residents.fits(plan):
        yield preview(plan, residents, origin=origin)
        return
    if samplable(plan):
        yield estimate(plan, residents, origin=origin)
    yield from preview_plan(plan, device=device, origin=origin)


def measured_from(plan: Plan, origin: TensorSource | None) -> Plan:
    """The plan with what changes are measured from as the reference of its tensors, where its method uses no base.

    Raises:
        MergingError: slices of different models, nothing to measure changes from, or tensors missing there.
    """
    require_one_family(plan)
    if origin_of(plan, origin) is None or origin is None:
        return plan
    tensors = [replace(tensor, reference=replace(tensor.reference, source=origin)) for tensor in plan.tensors]
    return replace(plan, reference=origin, tensors=tuple(tensors))


def trim_steps(
    plan: Plan, density: float, scope: Scope, residents: Residents, *, device: str = "auto"
) -> Iterator[Progress | Trim]:
    """What trimming at a density leaves, in the same steps.

    Raises:
        MergingError: slices of different models.
    """
    trimmed = trim_of(plan, density, scope)
    if residents.fits(plan):
        yield quietly(_trim, trimmed, residents.family(trimmed), density, scope)
        return
    if samplable(trimmed):
        yield quietly(_trim, trimmed, residents.sample(trimmed), density, scope)
    yield from trim_plan(plan, density, scope, device=device)


def _preview(plan: Plan, family: Family, casts: bool = True) -> Preview:
    return preview_of(plan, *replay(plan, family, partial(FateWatch, casts=casts)))


def _trim(plan: Plan, family: Family, density: float, scope: Scope) -> Trim:
    return Trim(density, scope, *replay(plan, family, TrimWatch))
