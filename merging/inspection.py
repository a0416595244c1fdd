"""Looking at a family, and at a merge of it, over the one stream of pieces that also merges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from merging import engine, ops
from merging.changes import ChangeWatch, sign_conflict
from merging.errors import MergingError
from merging.events import Progress
from merging.fate import FateWatch
from merging.methods import METHODS, Scope
from merging.pieces import Outcome, PieceKey
from merging.plan import Plan, make_plan
from merging.report import Preview, Report, Trim, Trimmed
from merging.sums import by_tensor


class _Pieces:
    """Shows an accumulator of pieces the pieces of a merge."""

    def __init__(self, accumulator: ChangeWatch):
        self.accumulator = accumulator

    def update(self, outcome: Outcome) -> None:
        self.accumulator.update(outcome.piece)


class TrimWatch:
    """Accumulates what a merge by magnitude keeps of every tensor."""

    def __init__(self) -> None:
        self.pieces: dict[PieceKey, Trimmed] = {}

    def update(self, outcome: Outcome) -> None:
        assert outcome.explained is not None
        deltas = ops.flat(outcome.piece.deltas)
        keep = ops.flat(outcome.explained.sparse) != 0
        smallest = torch.where(keep, deltas.abs(), math.inf)
        self.pieces[outcome.piece.key] = Trimmed(
            kept=keep.count_nonzero(1).tolist(),
            threshold=smallest.amin(1).tolist() if deltas.shape[1] else [math.inf] * len(deltas),
            signs=sign_conflict(outcome.piece, deltas * keep),
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
    _require_one_family(plan)
    accumulator = ChangeWatch()
    yield from engine.watch(plan, accumulator, device=device)
    yield _report(plan, accumulator)


def trim_plan(plan: Plan, density: float, scope: Scope, *, device: str = "auto") -> Iterator[Progress | Trim]:
    """The signs of what is left of the experts' changes at a density: progress after every piece, then the trim."""
    _require_one_family(plan)
    recipe = plan.recipe.model_copy(
        update={
            "merge_method": "magnitude",
            "models": tuple(e.model_copy(update={"parameters": {}}) for e in plan.recipe.models),
            "parameters": {"density": density},
            "scope": scope,
            "profile": "paper",
            "importance": None,
            "overrides": (),
        }
    )
    recipe._folder = plan.recipe._folder
    watch = TrimWatch()
    for event in engine.run_plan(make_plan(recipe), engine.NoSink(), device=device, watches=[watch]):
        if isinstance(event, Progress):
            yield event
    yield Trim(density, scope, watch.result())


def preview_plan(plan: Plan, *, device: str = "auto") -> Iterator[Progress | Preview]:
    """What a plan would make of the experts' changes, by the pass that merges: progress after every piece, then that."""
    _require_one_family(plan)
    watch = FateWatch(plan.reference if plan.base is None else None)
    for event in engine.run_plan(plan, engine.NoSink(), device=device, watches=[watch]):
        if isinstance(event, Progress):
            yield event
    yield _preview(plan, watch)


def inspect_recipe(plan: Plan, *, device: str = "auto") -> Iterator[Progress | Report]:
    """The experts' changes and what the plan makes of them, in one pass; and the trim at the recipe's density."""
    _require_one_family(plan)
    changes, fates = ChangeWatch(), FateWatch(plan.reference if plan.base is None else None)
    watches: list[engine.Watch] = [_Pieces(changes), fates]
    for event in engine.run_plan(plan, engine.NoSink(), device=device, watches=watches):
        if isinstance(event, Progress):
            yield event
    yield replace(_report(plan, changes), preview=_preview(plan, fates))


def _require_one_family(plan: Plan) -> None:
    if any(tensor.models != plan.names for tensor in plan.tensors):
        raise MergingError(
            "inspect: these slices are made of different models, which do not fit one map; inspect a recipe with whole "
            "models."
        )


def _report(plan: Plan, changes: ChangeWatch) -> Report:
    return Report(plan.reference.label, plan.names, changes.result(), warnings=plan.warnings)


def _preview(plan: Plan, watch: FateWatch) -> Preview:
    method = METHODS[plan.recipe.merge_method]
    return Preview(
        recipe=plan.recipe.to_yaml(),
        method=method.name,
        elementwise=method.elementwise,
        tensors=watch.result(),
        effective={one.tensor: one.values for one in plan.effective()},
        dtypes={tensor.info.name: tensor.info.dtype for tensor in plan.tensors},
        copied=tuple(tensor.info.name for tensor in plan.tensors if tensor.method is None),
    )
