"""What a run tells while it goes on, and at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from merging.statistics import Attained


@dataclass(frozen=True)
class Progress:
    """How far a pass is: `stage` in words, tensors and bytes of it done, and the share of the whole job."""

    stage: str
    tensors_done: int
    tensors: int
    bytes_done: int
    share: float
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        return self.bytes_done / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        return self.seconds * (1 / self.share - 1) if self.share > 0 else None


@dataclass(frozen=True)
class TensorResult:
    """One merged tensor: norms of base and of the change in float32, and what the final cast did to the change.

    `changed` elements have a merged change that is not 0; `lost` of them equal the cast base after the cast, be it that
    float32 itself has no room for the change. `cast_error` is ‖cast(θ) − θ‖ over the tensor. Without a base the others
    are None or 0.
    """

    name: str
    elements: int
    base_norm: float | None
    change_norm: float | None
    changed: int
    lost: int
    cast_error: float


@dataclass(frozen=True)
class Finished:
    """The last event: where the result lies and what was attained."""

    path: Path | None
    tensors: tuple[TensorResult, ...]
    attained: Attained | None
    bytes_read: int
    bytes_written: int
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def lost_share(self) -> float:
        """Share of the changed elements that the output dtype rounds back to the base."""
        changed = sum(tensor.changed for tensor in self.tensors)
        return sum(tensor.lost for tensor in self.tensors) / changed if changed else 0.0

    @property
    def relative_change(self) -> float | None:
        """‖merged change‖ / ‖θ0‖ over the model."""
        base = sum((tensor.base_norm or 0) ** 2 for tensor in self.tensors)
        change = sum((tensor.change_norm or 0) ** 2 for tensor in self.tensors)
        return (change / base) ** 0.5 if base else None


Event = Progress | Finished
