"""What is to be done for one tensor of the output, from the settings that hold for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from merging.anatomy import locate
from merging.folders.header import DTYPE_NAMES, DTYPE_WORDS, DTYPES, MERGEABLE, TensorInfo
from merging.keeping import keepers, keeping_problems
from merging.layout import Input, Slot
from merging.methods import Method, Scope
from merging.recipe import Recipe
from merging.settings import Settings

PIECE_BYTES = 8 << 20
"""Float32 bytes of one piece over base and experts, which fix the grid whatever the number of workers. Smaller pieces fit a
cache, but workers then wait for the interpreter's lock after every operation."""
NAME_OF_WORD = {word: name for name, word in DTYPE_WORDS.items()}

GroupKey = tuple[Scope, str]
"""What is ranked together: ("tensor", its name), ("layer", the block's number) or ("model", "")."""


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output: where its values come from and in which blocks of rows they are made."""

    info: TensorInfo
    """Name, shape and dtype in the output."""
    method: Method | None
    """None: the base's tensor is copied."""
    group: GroupKey
    """The scope it is ranked in."""
    row_blocks: tuple[tuple[int, int], ...]
    reference: Input
    """What is copied, and where the shape is from."""
    base: Input | None
    """None for methods that do not use one."""
    experts: tuple[Input, ...]
    """The models that are merged here, in the order of their slice; random masks go by the place in it."""
    position: float = 0.0
    """Where a gradient is read: from 0 at the first block of a slice to 1 at its last."""
    excluded: bool = False
    """Whether the recipe asked for the copy."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Base and experts."""
        return (*((self.base,) if self.base else ()), *self.experts)

    @property
    def piece_bytes(self) -> int:
        """Float32 bytes of its largest piece over base and experts."""
        rows = max((stop - start for start, stop in self.row_blocks), default=0)
        return rows * self.info.row_elements * 4 * (len(self.experts) + 1)

    @property
    def input_bytes(self) -> int:
        """Bytes of base and experts as float32."""
        return self.info.elements * 4 * (len(self.experts) + 1)

    @property
    def models(self) -> tuple[str, ...]:
        """The experts as the recipe names them."""
        return tuple(one.model for one in self.experts)


def plan_tensors(
    recipe: Recipe,
    slots: Sequence[Slot],
    settings: Settings,
    *,
    complete: bool = True,
    piece_bytes: int | None = None,
) -> tuple[list[TensorPlan], list[str]]:
    """A plan for every slot, and the problems found on the way. In a layout that is not `complete` it is no problem
    that something of the recipe matches no tensor. Pieces take `piece_bytes` at most, but one row at least."""
    piece = PIECE_BYTES if piece_bytes is None else min(PIECE_BYTES, piece_bytes)
    planned = [
        _plan_tensor(recipe, slot, settings, piece, excluded=bool(keepers(recipe, slot.name)))
        for slot in slots
    ]
    problems = list(settings.problems_found)
    if complete:
        problems += keeping_problems(recipe, [slot.name for slot in slots])
        problems += settings.unused_overrides()
    return planned, problems + list(_mixed_scopes(planned))


def _plan_tensor(
    recipe: Recipe, slot: Slot, settings: Settings, piece_bytes: int, *, excluded: bool
) -> TensorPlan:
    stored = slot.reference.info
    assert stored is not None
    merged = not excluded and stored.dtype in MERGEABLE
    method = settings.for_tensor(slot) if merged else None
    info = replace(stored, name=slot.name, dtype=_out_dtype(recipe, slot), file=None, start=0)
    whole = settings.method.whole_vectors and len(info.shape) == 1
    piece = piece_bytes // (4 * (len(slot.experts) + 1))
    return TensorPlan(
        info=info,
        method=method,
        group=_group(slot.name, method.ranked_within if method else "tensor"),
        row_blocks=tuple(() if whole else info.row_blocks(piece)) or ((0, info.rows),),
        reference=slot.reference,
        base=slot.base if settings.method.takes_base else None,
        experts=slot.experts,
        position=slot.position,
        excluded=excluded,
    )


def _group(name: str, scope: Scope) -> GroupKey:
    block = locate(name).block
    if scope == "model":
        return "model", ""
    return ("layer", str(block)) if scope == "layer" and block is not None else ("tensor", name)


def _mixed_scopes(planned: Sequence[TensorPlan]) -> Iterator[str]:
    """Tensors ranked together must be ranked by the same rule."""
    rules: dict[GroupKey, object] = {}
    models: dict[GroupKey, tuple[str, ...]] = {}
    for tensor in planned:
        if tensor.method is None or tensor.group[0] == "tensor":
            continue
        if models.setdefault(tensor.group, tensor.models) != tensor.models:
            yield (
                "the slices are made of different models, which cannot be ranked over the whole model "
                f"('{tensor.info.name}' and others, scope {tensor.group[0]}); set scope: layer or scope: tensor."
            )
            return
        rule = tensor.method.model_dump(exclude={"weight", "lambda_", "normalize"})
        if rules.setdefault(tensor.group, rule) != rule:
            yield (
                "a parameter other than weight, lambda and normalize differs between tensors that are ranked together "
                f"('{tensor.info.name}' and others, scope {tensor.group[0]}); set scope: tensor, or give one value."
            )
            return


def _out_dtype(recipe: Recipe, slot: Slot) -> str:
    stored = slot.reference.kept_as
    if stored not in MERGEABLE:
        return stored
    if wanted := recipe.out_dtype or recipe.dtype:
        return NAME_OF_WORD[wanted]
    if recipe.profile == "paper":
        return stored
    promoted = DTYPES[stored]
    for one in slot.inputs:
        if one.info is not None:
            promoted = torch.promote_types(promoted, DTYPES[one.kept_as])
    return DTYPE_NAMES[promoted]
