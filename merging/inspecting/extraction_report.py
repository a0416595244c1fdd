"""What an extracted adapter leaves out: of every tensor, and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from merging.cards.front_matter import as_front_matter
from merging.version import __version__

TABLE = "errors.csv"
"""The file of every tensor's error, beside the adapter."""
WORST = 20
"""Tensors in the model card, those with the largest errors."""
Way = Literal["low rank", "whole", "left out"]


@dataclass(frozen=True)
class TensorError:
    """A changed tensor: how the adapter holds its change δ, ‖δ‖, and ‖δ − what the adapter holds‖."""

    name: str
    way: Way
    rank: int | None
    change: float
    error: float
    why: str = ""

    @property
    def kept(self) -> str:
        """How it is kept, in words."""
        return f"rank {self.rank}" if self.rank else f"{self.way}{f' ({self.why})' if self.why else ''}"

    @property
    def relative(self) -> float:
        """The error as a share of the change."""
        return self.error / self.change if self.change else 0.0


@dataclass(frozen=True)
class Extracted:
    """The last event: the adapter's folder and every changed tensor, in the model's order."""

    path: Path
    rank: int
    tensors: tuple[TensorError, ...]
    unchanged: int
    bytes_written: int
    seconds: float

    @property
    def relative(self) -> float:
        """‖all errors‖ as a share of ‖all changes‖."""
        change = math.sqrt(sum(one.change**2 for one in self.tensors))
        return math.sqrt(sum(one.error**2 for one in self.tensors)) / change if change else 0.0


def table(errors: Sequence[TensorError]) -> str:
    """The errors as CSV, a line for every changed tensor."""
    lines = ["tensor,kept,rank,change,error,error_of_change,why"]
    for one in errors:
        values = (one.name, one.way, one.rank or "", f"{one.change:.6g}", f"{one.error:.6g}")
        lines.append(",".join(map(str, (*values, f"{one.relative:.6f}", one.why))))
    return "\n".join(lines) + "\n"


def card(done: Extracted, base: str, model: str, licence: Mapping[str, str]) -> str:
    """The README of an adapter.

    Args:
        licence: that of the model, as front matter says it; empty where it states none.
    """
    facts = {"library_name": "peft", **licence, "base_model": base, "tags": ["lora", "mergescope"]}
    count = len(done.tensors)
    worst = sorted(done.tensors, key=lambda one: -one.error)[:WORST]
    return "\n".join(
        [
            f"{as_front_matter(facts)}# The change of {model} as a LoRA adapter of rank {done.rank}",
            "",
            f"Extracted with Mergescope {__version__} from {count} changed tensors. What it leaves out of the whole change is "
            f"{done.relative:.2%} of its norm. Every tensor is in {TABLE}; those with the largest errors:",
            "",
            "| tensor | kept | error, of its change |",
            "|---|---|---|",
            *(f"| `{one.name}` | {one.kept} | {one.relative:.2%} |" for one in worst),
            "",
        ]
    )
