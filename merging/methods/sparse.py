"""How changes become sparse: trimmed by magnitude (TIES), dropped at random (DARE), or both (DELLA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field

from merging import noise, ops
from merging.cuts import Cut, largest_cut
from merging.methods.base import Group, Method, Number, Profile, Scope, Share, Survey, parameter
from merging.pieces import Piece
from merging.statistics import Sums

STRONGLY_TUNED = 0.1
"""A relative change ‖δ‖/‖θ0‖ above that of light fine-tuning."""
RISKY_DROP = 0.5
TINY_NORM = 1e-7
"""A sum of magnitudes below which an l1 rescale is left out."""
WINDOW_TOLERANCE = 1e-9


def _rescale_word(value: Any) -> Any:
    return {True: "l1", False: "none"}[value] if isinstance(value, bool) else value


Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
RESCALE = "{} l1 restores each tensor's Σ|δ| (in YAML also true), none leaves it as it is (also false)."
SCOPE = (
    "Where the largest are looked for: in each tensor, each block, or the whole model, where strongly changed layers "
    "keep more."
)
COUNT = (
    "How {} times elements becomes a whole number: rounded, or cut off as mergekit does; one element at most."
)
SEED = "Another number drops other elements; the same number always gives the same model."


@dataclass(frozen=True)
class Sparsity:
    """What is known of a scope's sparse changes: the exact cut, and each tensor's factors [experts] of the rescale."""

    cut: Cut | None = None
    gain: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Sparse(Method):
    """Base of the methods that combine sparse changes δ̂_t = factor_t·δ_t. By default nothing is dropped."""

    weight: Number | tuple[Number, ...] = parameter(
        1.0,
        "w",
        "How strongly this expert counts beside the others; 0 adds nothing of it, below 0 takes away what it learned.",
        per_model=True,
    )

    def sparsify(self, group: Group) -> Survey:
        """Find the cut, then the factors of an l1 rescale."""
        cut = yield from self.select(group)
        if getattr(self, "rescale", "none") != "l1":
            return Sparsity(cut)
        sums = yield Sums(lambda piece: ops.l1_norms(piece.changes, self.kept(piece, cut)))
        return Sparsity(cut, {tensor: _gain(before, after) for tensor, (before, after) in sums.items()})

    def select(self, group: Group) -> Survey:
        """The scans that find which elements stay."""
        return
        yield

    def kept(self, piece: Piece, cut: Cut | None) -> torch.Tensor:
        """The factor of each element before an l1 rescale, 0 where it is dropped: float32 or bool [experts, *shape], or what
        broadcasts to it."""
        return torch.ones([1] * len(piece.shape), dtype=torch.float32, device=piece.device)

    def factors(self, piece: Piece, known: Any) -> torch.Tensor:
        """The factor of each element: float32 or bool [experts, *shape], or what broadcasts to it."""
        kept = self.kept(piece, known.cut)
        if piece.name in known.gain:
            kept = kept * ops.per_expert(known.gain[piece.name].to(kept.device), kept)
        return kept


class Trim(Sparse):
    """Keeps exactly the `density` largest |δ| of a scope; among equals the lower position wins.

    Source: TIES-Merging, 2306.01708, step 1.
    """

    density: Share | tuple[Share, ...] = parameter(
        0.2,
        "k",
        "Share of this expert's change that is kept, the largest first; the rest goes back to the base. 1 keeps all.",
        per_model=True,
    )
    scope: Scope = parameter("model", "", SCOPE)
    count: ops.Counting = parameter("nearest", "", COUNT.format("density"), rare=True)
    rescale: Annotated[Literal["none", "l1"], BeforeValidator(_rescale_word)] = parameter(
        "none", "", RESCALE.format("Whether what is kept is scaled up for what was cut:"), rare=True
    )

    def select(self, group: Group) -> Survey:
        densities = self.for_experts("density", group.experts)
        kept = [ops.kept_count(density, group.elements, self.count) for density in densities]
        return (yield from largest_cut(kept, group.elements))

    def kept(self, piece: Piece, cut: Cut | None) -> torch.Tensor:
        assert cut is not None
        return cut.keep(piece)


class Random(Sparse):
    """Base of the methods that drop by chance; masks depend on seed, expert, tensor and position alone."""

    density: Share | tuple[Share, ...] = parameter(
        0.8,
        "1 − p",
        "Share of this expert's change that survives, drawn by chance: 0.8 drops a fifth of it, 1 nothing.",
        per_model=True,
    )
    rescale: Annotated[Literal["expected", "l1", "none"], BeforeValidator(_rescale_word)] = parameter(
        "expected",
        "",
        RESCALE.format(
            "How the survivors make up for the dropped: expected divides each by its chance to survive,"
        ),
        rare=True,
    )
    seed: Seed = parameter(0, "", SEED)

    def cautions(self, changes: Sequence[float], names: Sequence[str]) -> list[str]:
        densities = self.for_experts("density", len(names))
        return [
            f"{name}: its change is {change:.0%} of the base's norm, and random dropping of more than half of a strong "
            "change is known to fail (DARE is made for light tuning). Raise density, or use TIES or DPPA."
            for name, change, density in zip(names, changes, densities, strict=True)
            if density < 1 - RISKY_DROP and change > STRONGLY_TUNED
        ]


class Drop(Random):
    """Drops each element with probability 1 − density.

    Source: DARE, 2311.03099, eq. 1 and 2.
    """

    def kept(self, piece: Piece, cut: Cut | None) -> torch.Tensor:
        densities = self.for_experts("density", piece.experts)

        def make() -> torch.Tensor:
            keep = torch.tensor(densities, dtype=torch.float64)
            return survivors(piece, keep.view(piece.one_each), self.seed, self.rescale)

        return piece.remember("drop", (densities, self.seed, self.rescale), make)


class MagPrune(Random):
    """Drops by chance, the smaller of a row the likelier: keep_r = (density + ε) − 2ε·r/(m − 1), r = 0 the largest.

    A row is dim 1 of a matrix (later dims count into it); a 1-D tensor is one row of m elements.

    Source: DELLA-Merging, 2406.11617, MAGPRUNE; its authors' code (the paper's ε/n form has a mean off by ε/2n).
    """

    whole_vectors: ClassVar[bool] = True
    density: Share | tuple[Share, ...] = parameter(
        0.7,
        "1 − p",
        "Share of this expert's change that survives on average; in every row large changes survive more often.",
        per_model=True,
    )
    epsilon: Share | tuple[Share, ...] = parameter(
        0.07,
        "ε",
        "How much size decides: a row's largest change survives with chance density + ε, its smallest with density − ε. "
        "0 is DARE.",
        per_model=True,
    )

    def problems(self, experts: int, profile: Profile) -> list[str]:
        found = super().problems(experts, profile)
        densities, epsilons = (self.for_experts(name, experts) for name in ("density", "epsilon"))
        for density, epsilon in zip(densities, epsilons, strict=True):
            if density == 0 and profile == "paper":
                found.append("density 0 leaves nothing of an expert; remove the model, or give it weight 0")
            elif 0 < density < 1 and not (
                density - epsilon > 0 and density + epsilon <= 1 + WINDOW_TOLERANCE
            ):
                room = min(density, 1 - density)
                found.append(
                    f"epsilon {epsilon:g} does not fit density {density:g}: density ± epsilon must lie between 0 and 1, "
                    f"so epsilon can be at most {room:g}"
                    + (" (and must be below it)" if room == density else "")
                )
        return list(dict.fromkeys(found))

    def kept(self, piece: Piece, cut: Cut | None) -> torch.Tensor:
        densities, epsilons = (self.for_experts(name, piece.experts) for name in ("density", "epsilon"))

        def make() -> torch.Tensor:
            order = piece.remember("order", None, lambda: ops.order_in_rows(piece.changes))
            tables = [
                ops.rank_probabilities(order.shape[-1], density, epsilon)
                for density, epsilon in zip(densities, epsilons, strict=True)
            ]
            uniform = noise.piece_uniform(piece, self.seed).view(order.shape)
            chances = _limits_and_gains(torch.stack(tables), self.rescale)
            return ops.ranked_survivors(order, uniform, *chances).view(piece.shape)

        return piece.remember("drop", (densities, epsilons, self.seed, self.rescale), make)


def survivors(piece: Piece, keep: torch.Tensor, seed: int, rescale: str) -> torch.Tensor:
    """Factors of a Bernoulli draw with float64 probabilities `keep`, [experts, *shape] or broadcastable to it."""
    return ops.survivors(noise.piece_uniform(piece, seed), *_limits_and_gains(keep, rescale))


def _limits_and_gains(keep: torch.Tensor, rescale: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a random number must be below for a chance to survive (int32), and the factor of what survives (float32)."""
    limits = (keep * noise.ONE).round().to(torch.int32)
    if rescale != "expected":
        return limits, torch.ones_like(keep, dtype=torch.float32)
    return limits, torch.where(limits > 0, 1 / keep, 0.0).to(torch.float32)


def _gain(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    tiny = (before < TINY_NORM) | (after < TINY_NORM)
    return torch.where(tiny, 1.0, before / after).to(torch.float32)
