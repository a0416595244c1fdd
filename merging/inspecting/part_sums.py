"""Sums over the parts of a tensor (heads, rows, tokens): how far each moved, and whether the experts agree there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from math import nan

import torch

from merging.inspecting.sign_conflict import pairs_of
from merging.pieces import Piece


@dataclass(frozen=True, eq=False)
class PartSums:
    """Sums over the elements of n parts; every shown number follows from these.

    Per part, [n]: `elements`; `base` = Σθ0²; over the elements that at least two experts changed `covered` counts them,
    `split` those with changes of both signs, `gross` = ΣΣ_t|δ_t| and `net` = Σ|Σ_t δ_t|. Per expert, [experts, n]:
    `change` = Σδ², `mass` = Σ|δ|, `nonzero`, and `broken` counts NaN and infinite changes. Per pair of experts in the
    order of `pairs_of`, [pairs, n]: `shared` = elements that both changed, `opposite` = those of them with
    opposite signs, `dot` = Σδ_a·δ_b. Counts are int64, sums float64. Broken elements are left out of every sum but
    `base`; derived numbers that they touch are NaN, as are those that mean nothing (a conflict where nothing is shared).
    """

    elements: torch.Tensor
    base: torch.Tensor
    covered: torch.Tensor
    split: torch.Tensor
    gross: torch.Tensor
    net: torch.Tensor
    change: torch.Tensor
    mass: torch.Tensor
    nonzero: torch.Tensor
    broken: torch.Tensor
    shared: torch.Tensor
    opposite: torch.Tensor
    dot: torch.Tensor

    def __len__(self) -> int:
        return len(self.elements)

    @property
    def experts(self) -> int:
        return len(self.change)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return pairs_of(self.experts)

    @property
    def damaged(self) -> torch.Tensor:
        """Parts in which some expert's change is not finite, bool [n]."""
        return (self.broken > 0).any(0)

    def norm(self) -> torch.Tensor:
        """‖δ‖ of each expert, float64 [experts, n]."""
        return self.change.sqrt().where(self.broken == 0, nan)

    def relative_change(self) -> torch.Tensor:
        """‖δ‖ / ‖θ0‖ of each expert, float64 [experts, n]; NaN where the base is all zero."""
        return (self.norm() / self.base.sqrt()).where(self.base > 0, nan)

    def changed_share(self) -> torch.Tensor:
        """Share of elements that each expert changed at all, float64 [experts, n]."""
        return (self.nonzero.double() / self.elements).where(self.broken == 0, nan)

    def coverage(self) -> torch.Tensor:
        """Share of elements that at least two experts changed, float64 [n]."""
        return (self.covered.double() / self.elements).where(~self.damaged, nan)

    def opposite_share(self, pair: int | None = None) -> torch.Tensor:
        """Share of opposite signs among what both experts of a pair changed, or over all pairs, float64 [n].

        Unrelated experts show 0.5.
        """
        if pair is None:
            return (self.opposite.sum(0).double() / self.shared.sum(0)).where(~self.damaged, nan)
        broken = self.broken[list(self.pairs[pair])].sum(0)
        return (self.opposite[pair].double() / self.shared[pair]).where(broken == 0, nan)

    def split_share(self) -> torch.Tensor:
        """Share of the covered elements on whose direction the experts are not unanimous, float64 [n]."""
        return (self.split.double() / self.covered).where(~self.damaged, nan)

    def mass_conflict(self) -> torch.Tensor:
        """1 − Σ|Σ_t δ_t| / ΣΣ_t|δ_t| over the covered elements, float64 [n]: the share that cancels in a sum."""
        return (1 - self.net / self.gross).where(~self.damaged & (self.gross > 0), nan)

    def cosine(self, pair: int) -> torch.Tensor:
        """Cosine between two experts' changes, float64 [n]; NaN where one of them is zero."""
        norms = self.norm()[list(self.pairs[pair])].prod(0)
        return (self.dot[pair] / norms).where(norms > 0, nan)

    def take(self, index: torch.Tensor) -> PartSums:
        """Some of the parts, by number or by a mask."""
        return PartSums(**{field.name: getattr(self, field.name)[..., index] for field in fields(self)})

    def grouped(self, group: torch.Tensor, count: int) -> PartSums:
        """The sums of `count` groups of parts; `group` [n] holds the group's number of each part."""

        def added(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(*values.shape[:-1], count).index_add_(-1, group, values)

        return PartSums(**{field.name: added(getattr(self, field.name)) for field in fields(self)})

    def total(self) -> PartSums:
        """All parts as one."""
        return self.grouped(torch.zeros(len(self), dtype=torch.int64), 1)

    def room_for(self, parts: int) -> PartSums:
        """Room for the sums of so many parts of the same experts, each to be `put` there."""
        return PartSums(
            **{
                field.name: getattr(self, field.name).new_empty(*getattr(self, field.name).shape[:-1], parts)
                for field in fields(self)
            }
        )

    def put(self, start: int, some: PartSums) -> None:
        """Fill in some parts, the first of which is number `start`."""
        for field in fields(self):
            getattr(self, field.name)[..., start : start + len(some)] = getattr(some, field.name)

    def __add__(self, other: PartSums) -> PartSums:
        return PartSums(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )


def joined(some: Sequence[PartSums]) -> PartSums:
    """The parts of several sums behind one another."""
    return PartSums(
        **{
            field.name: torch.cat([getattr(one, field.name) for one in some], -1)
            for field in fields(PartSums)
        }
    )


def sums_along(piece: Piece, axes: Iterable[int]) -> dict[int, PartSums]:
    """The sums over every row (axis 0) and every column (axis 1, matrices only) of a piece."""
    base, deltas = _matrices(piece.base_or_zero[None])[0], _matrices(piece.deltas)
    turned = {0: lambda values: values, 1: lambda values: values.mT.contiguous()}
    return {axis: _row_sums(turned[axis](base), turned[axis](deltas)) for axis in axes}


def _row_sums(base: torch.Tensor, deltas: torch.Tensor) -> PartSums:
    """The sums over the last dimension of base [n, m] and deltas [experts, n, m]."""
    deltas = deltas.double()
    inner = _inner(deltas)
    broken = torch.zeros(deltas.shape[:2], dtype=torch.int64)
    if not bool(inner.isfinite().all()):
        finite = deltas.isfinite()
        broken, deltas = (~finite).sum(-1).cpu(), deltas.where(finite, 0.0)
        inner = _inner(deltas)
    signs, magnitudes = deltas.sign(), deltas.abs()
    changed = signs.abs()
    # sums of ones and signs are whole numbers, exact in float64
    shared, agreement = _inner(changed).long(), _inner(signs).long()
    count = changed.sum(0)
    several = count >= 2
    first, second = torch.triu_indices(len(deltas), len(deltas), 1)
    return PartSums(
        elements=torch.full(base.shape[:1], base.shape[1]),
        base=base.double().square().sum(-1).cpu(),
        covered=several.sum(-1).cpu(),
        split=(several & (signs.sum(0).abs() < count)).sum(-1).cpu(),
        gross=(magnitudes.sum(0) * several).sum(-1).cpu(),
        net=(deltas.sum(0).abs() * several).sum(-1).cpu(),
        change=inner.diagonal(dim1=1, dim2=2).T,
        mass=magnitudes.sum(-1).cpu(),
        nonzero=shared.diagonal(dim1=1, dim2=2).T,
        broken=broken,
        shared=shared[:, first, second].T,
        opposite=((shared - agreement) // 2)[:, first, second].T,
        dot=inner[:, first, second].T,
    )


def _inner(values: torch.Tensor) -> torch.Tensor:
    """Inner products of the experts in every row: [experts, n, m] -> [n, experts, experts]."""
    rows = values.transpose(0, 1)
    return (rows @ rows.mT).cpu()


def _matrices(values: torch.Tensor) -> torch.Tensor:
    """[experts, *shape] as [experts, rows, columns]; a vector is one column, a scalar one row of it."""
    rows = values.shape[1] if values.ndim > 1 else 1
    return values.reshape(len(values), rows, values[0].numel() // rows if rows else 0)
