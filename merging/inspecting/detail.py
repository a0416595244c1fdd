"""One tensor from near: every attention head and every row of it, across base and experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from merging.anatomy import Heads, heads, heads_along, locate, output_axis
from merging.inspecting.one_tensor import Stop, find_tensor, read_blocks
from merging.inspecting.part_sums import PartSums, sums_along
from merging.pieces import Piece
from merging.plan import Plan


@dataclass(frozen=True, eq=False)
class TensorDetail:
    """What the experts did to one tensor, by head and by row.

    `rows` has one part for each neuron, that is each output of the matrix: each index of the first dimension, but
    of the second for GPT-2's attention and MLP weights, which are stored as [inputs, outputs] (`row_axis` 1). An element of
    a vector is a row of its own. `heads` has one part for each attention head, named by `head_names` ("0", or "q 0"
    where q, k and v are fused); None where the tensor has no heads.
    """

    name: str
    shape: tuple[int, ...]
    experts: tuple[str, ...]
    row_axis: int
    rows: PartSums
    head_names: tuple[str, ...] = ()
    heads: PartSums | None = None

    @property
    def row_meaning(self) -> str:
        """What one row is, in words."""
        if len(self.shape) < 2:
            return "one number of the vector"
        if self.row_axis == 1:
            return "one output of the matrix, which is stored as inputs × outputs: one of its columns"
        if locate(self.name).has_token_rows:
            return "one token of the vocabulary"
        return "one output of the matrix"


def tensor_detail(
    plan: Plan, name: str, config: Mapping[str, Any], *, device: str = "auto", stop: Stop | None = None
) -> TensorDetail:
    """Read one tensor of a plan in blocks of rows and sum up its heads and rows; `config` is the model's config.json.

    Raises:
        MergingError: the plan has no such tensor, or it carries no changes.
        Stopped: `stop` said so.
    """
    tensor = find_tensor(plan, name)
    place, shape = locate(name), tensor.info.shape
    row_axis = output_axis(place, shape, config)
    groups = heads(place, shape, config)
    wanted = {row_axis, *(group.axis for group in groups)}
    along = _sums_of_axes(read_blocks(plan, tensor, device=device, stop=stop), wanted, tensor.info.rows)
    detail = TensorDetail(name, shape, tensor.models, row_axis, along[row_axis])
    if not groups:
        return detail
    index, names = _head_numbers(groups)
    found = along[groups[0].axis].grouped(index, len(names))
    return TensorDetail(name, shape, tensor.models, row_axis, along[row_axis], names, found)


def _sums_of_axes(pieces: Iterable[Piece], axes: set[int], rows: int) -> dict[int, PartSums]:
    """The sums along each axis, from one pass: blocks of rows follow one another along axis 0 and add up along 1.

    Those along axis 0 lie in one place from the start: see `shelf`.
    """
    known: dict[int, PartSums] = {}
    for piece in pieces:
        found = sums_along(piece, axes)
        if 0 in found:
            if 0 not in known:
                known[0] = found[0].room_for(rows)
            known[0].put(piece.start, found[0])
        if 1 in found:
            known[1] = known[1] + found[1] if 1 in known else found[1]
    return known


def _head_numbers(groups: list[Heads]) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The head's number of every row or column, and the names of the heads."""
    names = [
        f"{group.part} {head}" if len(groups) > 1 else str(head)
        for group in groups
        for head in range(group.count)
    ]
    first = [sum(group.count for group in groups[:number]) for number in range(len(groups))]
    return torch.tensor(heads_along(groups, first)), tuple(names)
