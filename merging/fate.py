"""What a merge makes of every expert's change: dropped, out-voted, rounded away, cancelled or kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from merging import ops
from merging.checkpoint import TensorSource
from merging.pieces import Outcome, PieceKey
from merging.sums import Record, by_tensor

FATES = ("dropped", "outvoted", "rounded", "cancelled", "kept")
"""What can become of an element of a change, first match first:

dropped: trimmed, dropped by chance, or an expert of weight 0; outvoted: left out by an election; rounded: the output
equals the cast base; cancelled: its sign is not the merged change's; kept: the rest.
"""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The output dtypes whose rounding is measured, by their words in a recipe."""


@dataclass(frozen=True)
class Cast(Record):
    """What a cast of the merged weights loses: `lost` of the elements the merge changed equal the cast base, and with
    them `energy` = Σ Δ² of the merged change; `overflow` elements become infinite."""

    lost: int
    energy: float
    overflow: int


@dataclass(frozen=True)
class TensorFate(Record):
    """Sums over one merged tensor, or over several once added up.

    `energy[t][f]` = Σδ_t² of the elements with fate `FATES[f]`, None for a method that is no sum of scaled changes.
    `change` = ΣΔ² of the merged change before the cast, `changed` counts its elements ≠ 0, `along[t]` = ΣΔ·δ_t,
    `gram[t][s]` = Σδ_t·δ_s, `casts` by dtype.
    """

    elements: int
    energy: list[list[float]] | None
    change: float
    changed: int
    along: list[float]
    gram: list[list[float]]
    casts: dict[str, Cast]

    def share(self, expert: int, fate: str) -> float | None:
        """The part of an expert's δ² that has this fate; None where it changed nothing, or the method is no sum."""
        if self.energy is None:
            return None
        whole = sum(self.energy[expert])
        return self.energy[expert][FATES.index(fate)] / whole if whole > 0 else None

    def projection(self, expert: int) -> float | None:
        """⟨Δ, δ_t⟩ / ‖δ_t‖²: how much of a task vector is in the merged change; 1 = fully present."""
        square = self.gram[expert][expert]
        return self.along[expert] / square if square > 0 else None

    def residual(self) -> float | None:
        """‖Δ − its projection on the span of all task vectors‖ / ‖Δ‖: what belongs to nobody (interference)."""
        if self.change <= 0:
            return None
        gram = torch.tensor(self.gram, dtype=torch.float64)
        along = torch.tensor(self.along, dtype=torch.float64)
        scale = gram.diagonal().clamp(min=0).sqrt()
        scale = torch.where(scale > 0, scale, 1.0)
        inside = along / scale
        inverse = torch.linalg.pinv(gram / scale[:, None] / scale, hermitian=True, rtol=1e-10)
        return max(0.0, 1 - float(inside @ inverse @ inside) / self.change) ** 0.5

    def lost_share(self, dtype: str) -> float | None:
        """Share of the elements the merge changed that a cast puts back to the base's value."""
        return self.casts[dtype].lost / self.changed if self.changed else None

    def lost_energy(self, dtype: str) -> float | None:
        """Share of the merged change's Δ² in those elements."""
        return self.casts[dtype].energy / self.change if self.change > 0 else None


class FateWatch:
    """Accumulates a `TensorFate` for every tensor whose merge it watches.

    Args:
        origin: what changes are measured from where the method itself uses no base.
    """

    def __init__(self, origin: TensorSource | None = None):
        self.origin = origin
        self.pieces: dict[PieceKey, TensorFate] = {}

    def update(self, outcome: Outcome) -> None:
        self.pieces[outcome.piece.key] = fate(outcome, self._base(outcome))

    def combine(self, other: FateWatch) -> None:
        self.pieces.update(other.pieces)

    def result(self) -> dict[str, TensorFate]:
        return by_tensor(self.pieces)

    def _base(self, outcome: Outcome) -> torch.Tensor:
        piece = outcome.piece
        if piece.base is not None or self.origin is None:
            return piece.base_or_zero
        rows = self.origin.read(piece.name, piece.start, piece.stop)
        return rows.to(piece.models.device, torch.float32)


def fate(outcome: Outcome, base: torch.Tensor) -> TensorFate:
    """The fate of one piece's changes from `base`."""
    piece = outcome.piece
    deltas = ops.flat(piece.deltas if piece.base is not None else piece.models - base)
    change = (outcome.merged - base if outcome.change is None else outcome.change).flatten()
    gram = (deltas @ deltas.T).double().cpu()
    base, merged = base.flatten(), outcome.merged.flatten()
    moved = change != 0
    energy = None
    if outcome.explained is not None:
        rounded = outcome.rows.flatten() == base.to(outcome.rows.dtype)
        energy = _energies(outcome, deltas, change, rounded)
    return TensorFate(
        elements=len(change),
        energy=energy,
        change=float(change @ change),
        changed=int(moved.count_nonzero()),
        along=(deltas @ change).tolist(),
        gram=gram.tolist(),
        casts=_casts(base, merged, change, moved),
    )


def _energies(
    outcome: Outcome, deltas: torch.Tensor, change: torch.Tensor, rounded: torch.Tensor
) -> list[list[float]]:
    """Σδ² of every expert by fate, in float64: [experts, fates]."""
    assert outcome.explained is not None
    shape = outcome.piece.models.shape
    coefficients, sparse = (ops.flat(values.expand(shape)) for values in outcome.explained)
    idle = (sparse == 0) | (outcome.piece.weight == 0)[:, None]
    fates = torch.where(deltas.sign() == change.sign(), 4, 3)
    fates = torch.where(rounded, 2, fates)
    fates = torch.where(coefficients == 0, 1, fates)
    fates = torch.where(idle, 0, fates)
    squares = deltas.double().square()
    return [
        row.bincount(weights=square, minlength=len(FATES)).tolist()
        for row, square in zip(fates, squares, strict=True)
    ]


def _casts(
    base: torch.Tensor, merged: torch.Tensor, change: torch.Tensor, moved: torch.Tensor
) -> dict[str, Cast]:
    """What each dtype loses of the merged change."""
    found: dict[str, Cast] = {}
    for word, dtype in DTYPES.items():
        after = merged.to(dtype)
        lost = moved & (after == base.to(dtype))
        gone = change[lost]
        found[word] = Cast(
            lost=len(gone), energy=float(gone @ gone), overflow=int(after.isinf().count_nonzero())
        )
    return found


def dtype_words(fates: Mapping[str, TensorFate]) -> list[str]:
    """The dtypes that were measured."""
    return list(next(iter(fates.values())).casts) if fates else []
