"""From a recipe and the models' headers to the work to do, or to all the reasons why it cannot be done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

import torch

from merging.anatomy import blocks, locate
from merging.checkpoint import Checkpoint, TensorSource
from merging.compatibility import (
    compare,
    disk_problem,
    memory_problem,
    output_problem,
    recipe_problems,
    tokenizer_problems,
)
from merging.errors import CheckpointError, ParameterError, PlanError
from merging.header import DTYPE_NAMES, DTYPE_WORDS, DTYPES, MERGEABLE, TensorInfo
from merging.methods import Method, Scope, get_method
from merging.partitions import Scores
from merging.recipe import ModelEntry, Recipe
from merging.settings import Settings
from merging.sources import open_models

PIECE_BYTES = 2 << 20
"""Float32 bytes of one piece over base and experts: what fits a cache fixes the grid, never the number of workers."""
KEEP_BYTES = 256 << 20
"""A scope whose float32 inputs are smaller than this is read once and kept between its scans."""
SCRATCH = 4
"""Merging a piece takes at most about so many times its float32 bytes (measured for TIES)."""

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
    excluded: bool = False
    """Whether the recipe asked for the copy."""


@dataclass(frozen=True)
class Plan:
    """Everything `engine.run_plan` needs, fixed before a weight is read.

    `reference` gives config, tokenizer and copied tensors: the base, or the first model where there is no base.
    `base` is None for methods that do not use one. `tensors` are in the reference's file order.
    """

    recipe: Recipe
    reference: TensorSource
    base: TensorSource | None
    experts: tuple[TensorSource, ...]
    names: tuple[str, ...]
    """The experts as the recipe names them."""
    tensors: tuple[TensorPlan, ...]
    warnings: tuple[str, ...] = ()
    scores: Scores | None = None
    """The importance of every partition, for a method that needs it."""

    @cached_property
    def groups(self) -> dict[GroupKey, list[TensorPlan]]:
        """The tensors that are ranked together, by scope name, in plan order."""
        groups: dict[GroupKey, list[TensorPlan]] = {}
        for tensor in self.tensors:
            groups.setdefault(tensor.group, []).append(tensor)
        return groups

    @property
    def work_dtype(self) -> torch.dtype | None:
        """What inputs are rounded to before the arithmetic (mergekit's `dtype`); None: nothing is rounded."""
        if self.recipe.profile == "mergekit" and self.recipe.dtype:
            return DTYPES[NAME_OF_WORD[self.recipe.dtype]]
        return None

    @property
    def parameters(self) -> int:
        return sum(tensor.info.elements for tensor in self.tensors)

    @property
    def memory(self) -> int:
        """Bytes the tensors of a merge need at once, at most; torch itself comes on top."""
        sources = len(self.experts) + 1
        pieces = [
            (stop - start) * tensor.info.row_elements * 4 * sources
            for tensor in self.tensors
            for start, stop in tensor.row_blocks
        ]
        largest = max(pieces, default=0)
        return SCRATCH * largest + 2 * min(KEEP_BYTES, 4 * self.parameters * sources)

    @property
    def bytes_to_write(self) -> int:
        return sum(tensor.info.nbytes for tensor in self.tensors)

    @property
    def bytes_to_read(self) -> int:
        """Bytes of one pass over base and experts."""
        sources = [source for source in (self.base, *self.experts) if source]
        return sum(
            source.tensors[tensor.info.name].nbytes
            for tensor in self.tensors
            for source in (sources if tensor.method else [self.reference])
        )


def make_plan(recipe: Recipe, *, out: Path | None = None, earlier: Sequence[str] = ()) -> Plan:
    """Open the models of a recipe by their headers and plan the merge.

    Raises:
        PlanError: with every problem found, those of the recipe itself (`earlier`) first.
    """
    problems = list(earlier)
    base, experts = open_models(recipe, problems)
    if out is not None:
        folders = [
            source.folder for source in (base, *(s for _, s in experts)) if isinstance(source, Checkpoint)
        ]
        problems += output_problem(out, folders)
    return plan_sources(recipe, base, experts, out=out, earlier=problems)


def plan_sources(
    recipe: Recipe,
    base: TensorSource | None,
    experts: Sequence[tuple[ModelEntry, TensorSource]],
    *,
    out: Path | None = None,
    earlier: Sequence[str] = (),
) -> Plan:
    """Plan the merge of models that are already open; see `make_plan`."""
    problems, warnings = list(earlier), []
    method = None
    try:
        method = get_method(recipe.merge_method)
    except ParameterError as error:
        problems.append(str(error))
    if method is not None:
        problems += recipe_problems(recipe, method, base, [entry for entry, _ in experts], problems)
    reference = base or (experts[0][1] if experts else None)
    entries = [entry for entry, _ in experts]
    try:
        problems += tokenizer_problems(recipe, reference, experts)
        for entry, source in experts:
            if reference is not None and source is not reference:
                found, noted = compare(reference, source, entry.model)
                problems += found
                warnings += noted
    except CheckpointError as error:
        problems.append(str(error))
    if isinstance(reference, Checkpoint) and not reference.config:
        warnings.append(f"{reference.label}: has no config.json, so the result will be weights without one.")
    settings = Settings(recipe, method, entries) if method else None
    if settings is not None:
        problems += settings.problems
    if reference is not None and not reference.tensors:
        problems.append(f"{reference.label}: holds no tensors.")
    if reference is None or settings is None:
        raise PlanError(
            problems or ["the recipe names no model that can be opened; list models under 'models'."]
        )
    if any(tensor.dtype == "F64" for tensor in reference.tensors.values()):
        warnings.append(f"{reference.label}: its float64 tensors are merged in float32.")
    tensors = _plan_tensors(recipe, reference, experts, settings, problems)
    plan = Plan(
        recipe=recipe,
        reference=reference,
        base=base if settings.method.needs_base else None,
        experts=tuple(source for _, source in experts),
        names=tuple(entry.model for entry in entries),
        tensors=tuple(tensors),
        warnings=tuple(dict.fromkeys(warnings)),
    )
    problems += memory_problem(plan.memory)
    if out is not None:
        problems += disk_problem(out, plan.bytes_to_write)
    if problems:
        raise PlanError(list(dict.fromkeys(problems)))
    return plan


def _plan_tensors(
    recipe: Recipe,
    reference: TensorSource,
    experts: Sequence[tuple[ModelEntry, TensorSource]],
    settings: Settings,
    problems: list[str],
) -> list[TensorPlan]:
    numbers = blocks(reference.tensors)
    unused = set(recipe.exclude)
    planned = []
    for name, info in reference.tensors.items():
        matching = {glob for glob in recipe.exclude if fnmatchcase(name, glob)}
        unused -= matching
        method = None
        if not matching and info.dtype in MERGEABLE:
            method = settings.for_tensor(name, _position(name, numbers))
        group = _group(name, method.ranked_within if method else "tensor")
        inputs = [source.tensors[name] for _, source in experts if name in source.tensors]
        out = replace(info, dtype=_out_dtype(recipe, info, inputs), file=None, start=0)
        whole = settings.method.whole_vectors and len(info.shape) == 1
        rows = ((0, info.rows),) if whole else _row_blocks(info, len(experts) + 1)
        planned.append(TensorPlan(out, method, group, rows, bool(matching)))
    problems += settings.problems_found
    problems += [f"exclude: '{glob}' matches no tensor of {reference.label}." for glob in sorted(unused)]
    problems += settings.unused_overrides()
    problems += _mixed_scopes(planned)
    return planned


def _position(name: str, numbers: Sequence[int]) -> float:
    """Where a tensor's block lies among all blocks, from 0 to 1; outside the blocks 0, in a single block 1."""
    block = locate(name).block
    if block is None:
        return 0.0
    return numbers.index(block) / (len(numbers) - 1) if len(numbers) > 1 else 1.0


def _group(name: str, scope: Scope) -> GroupKey:
    block = locate(name).block
    if scope == "model":
        return "model", ""
    return ("layer", str(block)) if scope == "layer" and block is not None else ("tensor", name)


def _mixed_scopes(planned: Sequence[TensorPlan]) -> Iterator[str]:
    """Tensors ranked together must be ranked by the same rule."""
    rules: dict[GroupKey, object] = {}
    for tensor in planned:
        if tensor.method is None or tensor.group[0] == "tensor":
            continue
        rule = tensor.method.model_dump(exclude={"weight", "lambda_", "normalize"})
        if rules.setdefault(tensor.group, rule) != rule:
            yield (
                "a parameter other than weight, lambda and normalize differs between tensors that are ranked together "
                f"('{tensor.info.name}' and others, scope {tensor.group[0]}); set scope: tensor, or give one value."
            )
            return


def _out_dtype(recipe: Recipe, info: TensorInfo, inputs: Sequence[TensorInfo]) -> str:
    if info.dtype not in MERGEABLE:
        return info.dtype
    if wanted := recipe.out_dtype or recipe.dtype:
        return NAME_OF_WORD[wanted]
    if recipe.profile == "paper":
        return info.dtype
    promoted = info.torch_dtype
    for tensor in inputs:
        promoted = torch.promote_types(promoted, tensor.torch_dtype)
    return DTYPE_NAMES[promoted]


def _row_blocks(info: TensorInfo, sources: int) -> tuple[tuple[int, int], ...]:
    if info.elements == 0:
        return ((0, info.rows),)
    rows = max(1, PIECE_BYTES // max(1, info.row_elements * 4 * sources))
    return tuple((start, min(start + rows, info.rows)) for start in range(0, info.rows, rows))
