from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch

from merging import ops
from merging.methods.base import Group, Method, Survey, parameter, register
from merging.pieces import Piece
from merging.statistics import order_statistics

QUARTILES = (0.25, 0.5, 0.75)
OUTLIER = 1.5
"""How many interquartile ranges above the median an element counts as important."""
TINY_CHANCE = 1e-8


@register
class ArceeFusion(Method):
    """Take the other model's value where its change is important, the base's elsewhere; all or nothing.

    An element's importance is |δ| times the divergence of its row: Kullback-Leibler of the softmax of the other model's
    row from the base's. Important is what lies 1.5 interquartile ranges above the tensor's median, a twentieth or so of its elements.

    Differs from mergekit: quartiles are exact for tensors of every size, where mergekit draws a million elements at
    random above that number, so that its result changes from run to run. Rows are measured in float64; mergekit's
    float32, in which the divergence of lightly tuned rows is rounding, comes back with `profile: mergekit`.

    Source: Arcee Fusion, as in mergekit.
    """

    name: ClassVar[str] = "arcee_fusion"
    title: ClassVar[str] = "Arcee Fusion"
    when_to_use: ClassVar[str] = (
        "Exactly two models: replace only what stands out, keep the rest of the base untouched."
    )
    paper: ClassVar[str] = (
        "https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration"
    )
    group: ClassVar[str] = "two"
    experts_wanted: ClassVar[int | None] = 1
    scans: ClassVar[int] = 2
    reduces: ClassVar[bool] = False
    whole_vectors: ClassVar[bool] = True
    MERGEKIT: ClassVar[dict[str, Any]] = {"precision": "float32"}

    precision: Literal["float64", "float32"] = parameter(
        "float64",
        "",
        "How exactly a row's divergence is measured; float32 is mergekit's, and rounding for lightly tuned models.",
        rare=True,
    )

    def survey(self, group: Group) -> Survey:
        """The threshold of importance."""
        ranks = [(0, int(quartile * (group.elements - 1))) for quartile in QUARTILES]
        found = yield from order_statistics(ranks, group.elements, self._keys, signed=True)
        first, median, third = torch.tensor(found, dtype=torch.float32)
        return float(median + OUTLIER * (third - first))

    def coefficients(self, piece: Piece, known: float) -> torch.Tensor:
        return (self._importance(piece) >= known).to(torch.float32)[None]

    def _keys(self, piece: Piece) -> torch.Tensor:
        return ops.order_bits(self._importance(piece)[None])

    def _importance(self, piece: Piece) -> torch.Tensor:
        """|δ| times the divergence of each row: float32 [*shape]."""
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        theirs = piece.models[0].to(dtype).softmax(-1) + TINY_CHANCE
        ours = piece.base_or_zero.to(dtype).softmax(-1) + TINY_CHANCE
        divergence = (theirs * (theirs / ours).log()).sum(-1, keepdim=piece.base_or_zero.ndim > 0)
        return (piece.deltas[0].abs() * divergence).to(torch.float32)
