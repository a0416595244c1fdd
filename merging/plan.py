"""From a recipe and the models' headers to the work to do, or to all the reasons why it cannot be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from merging.block_config import origins, recut
from merging.cards.lineage import licence_cautions
from merging.cautions import recipe_cautions
from merging.checkpoint import Checkpoint, TensorSource
from merging.devices import GPU_WORKERS, VRAM
from merging.effective import Effective, effective
from merging.errors import CheckpointError, MergingError, ParameterError, PlanError
from merging.executors import MOST_WORKERS, workers_here
from merging.folders.compatibility import compare_parts, recipe_problems
from merging.folders.header import DTYPES
from merging.folders.room import bytes_text, disk_problem, memory_problem, output_problem
from merging.hub.pinning import commits_here, from_anywhere, names_elsewhere, public_recipe, renamed
from merging.importances.artefact import Importance
from merging.layout import Slot, layout
from merging.methods import Method, get_method
from merging.partitions import Scores
from merging.recipe import ModelEntry, Recipe
from merging.settings import Settings
from merging.sources import Member, Part, Remote, open_parts
from merging.tensor_plan import NAME_OF_WORD, GroupKey, TensorPlan, plan_tensors
from merging.tokenizing.arrangement import arrange
from merging.tokenizing.tokenizer_plan import TokenizerPlan

KEEP_BYTES = 128 << 20
"""A scope whose float32 inputs are smaller than this is read once and kept between its scans, and with it what a scan
worked out that the next one needs, such as a random mask."""
KEPT = 6
"""What is kept takes at most about so many times the float32 inputs (DELLA with many experts 5.4 where models are widened, as
on a GPU; the others below 4)."""
SCRATCH = 4
"""Merging a piece takes at most about so many times its float32 bytes (measured for TIES)."""
GPU_SCRATCH = 16
"""The same on a GPU, where no loop saves room for what it makes on the way."""
PIECE_SHARE = 4 * SCRATCH * MOST_WORKERS
"""A piece takes at most this part of the memory that a merge may use: a quarter of it holds one for every worker."""
SENTENCE_MODULES = "modules.json"
"""The file that lists the modules of sentence-transformers around a model."""
KEEP_SHARE = 8
"""What is kept takes, before what is made of it, at most this part: `KEPT` times as much is the rest."""


@dataclass(frozen=True)
class Plan:
    """Everything `engine.run_plan` needs, fixed before a weight is read.

    `reference` gives config and tokenizer: the base, or the first model where there is no base. `base` is None for
    methods that do not use one. `experts` are all models that are merged somewhere; `tensors` say which take part where.
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
    saliency: tuple[TensorSource, ...] = ()
    """Each expert's δ·g of every element, for a method that needs it."""
    budget: int | None = None
    """Bytes of memory that the user allows."""
    commits: Mapping[str, str] = field(default_factory=dict)
    """The recipe's Hub models with the commits that were opened, by what the recipe calls them."""
    tokens: TokenizerPlan | None = None
    """What becomes of vocabulary, tokenizer and heads; None for tensors in memory."""

    @cached_property
    def record(self) -> Recipe:
        """The recipe as a result keeps it, to be run again from any folder: every Hub model at the commit that was merged."""
        return from_anywhere(renamed(self.recipe, self.commits))

    @cached_property
    def elsewhere(self) -> Mapping[str, str]:
        """What the recipe's models are called where this machine is not known, by what the recipe calls them."""
        return names_elsewhere(self.recipe, self.commits)

    @cached_property
    def public(self) -> Recipe:
        """The recipe as the weights and the card tell it to anyone: no path of this machine is in it."""
        return public_recipe(self.recipe, self.commits)

    @cached_property
    def groups(self) -> dict[GroupKey, list[TensorPlan]]:
        """The tensors that are ranked together, by scope name, in plan order."""
        groups: dict[GroupKey, list[TensorPlan]] = {}
        for tensor in self.tensors:
            groups.setdefault(tensor.group, []).append(tensor)
        return groups

    def effective(self) -> list[Effective]:
        """The values that every tensor really gets, in plan order."""
        return effective(self.tensors)

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
        pieces = sum(len(tensor.row_blocks) for tensor in self.tensors)
        at_once = min(workers_here(), pieces)
        kept = KEPT * min(self.keep(KEEP_BYTES), self._input_bytes)
        return SCRATCH * self._largest_piece * at_once + kept

    @cached_property
    def _largest_piece(self) -> int:
        return max((tensor.piece_bytes for tensor in self.tensors), default=0)

    @cached_property
    def _input_bytes(self) -> int:
        """Base and experts as float32."""
        return sum(tensor.input_bytes for tensor in self.tensors)

    @property
    def gpu_workers(self) -> int:
        """Pieces that a GPU works on at once: as many as `VRAM` holds beside what is kept, up to `GPU_WORKERS`."""
        room = VRAM - KEPT * self.keep(KEEP_BYTES)
        return min(GPU_WORKERS, max(1, room // max(1, GPU_SCRATCH * self._largest_piece)))

    @property
    def gpu_memory(self) -> int:
        """Bytes a merge takes of a GPU at once, at most."""
        everything = KEPT * min(self.keep(KEEP_BYTES), self._input_bytes)
        return GPU_SCRATCH * self._largest_piece * self.gpu_workers + everything

    def keep(self, most: int) -> int:
        """Float32 bytes of inputs that may be kept between scans: `most`, or what the budget allows."""
        return most if self.budget is None else min(most, self.budget // KEEP_SHARE)

    @property
    def bytes_to_write(self) -> int:
        return sum(tensor.info.nbytes for tensor in self.tensors)

    @property
    def bytes_to_read(self) -> int:
        """Bytes of one pass over base and experts."""
        return sum(
            one.info.nbytes
            for tensor in self.tensors
            for one in (tensor.inputs if tensor.method else [tensor.reference])
            if one.info is not None
        )


def make_plan(
    recipe: Recipe,
    *,
    out: Path | None = None,
    earlier: Sequence[str] = (),
    memory: int | None = None,
    remote: Remote | None = None,
) -> Plan:
    """Open the models of a recipe by their headers and plan the merge, in so many bytes of memory if that is given.

    Args:
        remote: opens Hub models that are not here; without it they are problems.

    Raises:
        PlanError: with every problem found, those of the recipe itself (`earlier`) first.
    """
    problems = list(earlier)
    commits = commits_here(recipe)
    base, parts = open_parts(recipe, problems, remote)
    if out is not None:
        sources = [base, *(member.source for part in parts for member in part.members)]
        models = (source for source in sources if isinstance(source, Checkpoint))
        folders = dict.fromkeys(folder for model in models for folder in model.folders)
        problems += output_problem(out, folders)
    importance = None
    if recipe.importance is not None:
        try:
            importance = Importance.load(recipe.locate(recipe.importance))
        except MergingError as error:
            problems.append(str(error))
    plan = plan_parts(recipe, base, parts, out=out, earlier=problems, importance=importance, memory=memory)
    return replace(plan, commits=commits)


def plan_sources(
    recipe: Recipe,
    base: TensorSource | None,
    experts: Sequence[tuple[ModelEntry, TensorSource]],
    *,
    importance: Importance | None = None,
) -> Plan:
    """Plan the merge of whole models that are already open; see `make_plan`."""
    member = Member(ModelEntry(model=base.label), base) if base is not None else None
    part = Part(member, tuple(Member(entry, source) for entry, source in experts))
    return plan_parts(recipe, base, [part] if part.members else [], importance=importance)


def plan_parts(
    recipe: Recipe,
    base: TensorSource | None,
    parts: Sequence[Part],
    *,
    out: Path | None = None,
    earlier: Sequence[str] = (),
    importance: Importance | None = None,
    memory: int | None = None,
) -> Plan:
    """Plan the merge of models that are already open and divided into parts; see `make_plan`."""
    problems: list[str] = list(earlier)
    complete = len(parts) == (len(recipe.slices) or 1)
    method = None
    try:
        method = get_method(recipe.merge_method)
    except ParameterError as error:
        problems.append(str(error))
    if method is not None:
        problems += recipe_problems(recipe, method, base, parts, problems)
    warnings: list[str] = []
    arranged = arrange(recipe, base, parts, problems, warnings)
    base, parts = arranged.base, arranged.parts
    reference = base or (parts[0].reference.source if parts else None)
    slots = list(layout(parts))
    experts = _experts(parts)
    if reference is not None:
        found, noted = _judge(recipe, reference, parts, slots)
        problems += found
        warnings = noted + warnings
    settings = Settings(recipe, method, parts) if method else None
    if settings is not None:
        problems += settings.problems
    if reference is None or settings is None or not parts:
        raise PlanError(
            problems or ["the recipe names no model that can be opened; list models under 'models'."]
        )
    warnings += licence_cautions(recipe, base, experts)
    scores = None
    if settings.method.needs_importance and recipe.slices:
        problems.append(
            f"slices: {settings.method.name} needs the importance of whole models; list them under 'models'."
        )
    if settings.method.needs_importance and arranged.changed:
        problems.append(
            f"importance: {settings.method.name} cannot be used yet where rows of a vocabulary are rearranged or an embedding "
            "stands for a head; choose another method, or models with one vocabulary."
        )
    try:
        scores = _scores(settings.method, base, list(experts.values()), importance)
    except MergingError as error:
        problems.append(str(error))
    piece = None if memory is None else memory // PIECE_SHARE
    tensors, found = plan_tensors(recipe, slots, settings, complete=complete, piece_bytes=piece)
    problems += found
    warnings += settings.warnings
    warnings += recipe_cautions(recipe, tensors)
    if recipe.slices and isinstance(reference, Checkpoint):
        warnings += recut(reference.config, origins(tensors))[1]
    first = parts[0].base
    plan = Plan(
        recipe=recipe,
        reference=reference,
        base=(base or (first.source if first else None)) if settings.method.takes_base else None,
        experts=tuple(experts.values()),
        names=tuple(experts),
        tensors=tuple(tensors),
        warnings=tuple(dict.fromkeys(warnings)),
        scores=scores,
        saliency=_saliency(tensors, list(experts.values()), importance, problems),
        budget=memory,
        tokens=arranged.tokens,
    )
    problems += _budget_problem(tensors, memory)
    problems += memory_problem(plan.memory)
    if out is not None:
        problems += disk_problem(out, plan.bytes_to_write)
    if problems:
        raise PlanError(list(dict.fromkeys(problems)))
    return plan


def _budget_problem(tensors: Sequence[TensorPlan], memory: int | None) -> list[str]:
    """The tensor that cannot be merged in the memory that the user allows, not even by rows."""
    largest = max(tensors, key=lambda tensor: tensor.piece_bytes, default=None)
    if memory is None or largest is None or largest.piece_bytes * PIECE_SHARE <= memory:
        return []
    least = largest.piece_bytes * PIECE_SHARE
    one = "a row" if len(largest.row_blocks) == largest.info.rows else "the whole"
    return [
        f"memory: '{largest.info.name}' needs {bytes_text(least)}, for {one} of all models and what is made of it in "
        f"every worker, and {bytes_text(memory)} are allowed; set memory to {-(-least // 10**6)}MB or more."
    ]


def _judge(
    recipe: Recipe, reference: TensorSource, parts: Sequence[Part], slots: Sequence[Slot]
) -> tuple[list[str], list[str]]:
    """Problems and warnings that the models' folders and headers show."""
    problems: list[str] = []
    warnings: list[str] = []
    try:
        found, warnings = compare_parts(recipe, reference, parts, slots)
        problems += found
    except CheckpointError as error:
        problems.append(str(error))
    if isinstance(reference, Checkpoint) and not reference.config:
        warnings.append(f"{reference.label}: has no config.json, so the result will be weights without one.")
    if isinstance(reference, Checkpoint) and (reference.folder / SENTENCE_MODULES).is_file():
        warnings.append(
            f"{reference.label}: is a model of sentence-transformers; only its transformer is merged. Pooling and the other "
            f"modules that {SENTENCE_MODULES} names are neither merged nor copied: copy {SENTENCE_MODULES} and their folders "
            "from it into the result."
        )
    if not reference.tensors:
        problems.append(f"{reference.label}: holds no tensors.")
    if any(tensor.dtype == "F64" for tensor in reference.tensors.values()):
        warnings.append(f"{reference.label}: its float64 tensors are merged in float32.")
    return problems, warnings


def _experts(parts: Sequence[Part]) -> dict[str, TensorSource]:
    """All models but the bases of their parts, by their name in the recipe, in order of appearance."""
    found: dict[str, TensorSource] = {}
    for part in parts:
        for member in part.experts:
            if not any(member.source is source for source in found.values()):
                found[member.entry.model] = member.source
    return found


def _scores(
    method: type[Method],
    base: TensorSource | None,
    experts: Sequence[TensorSource],
    importance: Importance | None,
) -> Scores | None:
    """What a method gets of an importance artefact: nothing, unless it needs one.

    Raises:
        MergingError: it needs one and there is none, or the other way round, or it belongs to other models.
    """
    if not method.needs_importance:
        if importance is not None:
            raise MergingError(f"importance: {method.name} does not use it; leave it out.")
        return None
    if importance is None:
        raise MergingError(
            f"importance: missing. {method.title} works on what matters to each expert's task; measure it with `python -m "
            "merging importance RECIPE --data FILE --out FILE`, or in the app under Inspect, and name that file."
        )
    return importance.scores(base, experts) if base is not None and experts else None


def _saliency(
    tensors: Sequence[TensorPlan],
    experts: Sequence[TensorSource],
    importance: Importance | None,
    problems: list[str],
) -> tuple[TensorSource, ...]:
    """The element scores of every expert, where some tensor's method asks for them."""
    if problems or importance is None or not any(t.method and t.method.needs_saliency for t in tensors):
        return ()
    found = [importance.elements(expert) for expert in experts]
    if None in found:
        problems.append(
            "importance: drop: taylor needs the scores of single elements, which this file does not hold; measure it "
            "again with --elements, or choose drop: random or magnitude."
        )
    return tuple(source for source in found if source is not None)
