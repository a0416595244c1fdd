"""Which tensors the output has, and which tensors of which models each is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from merging.anatomy import Block, after_blocks, blocks, in_block, locate, stack_of
from merging.checkpoint import Checkpoint, TensorSource
from merging.folders.header import TensorInfo
from merging.sources import Member, Part


@dataclass(frozen=True)
class Input:
    """A tensor of a model that goes into one of the output; a slice may take it from another block."""

    model: str
    """The model as the recipe names it."""
    source: TensorSource
    name: str
    """The tensor's name in that model."""

    @property
    def info(self) -> TensorInfo | None:
        return self.source.tensors.get(self.name)

    @property
    def kept_as(self) -> str:
        """The dtype its model is stored in, which is not that of `info` where an adapter changes it."""
        if isinstance(self.source, Checkpoint):
            return self.source.kept_as(self.name)
        return self.source.tensors[self.name].dtype


@dataclass(frozen=True)
class Slot:
    """A tensor of the output and its inputs; `position` runs from 0 at the first block of its part to 1 at the last."""

    name: str
    position: float
    part: Part
    reference: Input
    base: Input | None
    experts: tuple[Input, ...]

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (*((self.base,) if self.base else ()), *self.experts)


def layout(parts: Sequence[Part]) -> Iterator[Slot]:
    """The output's tensors. Whole models: in the file order of their reference, under their own names. Slices: what
    comes before the blocks from the first slice, the blocks of all slices numbered anew, the rest from the last."""
    if parts and parts[0].length is None:
        yield from _whole(parts[0])
        return
    offset = 0
    for number, part in enumerate(parts):
        if number == 0:
            yield from _outside(part, after=False)
        yield from _blocks(part, offset)
        offset += part.length or 0
    if parts:
        yield from _outside(parts[-1], after=True)


def taken(part: Part, member: Member, parts: Sequence[Part]) -> dict[str, TensorInfo]:
    """The tensors of a member that a part is about: all of a whole model, else those its slice reaches."""
    if part.length is None:
        return dict(member.source.tensors)
    found = {}
    for name, info in member.source.tensors.items():
        place = locate(name)
        if isinstance(place.block, int):
            reached = member.first <= place.block < member.first + part.length
        else:
            reached = part is parts[-1] if after_blocks(place) else part is parts[0]
        if reached:
            found[name] = info
    return found


def _whole(part: Part) -> Iterator[Slot]:
    stacks: dict[str, list[Block]] = {}
    for number in blocks(part.reference.source.tensors):
        stacks.setdefault(stack_of(number), []).append(number)
    for name in part.reference.source.tensors:
        block = locate(name).block
        if block is None:
            position = 0.0
        else:
            stack = stacks[stack_of(block)]
            position = stack.index(block) / (len(stack) - 1) if len(stack) > 1 else 1.0
        yield _slot(part, name, name, position, None)


def _outside(part: Part, *, after: bool) -> Iterator[Slot]:
    for name in part.reference.source.tensors:
        place = locate(name)
        if place.block is None and after_blocks(place) == after:
            yield _slot(part, name, name, 0.0, None)


def _blocks(part: Part, offset: int) -> Iterator[Slot]:
    names: dict[Block | None, list[str]] = {}
    for name in part.reference.source.tensors:
        names.setdefault(locate(name).block, []).append(name)
    length = part.length or 0
    for index in range(length):
        position = index / (length - 1) if length > 1 else 1.0
        for name in names.get(part.reference.first + index, []):
            yield _slot(part, in_block(name, offset + index), name, position, index)


def _slot(part: Part, output: str, name: str, position: float, index: int | None) -> Slot:
    """`name` is the tensor's in the reference; `index` its block's place in the slice."""

    def of(member: Member) -> Input:
        own = name if index is None else in_block(name, member.first + index)
        return Input(member.entry.model, member.source, own)

    return Slot(
        name=output,
        position=position,
        part=part,
        reference=of(part.reference),
        base=of(part.base) if part.base else None,
        experts=tuple(of(member) for member in part.experts),
    )
