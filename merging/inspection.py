"""Looking at a family, and at a merge of it, over the one stream of pieces that also merges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from merging import engine, ops
from merging.checkpoint import TensorSource
from merging.errors import MergingError
from merging.events import Progress
from merging.inspecting.changes import ChangeWatch, TensorStatistics
from merging.inspecting.fate import FateWatch, Origin, TensorFate
from merging.inspecting.sign_conflict import Patterns, sign_conflict
from merging.inspecting.sums import by_tensor
from merging.methods import METHODS, Scope
from merging.pieces import Outcome, PieceKey
from merging.plan import Plan, make_plan
from merging.reports.report import Preview, Report, Sample, Trim, Trimmed


class PieceWatch:
    """Accumulates the experts' changes in the pieces of a merge, from an origin where these have no base."""

    def __init__(self, origin: Origin | None = None):
        self.changes = ChangeWatch()
        self.origin = origin

    def update(self, outcome: Outcome) -> None:
        self.changes.update(outcome.piece if self.origin is None else self.origin.under(outcome.piece))

    def result(self) -> dict[str, TensorStatistics]:
        return self.changes.result()


class TrimWatch:
    """Accumulates what a merge by magnitude keeps of every tensor."""

    def __init__(self) -> None:
        self.pieces: dict[PieceKey, Trimmed] = {}

    def update(self, outcome: Outcome) -> None:
        assert outcome.explained is not None
        deltas = ops.flat(outcome.piece.deltas)
        left = torch.where(ops.flat(outcome.explained.sparse) != 0, deltas, 0.0)
        patterns = Patterns.of(left)
        smallest = torch.where(left != 0, left.abs(), math.inf)
        self.pieces[outcome.piece.key] = Trimmed(
            kept=patterns.nonzero(),
            threshold=smallest.amin(1).tolist() if left.shape[1] else [math.inf] * len(left),
            signs=sign_conflict(outcome.piece, left, patterns),
        )

    def combine(self, other: TrimWatch) -> None:
        self.pieces.update(other.pieces)

    def result(self) -> dict[str, Trimmed]:
        return by_tensor(self.pieces)


def inspect_plan(plan: Plan, *, device: str = "auto") -> Iterator[Progress | Report]:
    """The experts' changes under a plan's models: progress after every piece, the report at the end.

    Raises:
        MergingError: slices that are made of different models.
    """
    require_one_family(plan)
    accumulator = ChangeWatch()
    yield from engine.watch(plan, accumulator, device=device)
    yield _report(plan, accumulator)


def trim_plan(plan: Plan, density: float, scope: Scope, *, device: str = "auto") -> Iterator[Progress | Trim]:
    """The signs of what is left of the experts' changes at a density: progress after every piece, then the trim."""
    watch = TrimWatch()
    yield from _watched(trim_of(plan, density, scope), [watch], device)
    yield Trim(density, scope, watch.result())


def trim_of(plan: Plan, density: float, scope: Scope) -> Plan:
    """The plan of a merge by magnitude of the same models.

    Raises:
        MergingError: slices that are made of different models.
    """
    require_one_family(plan)
    return over_same_models(plan, "magnitude", {"density": density}, scope)


def over_same_models(plan: Plan, method: str, parameters: dict[str, Any], scope: Scope | None = None) -> Plan:
    """The plan of another method, with these parameters alone, over the models and the base that a recipe names."""
    recipe = plan.recipe.model_copy(
        update={
            "merge_method": method,
            "models": tuple(entry.model_copy(update={"parameters": {}}) for entry in plan.recipe.models),
            "parameters": parameters,
            "scope": scope,
            "profile": "paper",
            "importance": None,
            "overrides": (),
        }
    )
    recipe._folder = plan.recipe._folder
    return make_plan(recipe)


def preview_plan(
    plan: Plan, *, device: str = "auto", origin: TensorSource | None = None
) -> Iterator[Progress | Preview]:
    """What a plan would make of the experts' changes, by the pass that merges: progress after every piece, then that.

    Args:
        origin: what changes are measured from where the method uses no base; by default the recipe's `base_model`.

    Raises:
        MergingError: slices of different models, nothing to measure changes from, or a merge that fails.
    """
    require_one_family(plan)
    watch = FateWatch(origin_of(plan, origin))
    yield from _watched(plan, [watch], device)
    yield preview_of(plan, watch.result())


def inspect_recipe(
    plan: Plan, *, device: str = "auto", origin: TensorSource | None = None
) -> Iterator[Progress | Report]:
    """The experts' changes and what the plan makes of them, in one pass; see `preview_plan`."""
    require_one_family(plan)
    start = origin_of(plan, origin)
    changes, fates = PieceWatch(start), FateWatch(start)
    yield from _watched(plan, [changes, fates], device)
    yield replace(_report(plan, changes.changes), preview=preview_of(plan, fates.result()))


def _watched(plan: Plan, watches: Sequence[engine.Watch], device: str) -> Iterator[Progress]:
    """Show watches every piece of a merge that is not written."""
    for event in engine.run_plan(plan, engine.NoSink(), device=device, watches=watches):
        if isinstance(event, Progress):
            yield event


def origin_of(plan: Plan, origin: TensorSource | None) -> Origin | None:
    """What changes are measured from, of a plan whose method uses no base."""
    if plan.base is not None:
        return None
    if origin is None and plan.recipe.base_model is None:
        raise MergingError(
            f"inspect: {METHODS[plan.recipe.merge_method].title} uses no base and the recipe names none, so nothing says "
            "what the models changed; name the model that they were tuned from as base_model."
        )
    names = {tensor.info.name: tensor.reference.name for tensor in plan.tensors}
    found = Origin(origin or plan.reference, names, plan.work_dtype)
    for tensor in plan.tensors:
        if tensor.method is not None:
            found.require(tensor.info.name, tensor.info.shape)
    return found


def require_one_family(plan: Plan) -> None:
    if any(tensor.models != plan.names for tensor in plan.tensors):
        raise MergingError(
            "inspect: these slices are made of different models, which do not fit one map; inspect a recipe with whole "
            "models."
        )


def _report(plan: Plan, changes: ChangeWatch) -> Report:
    return Report(plan.reference.label, plan.names, changes.result(), warnings=plan.warnings)


def preview_of(plan: Plan, fates: dict[str, TensorFate], sample: Sample | None = None) -> Preview:
    """What is shown of a plan whose tensors have these fates."""
    method = METHODS[plan.recipe.merge_method]
    return Preview(
        recipe=plan.recipe.to_yaml(),
        method=method.name,
        elementwise=method.elementwise,
        tensors=fates,
        effective={one.tensor: one.values for one in plan.effective()},
        dtypes={tensor.info.name: tensor.info.dtype for tensor in plan.tensors},
        copied=tuple(tensor.info.name for tensor in plan.tensors if tensor.method is None),
        sample=sample,
    )
