"""A model cut into partitions: the units to which importance is given.

From coarse to fine: `model`, `layer` (a block), `module` (a weight with its bias), `head`, `row` (a weight's row and
its element of the bias). Norms, embeddings and the output head are outside: a partition each, however fine the rest.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from merging import ops
from merging.anatomy import Block, Heads, Place, heads, heads_along, locate, output_axis
from merging.errors import MergingError, did_you_mean

Granularity = Literal["model", "layer", "module", "head", "row"]

OUTSIDE_ROLES = frozenset({"norm", "embedding", "head"})


@dataclass(frozen=True)
class Partition:
    """One unit: `key` is its name, such as `layers.3/q/head 2`; `outside` marks norms, embeddings, output head."""

    key: str
    block: Block | None
    kind: str
    tensors: tuple[str, ...]
    elements: int
    outside: bool


@dataclass(frozen=True)
class _Group:
    """Partitions `first` to `first + count` over the same tensors: the heads or rows of one module, or a single one."""

    key: str
    block: Block | None
    kind: str
    tensors: tuple[str, ...]
    outside: bool
    first: int
    count: int
    part: str


@dataclass(eq=False)
class Partitions:
    """All partitions of a model; every element of every tensor lies in exactly one.

    `sizes` int64 [P] and `outside` bool [P] by partition number. `index` gives the partition number of a tensor's
    elements as int64 that broadcasts to it: [] (one partition), [rows], [rows, 1, ...] or [1, cols].
    """

    granularity: Granularity
    index: dict[str, torch.Tensor] = field(default_factory=dict)
    sizes: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    outside: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    _groups: list[_Group] = field(default_factory=list)

    @property
    def items(self) -> Partitions:
        """The partitions in order, each made when it is asked for: this object, which is a sequence of them."""
        return self

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Partition]:
        return (self._get(number) for number in range(len(self)))

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return tuple(self._get(one) for one in range(*number.indices(len(self))))
        number = int(number)
        if not -len(self) <= number < len(self):
            raise IndexError(f"partition {number} of {len(self)}")
        return self._get(number % len(self))

    def _get(self, number: int) -> Partition:
        group = self._groups[bisect_right(self._groups, number, key=lambda group: group.first) - 1]
        key = f"{group.key}/{group.part} {number - group.first}" if group.part else group.key
        elements = int(self.sizes[number])
        return Partition(key, group.block, group.kind, group.tensors, elements, group.outside)

    def add(self, totals: torch.Tensor, name: str, values: torch.Tensor, start: int = 0) -> None:
        """Add the values of rows `start` on of tensor `name` to the `totals` of their partitions (float64 [P]).

        What lies in one partition is summed in float64; `totals` and `values` are on one device.
        """
        if not values.numel():
            return
        rows = values.shape[0] if values.ndim else 1
        index = ops.broadcast_rows(self.index[name], start, start + rows)
        if index.numel() == 1:
            totals[int(index)] += values.sum(dtype=torch.float64)
            return
        index = index.to(totals.device)
        axis = next(axis for axis, length in enumerate(index.shape) if length > 1)
        others = [other for other in range(values.ndim) if other != axis]
        sums = values.sum(others, dtype=torch.float64) if others else values.double()
        totals.index_add_(0, index.flatten(), sums)

    def spread(self, values: torch.Tensor, name: str) -> torch.Tensor:
        """Values by partition number (`[P]`), laid out so that they broadcast to the tensor `name`."""
        return values[self.index[name].to(values.device)]


@dataclass(frozen=True)
class Scores:
    """What a method needs to know of importance: `values` float64 [experts, P], absolute, in the plan's expert order."""

    partitions: Partitions
    values: torch.Tensor


def make_partitions(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], granularity: Granularity
) -> Partitions:
    """Cut a model into partitions.

    Args:
        shapes: the tensors that carry task vectors and their shapes, tied weights once.
        config: the model's `config.json`; without one no heads are found.

    Raises:
        MergingError: the granularity is unknown.
    """
    if granularity not in get_args(Granularity):
        raise MergingError(
            f"partition '{granularity}': unknown. Use {', '.join(get_args(Granularity))}."
            + did_you_mean(str(granularity), get_args(Granularity))
        )
    maker = _Maker(shapes, config, granularity)
    for key, places in _modules(shapes).items():
        maker.add_module(key, places)
    return maker.result()


def _modules(shapes: Mapping[str, Any]) -> dict[str, list[Place]]:
    """Key -> the weight and bias of one module, in the order of `shapes`; outside tensors each under their own name."""
    by_path: dict[str, list[Place]] = {}
    for name in shapes:
        place = locate(name)
        path = name.removesuffix(".weight").removesuffix(".bias")
        by_path.setdefault(name if place.role in OUTSIDE_ROLES else path, []).append(place)
    keys: dict[str, list[str]] = {}
    for path, places in by_path.items():
        keys.setdefault(_key(path, places[0]), []).append(path)
    # several modules of one kind in a block, as in a mixture of experts, go by their whole names
    return {key if len(paths) == 1 else path: by_path[path] for key, paths in keys.items() for path in paths}


