from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from merging import ops
from merging.cuts import Cut, largest_cut, magnitudes, order_statistics
from merging.methods.base import Group, Method, Number, Scope, Share, Survey, parameter, register
from merging.methods.combine import LAMBDA
from merging.pieces import Piece
from merging.statistics import Maximum, Sums

TINY = 1e-12
CLIPPED = {"root": 1e-4, "vision": 1e-2}
"""Share of |δ| that is clipped at either end."""


@dataclass(frozen=True)
class Clipped:
    """The score of `root` and `vision`, from the bounds of |δ|: float64 [experts] each."""

    lower: torch.Tensor
    upper: torch.Tensor
    variant: str

    def magnitudes(self, piece: Piece) -> torch.Tensor:
        """|δ| clipped: float64 [experts, *shape]."""
        deltas = piece.deltas.double()
        bounds = (ops.per_expert(bound.to(deltas.device), deltas) for bound in (self.lower, self.upper))
        return deltas.abs().clamp(*bounds)

    def clip(self, piece: Piece) -> torch.Tensor:
        """What clipping scales each |δ| by: float64 [experts, *shape]."""
        size = piece.deltas.abs().double()
        return torch.where(size == 0, 0.0, self.magnitudes(piece) / size)

    def score(self, piece: Piece) -> torch.Tensor:
        """β = exp(T·minmax(|δ|)²) · agreement with the other experts."""
        if self.variant == "root" and ops.looped((changes := piece.changes).values):
            found = torch.empty(piece.shape, dtype=torch.float32)
            bounds = self.lower.numpy(), self.upper.numpy()
            ops.loops().competition(*ops.as_bits(changes), *bounds, ops.array(found, 2))
            return found
        deltas = piece.deltas.double()
        size = ops.minmax(self.magnitudes(piece), self.lower, self.upper)
        if self.variant == "root":
            agreement = (deltas * ops.sum_experts(deltas)).tanh()
        else:
            unit = deltas.sign() * size
            agreement = ops.sum_experts(torch.stack([(unit * other).tanh() for other in unit]))
        return (piece.experts * size.square()).exp() * agreement


@dataclass(frozen=True)
class Competition:
    """The score of `paper`, from the ranges of δ_t² and δ_t·δ_j over the scope: [1 + experts, experts] each.

    Row 0 belongs to δ_t², row 1 + j to δ_t·δ_j; `mean` holds the means of the exponentials.
    """

    low: torch.Tensor
    high: torch.Tensor
    mean: torch.Tensor | None = None

    @staticmethod
    def terms(piece: Piece) -> torch.Tensor:
        """δ_t², then δ_t·δ_j for every j: float64 [1 + experts, experts, *shape]."""
        deltas = piece.deltas.double()
        return torch.cat([deltas.square()[None], deltas[:, None] * deltas])

    def exponentials(self, piece: Piece) -> torch.Tensor:
        values = ops.minmax(self.terms(piece).flatten(0, 1), self.low.flatten(), self.high.flatten())
        values = values.view(1 + piece.experts, *piece.shape)
        values[0] *= piece.experts
        return values.exp()

    def score(self, piece: Piece) -> torch.Tensor:
        """β = softmax(T·minmax(δ_t²)) · Σ_j softmax(minmax(δ_t·δ_j)), times the squared number of elements."""
        assert self.mean is not None
        exponentials = self.exponentials(piece)
        mean = self.mean.to(exponentials.device)
        softmax = exponentials / mean.view(*mean.shape, *[1] * (exponentials.ndim - 2))
        return softmax[0] * ops.sum_experts(softmax[1:])


@dataclass(frozen=True)
class Known:
    """The score of a scope, and which scores take part: those above a threshold (root, vision), or a cut (paper)."""

    formula: Clipped | Competition
    threshold: torch.Tensor | None = None
    top: torch.Tensor | None = None
    cut: Cut | None = None


