"""Small results of many pieces, kept apart from the memory that pieces are worked on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK_BYTES = 33 << 20
"""More than the largest request that glibc serves from its heap; memory counts only as it is filled."""


@dataclass(frozen=True, slots=True)
class Strip:
    """Where one tensor lies on a shelf."""

    block: torch.Tensor
    start: int
    shape: tuple[int, ...]

    def tensor(self) -> torch.Tensor:
        """A view of what was put there."""
        return self.block[self.start : self.start + torch.Size(self.shape).numel()].view(self.shape)


class Shelf:
    """Keeps many small tensors in few large ones.

    A small tensor that outlives its piece lies among the large ones that come and go. glibc (2.36, aligned requests)
    does not use the gap beside it again: up to two megabytes were lost a piece, more than the inputs themselves.
    """

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self._block = torch.empty(0, dtype=dtype)
        self._used = 0

    def put(self, values: torch.Tensor) -> Strip:
        """A copy of `values` on the CPU in the shelf's dtype."""
        size = values.numel()
        if self._used + size > len(self._block):
            self._block = torch.empty(max(size, BLOCK_BYTES // self.dtype.itemsize), dtype=self.dtype)
            self._used = 0
        strip = Strip(self._block, self._used, tuple(values.shape))
        strip.tensor().copy_(values)
        self._used += size
        return strip
