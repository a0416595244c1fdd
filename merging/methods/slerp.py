from __future__ import annotations

import math
from typing import ClassVar

import torch

from merging.methods.base import Group, Method, Share, Survey, parameter, register
from merging.pieces import Piece
from merging.statistics import products

PARALLEL = 0.9995
TINY_NORM = 1e-8


@register
class Slerp(Method):
    """Spherical interpolation from the base (t = 0) to one other model (t = 1), tensor by tensor.

    The arc is measured between the normalised tensors, the interpolation runs over the originals. It is not symmetric
    in its models and no sum of task vectors.

    Source: Shoemake 1985, as used for models by mergekit.
    """

    name: ClassVar[str] = "slerp"
    title: ClassVar[str] = "SLERP"
    when_to_use: ClassVar[str] = (
        "Exactly two models: a smooth path from one to the other that keeps the norm."
    )
    paper: ClassVar[str] = "https://doi.org/10.1145/325165.325242"
    group: ClassVar[str] = "two"
    caveat: ClassVar[str] = "The base is one end of the path; only the other end is chosen."
    elementwise: ClassVar[bool] = False
    scans: ClassVar[int] = 1
    experts_wanted: ClassVar[int | None] = 1

    t: Share = parameter(0.5, "t", "Position on the way: 0 is the base, 1 the other model, 0.5 halfway.")

    def survey(self, group: Group) -> Survey:
        """The factors of base and model, from the angle between them in float64; None where they are parallel."""
        (inner,) = (yield products(_ends)).values()
        norms = [math.sqrt(float(inner[i, i])) for i in (0, 1)]
        dot = float(inner[0, 1])
        for norm in norms:
            dot /= norm if norm > TINY_NORM else 1.0
        dot = min(1.0, max(-1.0, dot))
        if abs(dot) > PARALLEL:
            return None
        angle = math.acos(dot)
        return math.sin((1 - self.t) * angle) / math.sin(angle), math.sin(self.t * angle) / math.sin(angle)

    def merge(self, piece: Piece, known: tuple[float, float] | None) -> torch.Tensor:
        assert piece.base is not None
        if self.t in (0, 1):
            return piece.models[0] if self.t else piece.base
        if known is None:
            return piece.apply(self.t * piece.deltas[0])
        return known[0] * piece.base + known[1] * piece.models[0]


def _ends(piece: Piece) -> torch.Tensor:
    """Both ends of the path: [2, *shape]."""
    return torch.stack([piece.base_or_zero, piece.models[0]])
