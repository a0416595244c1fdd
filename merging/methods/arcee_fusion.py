from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

import torch

from merging import ops
from merging.cuts import order_statistics
from merging.methods.base import Group, Method, Survey, parameter, register
from merging.pieces import Piece, PieceKey

QUARTILES = (0.25, 0.5, 0.75)
OUTLIER = 1.5
"""How many interquartile ranges above the median an element counts as important."""
TINY_CHANCE = 1e-8
Rows = dict[PieceKey, torch.Tensor]


@register
class ArceeFusion(Method):
    """Take the other model's value where its change is important, the base's elsewhere; all or nothing.

    An element's importance is |δ| times the divergence of its row: Kullback-Leibler of the softmax of the other model's
    row from the base's. Important is what lies 1.5 interquartile ranges above the tensor's median: a twentieth or so of
    its elements.

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
        "https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md#arcee-fusion-arcee_fusion"
    )
    group: ClassVar[str] = "two"
    caveat: ClassVar[str] = (
        "A row that was shifted as a whole counts as unchanged, for a softmax does not see it."
    )
    experts_wanted: ClassVar[int | None] = 1
    scans: ClassVar[int] = 3
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
        """The divergence of every row and the threshold of importance."""
        rows = yield Divergences(torch.float64 if self.precision == "float64" else torch.float32)
        ranks = [(0, int(quartile * (group.elements - 1))) for quartile in QUARTILES]
        found = yield from order_statistics(
            ranks, group.elements, partial(_keys, rows), signed=True, sampled=False
        )
        first, median, third = torch.tensor(found, dtype=torch.float32)
        return rows, float(median + OUTLIER * (third - first))

    def coefficients(self, piece: Piece, known: tuple[Rows, float]) -> torch.Tensor:
        rows, threshold = known
        return (_importance(rows, piece) >= threshold).to(torch.float32)[None]


class Divergences:
    """The Kullback-Leibler divergence of the softmax of the model's rows from that of the base's, by piece."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.found: Rows = {}

    def update(self, piece: Piece) -> None:
        assert piece.base is not None
        theirs = piece.models[0].to(self.dtype).softmax(-1) + TINY_CHANCE
        ours = piece.base.to(self.dtype).softmax(-1) + TINY_CHANCE
        self.found[piece.key] = (theirs * (theirs / ours).log()).sum(-1, keepdim=piece.base.ndim > 0).cpu()

    def combine(self, other: Divergences) -> None:
        self.found.update(other.found)

    def result(self) -> Rows:
        return self.found


def _importance(rows: Rows, piece: Piece) -> torch.Tensor:
    """|δ| times the divergence of its row: float32 [*shape]."""
    return (piece.deltas[0].abs() * rows[piece.key].to(piece.device)).to(torch.float32)


def _keys(rows: Rows, piece: Piece) -> torch.Tensor:
    return ops.order_bits(_importance(rows, piece)[None])
