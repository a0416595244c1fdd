"""DPPA: prune by what stands out in each block and linear, then amplify what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from merging import ops
from merging.anatomy import locate
from merging.cuts import Cut, largest_cut
from merging.methods.base import Group, Number, Profile, Scope, Survey, parameter, register
from merging.methods.combine import Added
from merging.pieces import Piece
from merging.statistics import Attained, Sums

OUTLIER_OF_BLOCK = 3
OUTLIER_OF_LINEAR = 5
"""How many times the mean a change must be to count as significant."""

Drop = Annotated[float, Field(ge=0, lt=1, strict=True)]


@dataclass(frozen=True)
class Linears:
    """The 2-D linears inside blocks, their sizes [L] and the position of their block [L]."""

    names: tuple[str, ...]
    sizes: torch.Tensor
    blocks: torch.Tensor

    @classmethod
    def among(cls, shapes: Mapping[str, tuple[int, ...]]) -> Linears:
        places = {name: locate(name) for name, shape in shapes.items() if len(shape) == 2 and min(shape)}
        found = {n: p.block for n, p in places.items() if p.block is not None and p.role != "norm"}
        order = {number: position for position, number in enumerate(sorted(set(found.values())))}
        sizes = torch.tensor([torch.Size(shapes[name]).numel() for name in found], dtype=torch.float64)
        return cls(tuple(found), sizes, torch.tensor([order[number] for number in found.values()]))

    def by_block(self, values: torch.Tensor) -> torch.Tensor:
        """Sums over the linears of each block: [L, ...] -> [blocks, ...]."""
        sums = torch.zeros(int(self.blocks.max()) + 1, *values.shape[1:], dtype=torch.float64)
        return sums.index_add_(0, self.blocks, values)


@dataclass(frozen=True)
class Known:
    """How many elements of a linear each expert and level keeps [experts · levels]; then the cut of one linear."""

    kept: Mapping[str, list[int]]
    cut: Cut | None = None


def densities(
    block_significance: torch.Tensor, linear_significance: torch.Tensor, linears: Linears, p: float, nu: float
) -> torch.Tensor:
    """The share each linear keeps: [L], from the per cent of outliers of its block [blocks] and its own [L].

    Source: DPPA, 2403.02799.
    """
    block = block_significance - block_significance.mean()
    linear = torch.zeros_like(linear_significance)
    if linear_significance.mean() > 0:
        linear = linear_significance / linear_significance.mean()
        linear = linear - (linears.sizes * linear).sum() / linears.sizes.sum()
    offset = nu * _scaled(block)[linears.blocks] + nu * _scaled(linear)
    return torch.clamp(1 - p + offset, 1 / linears.sizes, torch.ones_like(linears.sizes))


def _scaled(offsets: torch.Tensor) -> torch.Tensor:
    largest = offsets.abs().max()
    return offsets / largest if largest > 0 else torch.zeros_like(offsets)


@register
class Dppa(Added):
    """Dynamic pruning (DP) and dynamic partition amplification (DPA).

    DP prunes the 2-D linears inside blocks; blocks and linears with more outlying changes keep more of them. Everything
    else keeps its whole change. With several levels the `amplify` factor of the strictest level that keeps an element
    scales its change. One expert alone does not come out as it is: its linears are pruned.

    Source: DPPA, 2403.02799.
    """

    name: ClassVar[str] = "dppa"
    title: ClassVar[str] = "DPPA"
    when_to_use: ClassVar[str] = (
        "Experts that were tuned strongly (where DARE fails): keeps few, outlying changes and scales them up."
    )
    paper: ClassVar[str] = "https://arxiv.org/abs/2403.02799"
    group: ClassVar[str] = "importance"
    caveat: ClassVar[str] = (
        "Its factors are meant to be searched for on each expert's task, from amplify 1.8, 0 upwards; at 1, 1 it only "
        "prunes. Even one expert alone is pruned."
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "where the authors' search begins": {"amplify": (1.8, 0.0)},
        "the authors' rule where levels overlap": {"rule": "authors"},
    }
    scans: ClassVar[int] = 4
    reduces: ClassVar[bool] = False

    levels: tuple[Drop, ...] = parameter(
        (0.9, 0.8),
        "p",
        "Shares of each change to drop on average, from strict to loose; what a strict level keeps, the looser keep too.",
        sequence=True,
    )
    amplify: tuple[Number, ...] = parameter(
        (1.0, 1.0),
        "α",
        "A factor for each level, for what it keeps beyond the stricter ones: above 1 amplifies it, 0 leaves it out.",
        sequence=True,
    )
    rule: Literal["strictest", "authors"] = parameter(
        "strictest",
        "",
        "Whose factor an element gets that several levels keep: the strictest level's, or (authors) the largest.",
        rare=True,
    )
    nu: Annotated[float, Field(ge=0, le=1, strict=True)] = parameter(
        0.08,
        "ν",
        "How far blocks, and matrices, in which more changes stand out may keep a larger share than others; 0 treats all "
        "alike.",
        rare=True,
    )

    @property
    def ranked_within(self) -> Scope:
        return "model"

    def problems(self, experts: int, profile: Profile) -> list[str]:
        found = super().problems(experts, profile)
        if not self.levels or len(self.levels) != len(self.amplify):
            found.append(
                f"levels has {len(self.levels)} values and amplify {len(self.amplify)}; give each level its factor"
            )
        if list(self.levels) != sorted(set(self.levels), reverse=True):
            found.append("levels must go from strict to loose, such as [0.9, 0.8], without repeats")
        return found

    def survey(self, group: Group) -> Survey:
        """Two scans: mean magnitudes, then how many changes stand out. Densities follow from these."""
        linears = Linears.among(group.shapes)
        if not linears.names:
            return Known({})
        totals = yield Sums(lambda piece: ops.l1_norms(piece.changes)[0])
        sums = torch.stack([totals[name] for name in linears.names])
        of_linear = dict(zip(linears.names, sums / linears.sizes[:, None], strict=True))
        of_block = linears.by_block(sums) / linears.by_block(linears.sizes)[:, None]
        means = {
            name: torch.stack([of_block[block] * OUTLIER_OF_BLOCK, of_linear[name] * OUTLIER_OF_LINEAR])
            for name, block in zip(linears.names, linears.blocks.tolist(), strict=True)
        }
        found = yield Sums(lambda piece: _outliers(piece, means))
        counts = torch.stack([found[name] for name in linears.names])
        kept = self._kept_counts(linears, counts[:, 0], counts[:, 1])
        return Known(dict(zip(linears.names, kept.tolist(), strict=True)))

    def _kept_counts(self, linears: Linears, of_block: torch.Tensor, of_linear: torch.Tensor) -> torch.Tensor:
        """From the outliers [L, experts] to the numbers kept: int64 [L, experts · levels]."""
        block = 100 * linears.by_block(of_block) / linears.by_block(linears.sizes)[:, None]
        linear = 100 * of_linear / linears.sizes[:, None]
        columns = [
            densities(block[:, expert], linear[:, expert], linears, p, self.nu) * linears.sizes
            for expert in range(of_block.shape[1])
            for p in self.levels
        ]
        return torch.stack(columns, 1).round().long()

    def part_of(self, tensor: str, known: Known) -> str:
        return tensor

    def refine(self, part: Group, known: Known) -> Survey:
        """The exact cuts of one linear, a row for each expert and level."""
        (name,) = part.shapes
        if name not in known.kept:
            return Known({})
        rows = [expert for expert in range(part.experts) for _ in self.levels]
        cut = yield from largest_cut(known.kept[name], part.elements, rows=rows)
        return Known(known.kept, cut)

    def factors(self, piece: Piece, known: Known) -> torch.Tensor:
        if known.cut is None:
            return self.kept(piece, None)
        keep = known.cut.keep(piece)
        return amplified(keep.view(piece.experts, len(self.levels), *keep.shape[1:]), self.amplify, self.rule)

    def attained(self, known: Known) -> Attained | None:
        if known.cut is None:
            return None
        loosest = slice(len(self.levels) - 1, None, len(self.levels))
        found = known.cut.attained
        return Attained(found.elements, found.kept[loosest], found.nonzero[loosest], found.tied[loosest])


def amplified(keep: torch.Tensor, amplify: Sequence[float], rule: str) -> torch.Tensor:
    """The factor of each element from the levels that keep it, [experts, levels, *shape] -> [experts, *shape].

    Levels go from strict to loose. Source: DPPA, 2403.02799.
    """
    if ops.looped(keep):
        found = torch.empty((len(keep), *keep.shape[2:]), dtype=torch.float32)
        factors = np.array(amplify, dtype=np.float32)
        ops.loops().graded(ops.array(keep.flatten(0, 1), 2), factors, rule == "authors", ops.array(found, 2))
        return found
    factor = torch.zeros_like(keep[:, 0], dtype=torch.float32)
    for level in reversed(range(len(amplify))):
        alpha = torch.full_like(factor, amplify[level])
        chosen = keep[:, level]
        if rule == "authors":
            chosen = chosen & (alpha.abs() >= factor.abs())
        factor = ops.choose(chosen, alpha, factor)
    return factor


def _outliers(piece: Piece, limits: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """How many |δ| of a linear exceed the limits [2, experts]; 0 where nothing changed or it is no linear."""
    if piece.name not in limits:
        return torch.zeros(2, piece.experts, dtype=torch.float32)
    if ops.looped((changes := piece.changes).values):
        counts = torch.zeros(2, piece.experts, dtype=torch.int64)
        ops.loops().outliers(*ops.as_bits(changes), limits[piece.name].numpy(), counts.numpy())
        return counts
    magnitude = piece.deltas.abs().double()
    limit = limits[piece.name].to(magnitude.device)
    return torch.stack([ops.flat(magnitude > ops.per_expert(row, magnitude)).sum(1) for row in limit])
