"""Reading a plan's tensors as pieces, once or over and over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from merging.layout import Input
from merging.pieces import Piece
from merging.plan import KEEP_BYTES, Plan
from merging.tensor_plan import TensorPlan


class Reader:
    """Reads pieces onto a device in float32, rounded to the plan's work dtype first, and counts the bytes."""

    def __init__(self, plan: Plan, device: torch.device):
        self.plan = plan
        self.device = device
        self.bytes_read = 0

    def read(self, tensors: Sequence[TensorPlan]) -> Iterator[tuple[TensorPlan, Piece]]:
        for tensor in tensors:
            for start, stop in tensor.row_blocks:
                yield tensor, self._piece(tensor, start, stop)

    def pieces(self, tensors: Sequence[TensorPlan], *, again: bool) -> Pieces:
        """The pieces of some tensors; if they will be read again and fit, they are kept from the first time on."""
        size = sum(tensor.info.elements * 4 * (len(tensor.experts) + 1) for tensor in tensors)
        return Kept(self.read(tensors)) if again and size <= KEEP_BYTES else Reread(self, tensors)

    def rows(self, one: Input, start: int, stop: int) -> torch.Tensor:
        """Rows of one model's tensor as they are stored."""
        values = one.source.read(one.name, start, stop)
        self.bytes_read += values.nbytes
        return values

    def _piece(self, tensor: TensorPlan, start: int, stop: int) -> Piece:
        base = self._values(tensor.base, start, stop) if tensor.base is not None else None
        models = torch.stack([self._values(expert, start, stop) for expert in tensor.experts])
        saliency = self._saliency(tensor, start, stop)
        return Piece(tensor.info.name, start, base, models, weights(tensor).to(self.device), saliency)

    def _saliency(self, tensor: TensorPlan, start: int, stop: int) -> torch.Tensor | None:
        if tensor.method is None or not tensor.method.needs_saliency:
            return None
        sources = self.plan.saliency
        return torch.stack([source.read(tensor.info.name, start, stop) for source in sources]).to(self.device)

    def _values(self, one: Input, start: int, stop: int) -> torch.Tensor:
        values = self.rows(one, start, stop).to(self.device)
        if self.plan.work_dtype is not None:
            values = values.to(self.plan.work_dtype)
        return values.to(torch.float32)


def weights(tensor: TensorPlan) -> torch.Tensor:
    """The experts' weights in a tensor's merge: float32 [experts]; 1 for a method that has none."""
    experts = len(tensor.experts)
    if tensor.method is None or "weight" not in type(tensor.method).model_fields:
        return torch.ones(experts)
    return torch.tensor(tensor.method.for_experts("weight", experts), dtype=torch.float32)


class Kept:
    """Pieces that are read once and kept for the next scan."""

    def __init__(self, pieces: Iterable[tuple[TensorPlan, Piece]]):
        self._pieces = iter(pieces)
        self._seen: list[tuple[TensorPlan, Piece]] = []

    def __iter__(self) -> Iterator[tuple[TensorPlan, Piece]]:
        yield from self._seen
        for item in self._pieces:
            self._seen.append(item)
            yield item

    def of(self, tensors: Sequence[TensorPlan]) -> Kept:
        """The pieces of some of the tensors."""
        names = {tensor.info.name for tensor in tensors}
        return Kept(item for item in self if item[1].name in names)


@dataclass(frozen=True)
class Reread:
    """Pieces that are read anew by every scan, so that memory does not grow with the scope."""

    reader: Reader
    tensors: Sequence[TensorPlan]

    def __iter__(self) -> Iterator[tuple[TensorPlan, Piece]]:
        return self.reader.read(self.tensors)

    def of(self, tensors: Sequence[TensorPlan]) -> Pieces:
        """The pieces of some of the tensors, kept if these fit."""
        return self.reader.pieces(tensors, again=True)


Pieces = Kept | Reread
