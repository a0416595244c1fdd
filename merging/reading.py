"""Reading a plan's tensors as pieces, once or over and over."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from merging.checkpoint import Checkpoint, bytes_of
from merging.layout import Input
from merging.pieces import Memory, Piece, PieceKey, StoredPiece
from merging.plan import KEEP_BYTES, Plan
from merging.tensor_plan import TensorPlan


class Spot(NamedTuple):
    """Where a piece lies: some rows of a tensor."""

    tensor: TensorPlan
    start: int
    stop: int

    @property
    def elements(self) -> int:
        info = self.tensor.info
        return info.elements // max(1, info.rows) * (self.stop - self.start)


class Thin(NamedTuple):
    """Where a sample lies: every `stride`-th element of a spot."""

    spot: Spot
    stride: int


BLOCK = 1 << 11
"""A sample of what is not kept has blocks of about so many elements, in whole rows."""
LEAST_BLOCKS, MOST_BLOCKS = 32, 512
MOST_SHARE = 4
"""A quarter of a small scope is looked at, at most."""


def blocks_of(elements: int) -> int:
    """How many blocks a sample of a scope has: with few the bracket is wide and much is collected, many take long to read;
    both take the same time where their elements are about (n / 4)^⅔."""
    wanted = int((elements / 4) ** (2 / 3)) // BLOCK
    return min(max(wanted, LEAST_BLOCKS), MOST_BLOCKS, -(-elements // (MOST_SHARE * BLOCK)))


class Reader:
    """Reads pieces onto a device as they are stored, rounded to the plan's work dtype, and counts the bytes; several threads
    may use it at once."""

    def __init__(self, plan: Plan, device: torch.device):
        self.plan = plan
        self.device = device
        self.bytes_read = 0
        self._lock = threading.Lock()

    def pieces(self, tensors: Sequence[TensorPlan], *, again: bool) -> Pieces:
        """The pieces of some tensors; if they will be read again and fit, they are kept from the first time on."""
        return Pieces(
            self, tensors, {} if again and input_bytes(tensors) <= self.plan.keep(KEEP_BYTES) else None
        )

    def rows(self, one: Input, start: int, stop: int) -> torch.Tensor:
        """Rows of one model's tensor as they are stored."""
        values = one.source.read(one.name, start, stop)
        with self._lock:
            self.bytes_read += values.nbytes
        return values

    def piece(self, spot: Spot, memory: Memory | None = None) -> StoredPiece:
        tensor, start, stop = spot
        stored = self._stored(tensor.inputs, start, stop)
        weight, saliency = weights(tensor).to(self.device), self._saliency(tensor, start, stop)
        return StoredPiece(tensor.info.name, start, stored, tensor.base is not None, weight, saliency, memory)

    def _saliency(self, tensor: TensorPlan, start: int, stop: int) -> torch.Tensor | None:
        if tensor.method is None or not tensor.method.needs_saliency:
            return None
        sources = self.plan.saliency
        return torch.stack([source.read(tensor.info.name, start, stop) for source in sources]).to(self.device)

    def _stored(self, inputs: Sequence[Input], start: int, stop: int) -> torch.Tensor:
        """Rows of several models [models, rows, ...], as they are stored where that is alike, else in float32."""
        stored = self._together(inputs, start, stop)
        if stored is not None:
            return self._rounded(stored.to(self.device, non_blocking=True))
        each = [self._rounded(self.rows(one, start, stop).to(self.device)) for one in inputs]
        return torch.stack([values.to(torch.float32) for values in each])

    def _together(self, inputs: Sequence[Input], start: int, stop: int) -> torch.Tensor | None:
        """Rows of several files, as they are stored, in one tensor, so that few operations follow; None where that is not
        possible."""
        files = [one.source for one in inputs if isinstance(one.source, Checkpoint)]
        infos = [one.info for one in inputs if one.info is not None]
        first = infos[0]
        if len(files) < len(inputs) or not first.shape or any(info.dtype != first.dtype for info in infos):
            return None
        shape, pinned = (len(inputs), stop - start, *first.shape[1:]), self.device.type == "cuda"
        found = torch.empty(shape, dtype=first.torch_dtype, pin_memory=pinned)
        if not found.numel():
            return found
        buffer, size = bytes_of(found), found.nbytes // len(inputs)
        for number, (file, one) in enumerate(zip(files, inputs, strict=True)):
            file.read_into(one.name, start, buffer[number * size : (number + 1) * size])
        with self._lock:
            self.bytes_read += found.nbytes
        return found

    def _rounded(self, values: torch.Tensor) -> torch.Tensor:
        dtype = self.plan.work_dtype
        return values if dtype in (None, torch.float32) else values.to(dtype)


def input_bytes(tensors: Sequence[TensorPlan]) -> int:
    """What base and experts of some tensors take as float32."""
    return sum(tensor.input_bytes for tensor in tensors)


def weights(tensor: TensorPlan) -> torch.Tensor:
    """The experts' weights in a tensor's merge: float32 [experts]; 1 for a method that has none."""
    experts = len(tensor.experts)
    if tensor.method is None or "weight" not in type(tensor.method).model_fields:
        return torch.ones(experts, dtype=torch.float32)
    return torch.tensor(tensor.method.for_experts("weight", experts), dtype=torch.float32)


class Pieces:
    """The pieces of some tensors. Where they are kept they are read once; else every scan reads them anew, so that memory
    does not grow with the scope."""

    def __init__(
        self, reader: Reader, tensors: Sequence[TensorPlan], kept: dict[PieceKey, Piece] | None = None
    ):
        self.reader, self.tensors, self._kept = reader, tensors, kept

    def __iter__(self) -> Iterator[Spot]:
        for tensor in self.tensors:
            for start, stop in tensor.row_blocks:
                yield Spot(tensor, start, stop)

    def load(self, spot: Spot) -> Piece:
        """The piece that lies there."""
        if self._kept is None:
            return self.reader.piece(spot)
        key = spot.tensor.info.name, spot.start
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = self.reader.piece(spot, Memory())
        return found

    @property
    def kept(self) -> bool:
        """Whether another scan reads nothing."""
        return self._kept is not None

    def sample(self) -> Iterator[Thin]:
        """A sample of the elements: blocks of rows, evenly far apart."""
        ends = list(accumulate(tensor.info.elements for tensor in self.tensors))
        blocks = blocks_of(ends[-1])
        for number in range(blocks):
            place = (2 * number + 1) * ends[-1] // (2 * blocks)
            index = bisect_right(ends, place)
            info = self.tensors[index].info
            rows = min(info.rows, -(-BLOCK // info.row_elements))
            row = (place - ends[index] + info.elements) // info.row_elements
            start = min(row, info.rows - rows)
            stride = max(1, rows * info.row_elements // BLOCK) | 1
            yield Thin(Spot(self.tensors[index], start, start + rows), stride)

    def load_thin(self, thin: Thin) -> Piece:
        """The elements that lie there, as one row."""
        spot, stride = thin
        return self.reader.piece(spot).thinned(stride)

    def of(self, tensors: Sequence[TensorPlan]) -> Pieces:
        """The pieces of some of the tensors, kept if these fit."""
        if self._kept is None:
            return self.reader.pieces(tensors, again=True)
        return Pieces(self.reader, tensors, self._kept)
