"""RAM: keep what one expert alone changed, average what several changed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from merging import ops
from merging.methods.base import Group, Method, Number, Survey, parameter, register
from merging.pieces import Piece
from merging.statistics import Sums

Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


@register
class Ram(Method):
    """Where only one expert changed an element its change applies whole; where several did, their mean.

    An expert changed an element if |δ| is above epsilon. One expert alone comes out but for changes up to epsilon.

    Source: Reinforced Agent Merging, 2601.13572.
    """

    name: ClassVar[str] = "ram"
    title: ClassVar[str] = "RAM"
    when_to_use: ClassVar[str] = (
        "Experts tuned by reinforcement learning, whose changes are sparse and mostly in different places."
    )
    paper: ClassVar[str] = "https://arxiv.org/abs/2601.13572"
    group: ClassVar[str] = "importance"
    caveat: ClassVar[str] = (
        "Experts that changed nearly every weight, as ordinary fine-tuning does, are just averaged."
    )
    reduces: ClassVar[bool] = False

    epsilon: Epsilon = parameter(
        1e-5, "ε", "A change up to this size counts as none, and goes back to the base."
    )

    def coefficients(self, piece: Piece, known: Any) -> torch.Tensor:
        active = ops.factor(self._active(piece))
        return active / active.sum(0).clamp(min=1)

    def _active(self, piece: Piece) -> torch.Tensor:
        return piece.deltas.abs() > self.epsilon


@register
class RamPlus(Ram):
    """As RAM, and what an expert alone changed is raised the more of its changes it shares with others.

    Its own changes count 1 + r·min(ρ, α) times, ρ the number of its shared elements over that of its own in the tensor.

    Source: Reinforced Agent Merging, 2601.13572, RAM+, tensor by tensor as in mergekit.
    """

    name: ClassVar[str] = "ramplus_tl"
    title: ClassVar[str] = "RAM+"
    when_to_use: ClassVar[str] = "As RAM, where averaging the shared changes leaves an expert too weak."
    scans: ClassVar[int] = 1

    r: Number = parameter(
        0.1,
        "r",
        "How much what an expert alone changed is raised, for each unit of its shared changes; 0 is RAM.",
    )
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = parameter(
        0.2, "α", "Where raising ends: the largest ratio of shared to own elements that counts."
    )

    def survey(self, group: Group) -> Survey:
        """What every expert's own changes are multiplied by: float64 [experts]."""
        counts = yield Sums(self._counts)
        shared, own = next(iter(counts.values()))
        ratio = shared / own.clamp(min=max(self.epsilon, torch.finfo(torch.float64).tiny))
        return 1 + self.r * ratio.clamp(max=self.alpha)

    def coefficients(self, piece: Piece, known: torch.Tensor) -> torch.Tensor:
        active = ops.factor(self._active(piece))
        count = active.sum(0)
        raised = ops.per_expert(known.to(piece.deltas), active)
        return active * torch.where(count == 1, raised, 1 / count.clamp(min=1))

    def _counts(self, piece: Piece) -> torch.Tensor:
        """How many elements each expert shares, and how many it alone changed: [2, experts]."""
        active = self._active(piece)
        count = active.sum(0)
        parts = torch.stack([active & (count > 1), active & (count == 1)])
        return parts.reshape(2, piece.experts, -1).sum(-1)
