"""What a merge makes of every expert's change: dropped, out-voted, rounded away, cancelled or kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from merging import ops
from merging.checkpoint import TensorSource
from merging.errors import MergingError
from merging.inspecting.sums import Record, by_tensor
from merging.pieces import Outcome, Piece, PieceKey

FATES = ("dropped", "outvoted", "rounded", "cancelled", "kept")
"""What can become of an element of a change; the first that applies:

dropped: its factor is 0 before any election: trimmed, dropped by chance, not selected, below a score's threshold (PCB's,
    which also leaves out who disagrees, without a vote), or of an expert that weighs 0.
outvoted: a sign election left it out (TIES and all that elect as it does, SCE's erasure, APL with `elect`).
rounded: the output equals the cast base, be the merged change too small for the dtype or exactly 0 (changes that cancel
    each other to the last bit, a λ of 0).
cancelled: its sign is not the merged change's: others, or its own negative weight, went the other way.
kept: the rest, whatever its factor.
"""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The output dtypes whose rounding is measured, by their words in a recipe."""
CHUNK = 1 << 15
"""Elements summed at once in float64: what stays in the cache."""
Pair = tuple[torch.Tensor, torch.Tensor]
"""The merged and the base's values in one dtype: [n] each."""


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
    `gram[t][s]` = Σδ_t·δ_s, `casts` by dtype, empty where they were not measured.
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
        casts: whether to measure what every output dtype would lose.
    """

    def __init__(self, origin: Origin | None = None, *, casts: bool = True):
        self.origin, self.casts = origin, casts
        self.pieces: dict[PieceKey, TensorFate] = {}

    def update(self, outcome: Outcome) -> None:
        piece = outcome.piece if self.origin is None else self.origin.under(outcome.piece)
        self.pieces[piece.key] = fate(replace(outcome, piece=piece), casts=self.casts)

    def combine(self, other: FateWatch) -> None:
        self.pieces.update(other.pieces)

    def result(self) -> dict[str, TensorFate]:
        return by_tensor(self.pieces)


@dataclass(frozen=True)
class Origin:
    """The base of a family for a method that uses none.

    `names` are its tensors' names by those of the output; `work_dtype` is what all inputs are rounded to first.
    """

    source: TensorSource
    names: Mapping[str, str]
    work_dtype: torch.dtype | None = None

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise unless a tensor of the output is there in its shape.

        Raises:
            MergingError: it is missing or has another shape.
        """
        info = self.source.tensors.get(self.names[name])
        if info is None or info.shape != shape:
            found = "does not have it" if info is None else f"has it as {list(info.shape)}, not {list(shape)}"
            raise MergingError(
                f"'{name}': {self.source.label} {found}, so nothing says what the models changed; name the model that they "
                "were tuned from as base_model."
            )

    def under(self, piece: Piece) -> Piece:
        """The piece with this base's rows as its base."""
        rows = self.source.read(self.names[piece.name], piece.start, piece.stop).to(piece.device)
        if self.work_dtype is not None:
            rows = rows.to(self.work_dtype)
        return piece.over(rows.to(torch.float32))


def fate(outcome: Outcome, *, casts: bool = True) -> TensorFate:
    """The fate of one piece's changes from its base; with what every dtype would lose unless `casts` is off."""
    piece = outcome.piece
    deltas, base = ops.flat(piece.deltas), piece.base_or_zero.flatten()
    change = outcome.merged.flatten() - base if outcome.change is None else outcome.change.flatten()
    written = outcome.rows.dtype
    both = {
        dtype: (_cast(outcome, dtype), base.to(dtype))
        for dtype in {written, *(DTYPES.values() if casts else ())}
    }
    square, changed, along = _along(deltas, change)
    return TensorFate(
        elements=len(change),
        energy=_energy(outcome, deltas, change, both[written]),
        change=square,
        changed=changed,
        along=along,
        gram=piece.gram.tolist(),
        casts=_losses(outcome, change, both) if casts else {},
    )


def _along(deltas: torch.Tensor, change: torch.Tensor) -> tuple[float, int, list[float]]:
    """ΣΔ² of the merged change, how many of it are not 0, and ΣΔ·δ of every expert."""
    if ops.compiled(change):
        sums = np.zeros(1 + len(deltas))
        changed = ops.loops().along(ops.array(deltas, 2), ops.array(change), sums)
        square, *along = sums.tolist()
        return square, changed, along
    square, *along = ops.inner(torch.cat([change[None], deltas]), change[None])[:, 0].tolist()
    return square, int(change.count_nonzero()), along


def _cast(outcome: Outcome, dtype: torch.dtype) -> torch.Tensor:
    """The merged values in a dtype: [n]."""
    return (outcome.rows if outcome.rows.dtype == dtype else outcome.merged.to(dtype)).flatten()


def _energy(
    outcome: Outcome, deltas: torch.Tensor, change: torch.Tensor, cast: Pair
) -> list[list[float]] | None:
    """Σδ² by expert and fate; None where the method is no sum. `cast`: the merged and the base's values as written."""
    if outcome.explained is None:
        return None
    coefficients, sparse = outcome.explained
    apart, weight = ops.differ(*cast), outcome.piece.weight
    if ops.compiled(deltas):
        found = np.zeros((len(deltas), len(FATES)))
        factors = (ops.factors_of(values, outcome.piece.shape) for values in (coefficients, sparse))
        ops.loops().fates(
            ops.array(deltas, 2), *factors, ops.array(weight), ops.array(change), apart.numpy(), found
        )
        return found.tolist()
    present = _nonzero(sparse, outcome.piece) & (weight != 0)[:, None]
    elected = present if sparse is coefficients else present & _nonzero(coefficients, outcome.piece)
    written = elected & apart
    kept = written & ~_signs_differ(deltas, change)
    codes = sum(
        (mask.view(torch.uint8) for mask in (elected, written, kept)), start=present.view(torch.uint8)
    )
    squares = [_squares_by(code, values) for code, values in zip(codes, deltas, strict=True)]
    return [some.tolist() for some in squares]


def _nonzero(factors: torch.Tensor, piece: Piece) -> torch.Tensor:
    """Where factors that broadcast to a piece are not 0: bool [experts, n]."""
    return ops.flat(factors.bool().expand(piece.shape))


def _signs_differ(deltas: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Where the sign bits of two float32 values differ: bool [experts, n]. Twice as fast as comparing both with 0."""
    return (deltas.view(torch.int32) ^ change.view(torch.int32)).bitwise_right_shift_(31).bool()


def _squares_by(code: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Squares of values added up by the number of a fate: float64 [fates] on the CPU."""
    sums = torch.zeros(len(FATES), dtype=torch.float64, device=values.device)
    buffer = sums.new_empty(min(len(values), CHUNK))
    for start in range(0, len(values), CHUNK):
        wide = buffer[: len(values) - start]
        wide.copy_(values[start : start + CHUNK]).square_()
        sums += code[start : start + CHUNK].bincount(weights=wide, minlength=len(FATES))
    return sums.cpu()


def _losses(outcome: Outcome, change: torch.Tensor, both: dict[torch.dtype, Pair]) -> dict[str, Cast]:
    """What each dtype loses of the merged change; `both`: the merged and the base's values in each."""
    apart = torch.stack([ops.differ(*both[dtype]) for dtype in DTYPES.values()])
    if ops.compiled(change):
        counts, energies = np.zeros(len(DTYPES), np.int64), np.zeros(len(DTYPES))
        ops.loops().losses(ops.array(change), apart.numpy(), counts, energies)
        lost, energy = counts.tolist(), energies.tolist()
    else:
        equal = change.bool() & ~apart
        lost = equal.count_nonzero(1).tolist()
        energy = (change.double().square() * equal).sum(1).tolist()
    merged = outcome.merged
    largest = max(-float(merged.amin()), float(merged.amax())) if merged.numel() else 0.0
    found: dict[str, Cast] = {}
    for number, (word, dtype) in enumerate(DTYPES.items()):
        fits = largest <= torch.finfo(dtype).max
        found[word] = Cast(
            lost=lost[number],
            energy=energy[number],
            overflow=0 if fits else int(both[dtype][0].isinf().count_nonzero()),
        )
    return found
