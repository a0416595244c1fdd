from __future__ import annotations

from typing import Any, ClassVar

import torch

from merging.methods.base import Method, Number, parameter, register
from merging.pieces import Piece


@register
class Passthrough(Method):
    """One model as it is, its tensors times `scale`; for frankenmerges, which stack layers of several models.

    Source: mergekit.
    """

    name: ClassVar[str] = "passthrough"
    title: ClassVar[str] = "Passthrough"
    when_to_use: ClassVar[str] = "To copy, cut or stack layers of models, or to scale single tensors of one."
    paper: ClassVar[str] = (
        "https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md#passthrough-passthrough"
    )
    group: ClassVar[str] = "average"
    elementwise: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    takes_base: ClassVar[bool] = False
    experts_wanted: ClassVar[int | None] = 1

    scale: Number | tuple[Number, ...] = parameter(
        1.0, "", "Factor of the model's tensors; with a filter, of some of them.", per_model=True
    )

    def merge(self, piece: Piece, known: Any) -> torch.Tensor:
        (scale,) = self.for_experts("scale", 1)
        return piece.models[0] if scale == 1 else piece.models[0] * scale