def _key(path: str, place: Place) -> str:
    if place.block is None or place.role in OUTSIDE_ROLES:
        return path
    return f"layers.{place.block}/{place.kind.removesuffix(' bias')}"


class _Maker:
    """Numbers the partitions, module by module."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], granularity: Granularity
    ):
        self.shapes, self.config, self.granularity = shapes, config, granularity
        self.index: dict[str, torch.Tensor] = {}
        self.groups: list[_Group] = []
        self.wide: dict[str, list[Place]] = {}
        self.count = 0

    def add_module(self, key: str, places: Sequence[Place]) -> None:
        place = places[0]
        if place.role in OUTSIDE_ROLES:
            self._whole(key, place.block, place.kind, places)
        elif self.granularity == "model":
            self.wide.setdefault("model", []).extend(places)
        elif self.granularity == "layer" and place.block is not None:
            self.wide.setdefault(f"layers.{place.block}", []).extend(places)
        elif self.granularity == "row" and all(self.shapes[place.name] for place in places):
            self._rows(key, places)
        elif self.granularity == "head":
            self._heads(key, places)
        else:
            self._whole(key, place.block, place.kind.removesuffix(" bias"), places)

    def result(self) -> Partitions:
        for key, places in self.wide.items():
            block = places[0].block if self.granularity == "layer" else None
            self._whole(key, block, self.granularity, places)
        sizes = torch.zeros(self.count, dtype=torch.int64)
        for name, index in self.index.items():
            share = math.prod(self.shapes[name]) // index.numel() if index.numel() else 0
            sizes.index_add_(0, index.flatten(), torch.full((index.numel(),), share))
        outside = torch.zeros(self.count, dtype=torch.bool)
        for group in self.groups:
            outside[group.first : group.first + group.count] = group.outside
        return Partitions(self.granularity, self.index, sizes, outside, self.groups)

    def _open(
        self,
        key: str,
        block: Block | None,
        kind: str,
        places: Sequence[Place],
        count: int = 1,
        part: str = "",
    ) -> int:
        """A new group; the number of its first partition."""
        names = tuple(place.name for place in places)
        outside = places[0].role in OUTSIDE_ROLES
        self.groups.append(_Group(key, block, kind, names, outside, self.count, count, part))
        self.count += count
        return self.count - count

    def _whole(self, key: str, block: Block | None, kind: str, places: Sequence[Place]) -> None:
        number = torch.tensor(self._open(key, block, kind, places))
        self.index |= dict.fromkeys((place.name for place in places), number)

    def _rows(self, key: str, places: Sequence[Place]) -> None:
        """One partition for each output of the module; GPT-2 has its outputs along the columns."""
        axes = {place.name: output_axis(place, self.shapes[place.name], self.config) for place in places}
        lengths = {self.shapes[name][axis] for name, axis in axes.items()}
        if len(lengths) > 1:  # a bias that does not fit its weight's rows: each tensor for itself
            for place in places:
                self._rows(place.name, [place])
            return
        count, kind = lengths.pop(), places[0].kind.removesuffix(" bias")
        first = self._open(key, places[0].block, kind, places, count, "row")
        numbers = torch.arange(first, first + count)
        for name, axis in axes.items():
            self.index[name] = _along(numbers, axis, len(self.shapes[name]))

    def _heads(self, key: str, places: Sequence[Place]) -> None:
        """One partition for each head of q, k, v (rows with their bias) and o (columns; its bias by itself)."""
        found = {place.name: heads(place, self.shapes[place.name], self.config) for place in places}
        split = [place for place in places if found[place.name]]
        rest = [place for place in places if not found[place.name]]
        if split:
            parts: dict[tuple[str, int], int] = {}
            for group in found[split[0].name]:
                name = key if len(found[split[0].name]) == 1 else f"{key.removesuffix('/qkv')}/{group.part}"
                first = self._open(name, split[0].block, group.part, split, group.count, "head")
                parts[group.part, group.count] = first
            for place in split:
                self.index[place.name] = self._head_numbers(place, found[place.name], parts)
        if rest:
            kind = rest[0].kind.removesuffix(" bias")
            self._whole(f"{key}/bias" if split else key, rest[0].block, kind, rest)

    def _head_numbers(
        self, place: Place, found: Sequence[Heads], parts: Mapping[tuple[str, int], int]
    ) -> torch.Tensor:
        numbers = heads_along(found, [parts[group.part, group.count] for group in found])
        return _along(torch.tensor(numbers), found[0].axis, len(self.shapes[place.name]))


def _along(numbers: torch.Tensor, axis: int, dimensions: int) -> torch.Tensor:
    shape = [1] * dimensions
    shape[axis] = len(numbers)
    return numbers.reshape(shape)
