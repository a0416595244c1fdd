"""Looking at one tensor of a plan: read on demand, in blocks of rows, by a caller that may lose interest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from merging.devices import resolve_device
from merging.errors import MergingError
from merging.folders.header import MERGEABLE
from merging.heartbeats import Stopped
from merging.pieces import Piece
from merging.plan import Plan
from merging.reading import Reader
from merging.tensor_plan import TensorPlan

Stop = Callable[[], bool]
"""Asked between two steps of a long look; True ends it with `Stopped`."""


def find_tensor(plan: Plan, name: str) -> TensorPlan:
    """A tensor of the plan whose changes can be looked at.

    Raises:
        MergingError: there is none of this name, it is made of integers, or the experts have it in other shapes.
    """
    tensor = next((tensor for tensor in plan.tensors if tensor.info.name == name), None)
    if tensor is None:
        raise MergingError(f"'{name[:200]}': is no tensor of this recipe; choose one from the map.")
    for one in tensor.inputs:
        if one.info is None or one.info.shape != tensor.info.shape:
            raise MergingError(
                f"'{name}': {one.model} does not have it in the base's shape; nothing to compare."
            )
        if one.info.dtype not in MERGEABLE:
            raise MergingError(
                f"'{name}': is {one.info.dtype}; only tensors of floating-point numbers have changes."
            )
    return tensor


def read_blocks(
    plan: Plan,
    tensor: TensorPlan,
    *,
    experts: Sequence[int] | None = None,
    elements: int | None = None,
    device: str = "auto",
    stop: Stop | None = None,
) -> Iterator[Piece]:
    """The tensor in blocks of rows, of all experts or of some; of at most `elements` each, else as the plan cuts it.

    Raises:
        Stopped: `stop` said so, asked before every block.
    """
    looked_at = replace(tensor, method=None)
    if experts is not None:
        looked_at = replace(looked_at, experts=tuple(tensor.experts[expert] for expert in experts))
    if elements is not None:
        looked_at = replace(looked_at, row_blocks=tuple(tensor.info.row_blocks(elements)))
    pieces = Reader(plan, resolve_device(device)).pieces([looked_at], again=False)
    for spot in pieces:
        go_on(stop)
        yield pieces.load(spot)


def go_on(stop: Stop | None) -> None:
    """Raise `Stopped` where `stop` says so."""
    if stop is not None and stop():
        raise Stopped
