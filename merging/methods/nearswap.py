from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from merging.methods.base import Method, parameter, register
from merging.pieces import Piece

TINY = 1e-6
"""Distances below this count as this, so that a smaller t does not reach the other model."""


@register
class NearSwap(Method):
    """Take the other model's value where it is within t of the base's; elsewhere go t towards it.

    The change of every element is δ·min(1, t/|δ|), so no element moves further than t.

    Source: alchemonaut's NearSwap, as in mergekit.
    """

    name: ClassVar[str] = "nearswap"
    title: ClassVar[str] = "NearSwap"
    when_to_use: ClassVar[str] = (
        "A base to keep and one other model to lean on, only where both are close already."
    )
    paper: ClassVar[str] = "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001"
    group: ClassVar[str] = "two"
    caveat: ClassVar[str] = (
        "t is in units of the weights themselves: look at the size of the changes before choosing it."
    )
    experts_wanted: ClassVar[int | None] = 1

    t: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = parameter(
        0.0001,
        "t",
        "How far an element may move: differences up to t are taken whole, larger ones only by t.",
    )

    def coefficients(self, piece: Piece, known: Any) -> torch.Tensor:
        return (self.t / piece.deltas.abs().clamp(min=TINY)).clamp(max=1)