def _extremes(piece: Piece) -> torch.Tensor:
    terms = ops.flat(Competition.terms(piece), 2)
    if not terms.shape[2]:
        return torch.full((2, *terms.shape[:2]), -math.inf)
    return torch.stack([terms.amax(2), -terms.amin(2)])


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a formula in float32, remembered where pieces stay in memory; called, the keys that rank by them."""

    formula: Clipped | Competition

    @property
    def identity(self) -> tuple[Any, ...]:
        """What the scores depend on besides the models."""
        values = vars(self.formula).items()
        return tuple((name, _plain(v)) for name, v in values)

    def of(self, piece: Piece) -> torch.Tensor:
        return piece.remember("score", self.identity, lambda: self.formula.score(piece).to(torch.float32))

    def __call__(self, piece: Piece) -> torch.Tensor:
        return ops.order_bits(self.of(piece))


def _plain(value: Any) -> Any:
    return tuple(value.flatten().tolist()) if isinstance(value, torch.Tensor) else value


def _competing(scores: torch.Tensor, piece: Piece, known: Known, formula: Clipped) -> torch.Tensor:
    """The coefficients by a compiled loop."""
    assert known.threshold is not None
    assert known.top is not None
    found = torch.empty(piece.shape, dtype=torch.float32)
    bounds = torch.stack([formula.lower, formula.upper, known.threshold, known.top])
    ops.loops().competing(
        ops.array(scores, 2),
        *ops.as_bits(piece.changes),
        bounds.numpy(),
        ops.array(piece.weight),
        ops.array(found, 2),
    )
    return found


def _rank(position: float, elements: int) -> int:
    """A rank in ascending order, cut off to a whole number and into the scope."""
    return min(max(int(position), 0), elements - 1)


@register
class Pcb(Method):
    """Parameter competition balancing: weigh every change by its size and by how well the experts agree there.

    intra-balancing · inter-balancing = β; the `ratio` largest β of each expert take part, weighted by β. An element that
    disagrees with the sum of the changes has a negative score in `root`, and so is dropped as long as the threshold is
    not negative: an election without a vote, so it counts as dropped, not as out-voted. Where one expert is left, its
    change applies in full. One expert alone does not come out as it is: its smaller scores are dropped.

    Source: PCB-Merging, 2410.02396; `root` and `vision` are the authors' two programs, `paper` the printed formulas.
    """

    name: ClassVar[str] = "pcb"
    title: ClassVar[str] = "PCB-Merging"
    when_to_use: ClassVar[str] = (
        "Experts that compete for the same weights: keeps what is large and what they agree on."
    )
    paper: ClassVar[str] = "https://arxiv.org/abs/2410.02396"
    group: ClassVar[str] = "importance"
    caveat: ClassVar[str] = (
        "No vote is held, yet there is an election: an element at which an expert disagrees with the sum of all changes "
        "scores below 0 and is left out, unless ratio is so large that such scores are needed to fill it. Where one "
        "expert is left, its change applies in full."
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "the authors' smallest ratio": {"ratio": 0.05},
        "the authors' largest ratio": {"ratio": 0.2},
        "the authors' larger scale": {"lambda": 1.2},
        "the authors' program for vision": {"variant": "vision"},
        "the formulas as printed": {"variant": "paper"},
    }
    scans: ClassVar[int] = 4
    reduces: ClassVar[bool] = False

    weight: Number | tuple[Number, ...] = parameter(
        1.0,
        "λ_t",
        "How much of this expert's change is added where it takes part; who takes part does not depend on it.",
        per_model=True,
    )
    ratio: Share = parameter(
        0.1,
        "r",
        "Share of each expert's elements that take part, the best scores first; the rest is left out.",
    )
    lambda_: Number = parameter(1.0, "λ", LAMBDA, alias="lambda")
    variant: Literal["root", "vision", "paper"] = parameter(
        "root",
        "",
        "Which published formula scores the elements: the authors' program for language models (root), theirs for "
        "vision, or the one printed in the paper.",
        rare=True,
    )
    scope: Scope = parameter(
        "model", "", "What competes for the ratio: each tensor, each block, or the whole model."
    )

    def survey(self, group: Group) -> Survey:
        if group.elements == 0:
            return None
        return (yield from (self._competition(group) if self.variant == "paper" else self._clipped(group)))

    def coefficients(self, piece: Piece, known: Known) -> torch.Tensor:
        scores = Scores(known.formula).of(piece)
        if isinstance(known.formula, Clipped) and ops.looped(scores):
            return _competing(scores, piece, known, known.formula)
        score = scores.double()
        clip: torch.Tensor | float = 1.0
        if isinstance(known.formula, Clipped):
            assert known.threshold is not None
            assert known.top is not None
            score = torch.maximum(score, ops.per_expert(known.threshold.to(score.device), score))
            share = ops.minmax(score, known.threshold, known.top)
            clip = known.formula.clip(piece)
        else:
            assert known.cut is not None
            share = score * ops.factor(known.cut.keep(piece))
        total = ops.sum_experts(share).clamp(min=TINY)
        return (share / total * clip * ops.per_expert(piece.weight, share)).to(torch.float32)

    def remarks(self, known: Known | None, names: Sequence[str]) -> list[str]:
        if known is None or known.threshold is None:
            return []
        negative = [name for name, value in zip(names, known.threshold.tolist(), strict=True) if value < 0]
        return [
            f"pcb: for {name} the score's threshold is below 0, so changes that disagree with the sum of all take part "
            f"too; lower ratio ({self.ratio:g}) to keep them out."
            for name in negative
        ]

    def _clipped(self, group: Group) -> Survey:
        """Bounds of |δ| by sorted index, then the score's threshold and maximum."""
        n, experts = group.elements, range(group.experts)
        share = CLIPPED[self.variant]
        ranks = [(t, _rank(at, n)) for at in (n * share, n * (1 - share) - 1) for t in experts]
        bounds = yield from order_statistics(ranks, n, magnitudes)
        lower, upper = torch.tensor(bounds, dtype=torch.float64).view(2, -1)
        formula = Clipped(lower, upper, self.variant)
        ranks = [(t, rank) for rank in (_rank(n * (1 - self.ratio), n), n - 1) for t in experts]
        found = yield from order_statistics(ranks, n, Scores(formula), signed=True)
        threshold, top = torch.tensor(found, dtype=torch.float64).view(2, -1)
        return Known(formula, threshold, top)

    def _competition(self, group: Group) -> Survey:
        """Ranges of the products, their softmax sums, then the exact cut."""
        high, negative_low = yield Maximum(_extremes)
        formula = Competition(-negative_low, high)
        sums = yield Sums(lambda piece: ops.flat(formula.exponentials(piece), 2).sum(2))
        formula = replace(formula, mean=sum(sums[name] for name in sorted(sums)) / group.elements)
        kept = [ops.kept_count(self.ratio, group.elements, "nearest")] * group.experts
        cut = yield from largest_cut(kept, group.elements, keys=Scores(formula))
        return Known(formula, cut=cut)
