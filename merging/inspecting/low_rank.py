"""The nearest matrix of a rank, of one that is only read in blocks of rows: neither it nor a square of its sides is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

MORE = 16
"""Directions that are followed beyond those wanted, so that the last wanted ones are found too."""
PASSES = 12
"""Looks at the matrix at most."""
SETTLED = 1e-4
"""Share of the energy that another look must find, or it was the last."""
SHORT = 512
"""Up to so many columns all directions are followed, and one look finds the best."""

Blocks = Callable[[], Iterator[tuple[int, torch.Tensor]]]
"""Starts a new look: first row and float32 values [rows, columns] of every block."""


def nearest(
    blocks: Blocks, shape: tuple[int, int], rank: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U [rows, k], σ [k] and V [columns, k], float32, of the largest singular values; k is `rank` or a shorter side.

    Source: Halko, Martinsson & Tropp 2011, randomised subspace iteration; Eckart & Young 1936.
    """
    rows, columns = shape
    wanted = min(rank, rows, columns)
    width = columns if columns <= SHORT else min(wanted + MORE, rows, columns)
    start = torch.randn(columns, width, generator=torch.Generator().manual_seed(0))
    back = torch.eye(columns) if width == columns else start
    energy = -1.0
    for _ in range(PASSES):
        held, basis = energy, _orthonormal(back)
        images = torch.zeros(rows, width)
        back = torch.zeros(columns, width)
        for first, block in blocks():
            image = images[first : first + len(block)] = block @ basis
            back += block.T @ image
        left, values, right = torch.linalg.svd(images, full_matrices=False)
        energy = float(values[:wanted].double().square().sum())
        if width == columns or energy <= held * (1 + SETTLED):
            break
    return left[:, :wanted], values[:wanted], (basis @ right.T)[:, :wanted]


def _orthonormal(vectors: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of what some vectors [n, k] span."""
    return torch.linalg.qr(vectors.double()).Q.float()
