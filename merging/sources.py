"""From the model references of a recipe to open models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from merging.anatomy import blocks, stack_of
from merging.checkpoint import Checkpoint, TensorSource
from merging.errors import CheckpointError
from merging.folders.adapter import Adapted
from merging.folders.adapter_file import AdapterFile, is_adapter
from merging.folders.renamed import named_like
from merging.hub.cache import cached_model
from merging.methods import METHODS
from merging.recipe import ModelEntry, Recipe, Slice, SliceSource
from merging.references import Reference, path_exists


@dataclass(frozen=True)
class Member:
    """An open model of a part, with the recipe's entry that names it."""

    entry: ModelEntry
    source: TensorSource

    @property
    def first(self) -> int:
        """The block that becomes the first of the part, in a slice."""
        return self.entry.layer_range[0] if isinstance(self.entry, SliceSource) else 0


@dataclass(frozen=True)
class Part:
    """Models that are merged into a run of the output's blocks: a slice, or the whole of a recipe in models form."""

    base: Member | None
    experts: tuple[Member, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """What the slice itself sets."""
    length: int | None = None
    """Blocks of a slice; None: whole models."""
    where: str = "models"
    """What the recipe calls the part."""

    @property
    def reference(self) -> Member:
        """The model whose tensors the output has, and whose values are copied: the base, or the first model."""
        return self.base or self.experts[0]

    @property
    def members(self) -> tuple[Member, ...]:
        return (*((self.base,) if self.base else ()), *self.experts)


Remote = Callable[[Reference], Checkpoint | AdapterFile]
"""Opens a Hub model or adapter that is not on this machine, by its headers."""


def open_parts(
    recipe: Recipe, problems: list[str], remote: Remote | None = None
) -> tuple[TensorSource | None, list[Part]]:
    """The recipe's base and its parts, of the models that could be opened; each other one leaves a problem."""
    return _Opening(recipe, problems, remote).parts()


def open_models(
    recipe: Recipe, problems: list[str]
) -> tuple[Checkpoint | None, list[tuple[ModelEntry, TensorSource]]]:
    """Base and experts of a recipe over whole models; see `open_parts`."""
    if recipe.slices:
        problems.append("slices: only whole models can be used here; list them under 'models'.")
        return None, []
    opening = _Opening(recipe, problems)
    part = opening.whole()
    return opening.base, [(member.entry, member.source) for member in part.experts]


@dataclass
class _Opening:
    """Opens every model once, under the names that the first has for its tensors. The base among the others is dropped where a method works on changes from it, and
    counts as a model for one that needs no base."""

    recipe: Recipe
    problems: list[str]
    remote: Remote | None = None
    _opened: dict[str, Checkpoint | None] = field(default_factory=dict)

    @cached_property
    def base(self) -> Checkpoint | None:
        return self._open(self.recipe.base_model) if self.recipe.base_model is not None else None

    @property
    def base_is_a_model(self) -> bool:
        method = METHODS.get(self.recipe.merge_method)
        return method is not None and not method.takes_base

    def parts(self) -> tuple[TensorSource | None, list[Part]]:
        base = self.base
        if not self.recipe.slices:
            part = self.whole()
            return base, [part] if part.members else []
        found = [self._slice(part, f"slices.{number}") for number, part in enumerate(self.recipe.slices, 1)]
        return base, [part for part in found if part is not None and part.members]

    def whole(self) -> Part:
        """The models form as one part."""
        experts = self._experts(self.recipe.models, self.base, "models")
        counts = self.base_is_a_model and self.recipe.profile == "mergekit" and self._has_a_weight_for_all()
        listed = any(member.source is self.base for member in experts)
        base = self._member(self.recipe.base_model, self.base)
        if counts and base is not None and not listed:
            experts.append(base)
        return Part(base, tuple(experts))

    def _has_a_weight_for_all(self) -> bool:
        """Whether the recipe weighs every model, or its method none."""
        own = METHODS[self.recipe.merge_method].per_model()
        return "weight" in self.recipe.parameters or "weight" not in own

    def _slice(self, part: Slice, where: str) -> Part | None:
        """A slice's models; None, with problems noted, where its ranges cannot be."""
        before = len(self.problems)
        named = part.base_model if part.base_model is not None else self.recipe.base_model
        wanted = self._open(named) if named is not None else None
        if not part.sources:
            self.problems.append(f"{where}: has no sources; list the models whose blocks it is made of.")
        opened = [(entry, self._open(entry.model)) for entry in part.sources]
        for entry, source in opened:
            self.problems += _range_problems(entry, source, where)
        lengths = {entry.model: entry.length for entry in part.sources}
        if len(set(lengths.values())) > 1:
            some = ", ".join(f"{length} ({model})" for model, length in lengths.items())
            self.problems.append(
                f"{where}: its sources give unequal numbers of blocks: {some}. Make them equal."
            )
        base = next((Member(entry, s) for entry, s in opened if s is not None and s is wanted), None)
        if base is None and wanted is not None and not self.base_is_a_model:
            self.problems.append(
                f"{where}: the base {named} is not among its sources; add it with the blocks the others are compared to."
            )
        experts = self._experts(part.sources, base.source if base else None, where)
        if len(self.problems) > before:
            return None
        return Part(base, tuple(experts), part.parameters, part.sources[0].length, where)

    def _experts(self, entries: Iterable[ModelEntry], base: TensorSource | None, where: str) -> list[Member]:
        experts: list[Member] = []
        for entry in entries:
            source = self._open(entry.model)
            if source is None or (not self.base_is_a_model and source is base):
                continue
            if any(source is member.source for member in experts):
                self.problems.append(
                    f"{where}: {entry.model} is listed twice; list it once with the sum of the weights."
                )
            experts.append(Member(entry, source))
        return experts

    def _member(self, reference: str | None, source: TensorSource | None) -> Member | None:
        if reference is None or source is None:
            return None
        return Member(ModelEntry(model=reference), source)

    def _base_for(self, reference: str) -> Checkpoint | None:
        """What an adapter named alone goes over."""
        return None if reference == self.recipe.base_model else self.base

    def _open(self, reference: str) -> Checkpoint | None:
        if reference not in self._opened:
            self._opened[reference] = None
            try:
                opened = open_model(
                    reference, self.recipe.locate, base=self._base_for(reference), remote=self.remote
                )
            except CheckpointError as error:
                self.problems.append(str(error))
            else:  # another spelling of a path is the same model
                earlier = [one for one in self._opened.values() if one]
                same = next((one for one in earlier if _same(one.path, opened.path)), None)
                self._opened[reference] = same or (named_like(earlier[0], opened) if earlier else opened)
        return self._opened[reference]


def _range_problems(entry: SliceSource, source: TensorSource | None, where: str) -> Iterable[str]:
    first, stop = entry.layer_range
    if not 0 <= first < stop:
        yield (
            f"{where}: layer_range [{first}, {stop}] of {entry.model} names no blocks; write the first block and the one "
            "after the last, such as [0, 8]."
        )
    elif source is not None:
        numbers = blocks(source.tensors)
        if any(stack_of(number) for number in numbers):
            yield (
                f"{where}: {entry.model} has an encoder and a decoder, which cannot be cut into slices; list it under "
                "'models'."
            )
        elif missing := [
            number for number in range(first, min(stop, first + 10_000)) if number not in numbers
        ]:
            yield (
                f"{where}: {entry.model} has no block {missing[0]}; it has {len(numbers)}"
                + (f", {numbers[0]} to {numbers[-1]}" if numbers else "")
                + f", and layer_range [{first}, {stop}] asks for {first} to {stop - 1}."
            )


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def open_model(
    reference: str,
    locate: Callable[[str], Path] = Path,
    *,
    base: Checkpoint | None = None,
    remote: Remote | None = None,
) -> Checkpoint:
    """Open what a reference names: a folder or file of this machine, or a Hub model that was downloaded.

    Args:
        locate: where a path lies; a recipe's own looks beside itself too.
        base: the recipe's base, which an adapter that is named alone goes over.
        remote: opens a Hub model that is not here; without it nothing calls out, and such a model is an error.

    Raises:
        CheckpointError: not here, not readable, or of a kind that cannot be merged.
    """
    named = Reference.parse(reference, lambda text: path_exists(locate(text)))
    opened = _open_alone(named.alone, locate, remote)
    if named.adapter is not None:
        adapter = _open_alone(named.adapter, locate, remote)
        if isinstance(opened, AdapterFile) or not isinstance(adapter, AdapterFile):
            raise CheckpointError(f"{reference}: is not a model and an adapter; write MODEL+ADAPTER.")
        return Adapted(opened, adapter)
    if isinstance(opened, Checkpoint):
        return opened
    if base is None:
        raise CheckpointError(
            f"{reference}: is an adapter, not a model. Write BASE+{reference}, or set base_model to a model that can be read."
        )
    return Adapted(base, opened)


def _open_alone(
    named: Reference, locate: Callable[[str], Path], remote: Remote | None
) -> Checkpoint | AdapterFile:
    here = locate(named.model)
    if named.revision is None and path_exists(here):
        return AdapterFile(here) if is_adapter(here) else Checkpoint.open(here)
    if not named.looks_like_hub:
        return Checkpoint.open(locate(str(named)))
    folder = cached_model(named)
    if folder is not None:
        return open_snapshot(folder, named.model)
    if remote is not None:
        return remote(named)
    raise CheckpointError(
        f"{named}: there is no such folder here, and no such Hub model was downloaded. If it is one, download it first: "
        f"python -m merging download {named}"
    )


def open_snapshot(folder: Path, id: str) -> Checkpoint | AdapterFile:
    """A Hub model or adapter that was downloaded, under its name there."""
    if is_adapter(folder):
        return AdapterFile(folder, label=id)
    opened = Checkpoint.open(folder)
    opened.label = id
    return opened
