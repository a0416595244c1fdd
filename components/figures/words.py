"""What a map is: its words, its scale, and the number it shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from merging.reports.report import Grid

Scale = Literal["robust", "chance", "own chance", "share", "signed"]


@dataclass(frozen=True, kw_only=True)
class MapWords:
    """What a map says of itself, and its scale.

    `hover` is a sentence that continues the number. `scale`: "robust" runs from the 2nd to the 98th percentile, "chance"
    is fixed around 0.5, "own chance" is centred on the chance level of each cell, "share" runs from 0 to 1, "signed" is
    centred on 0. `significant`: numbers span magnitudes, so they are written with significant digits.
    """

    key: str
    label: str
    title: str
    note: str
    hover: str
    explanation: str
    scale: Scale
    significant: bool = False


@dataclass(frozen=True, kw_only=True)
class Metric(MapWords):
    """One number per cell and expert, per cell and pair of experts, per block and pair, or per cell.

    `value(record, index)` measures expert or pair `index` (0 where there is one number for all); `overall(record)` all
    pairs together, None where that means nothing. The record is a cell's `TensorStatistics`, or, with `signs`, its
    `Conflict`, which is known after trimming too. `chance(record)` is the value that random signs would show.
    """

    over: Literal["experts", "pairs", "blocks", "all"]
    value: Callable[[Any, int], float | None]
    overall: Callable[[Any], float | None] | None = None
    signs: bool = False
    chance: Callable[[Any], float | None] | None = None


@dataclass(frozen=True)
class Panel:
    """One small map: a grid under a name.

    `chance` is the chance level of each cell, `told` another line of its hover, `broken` how many NaN and infinite
    values its models hold there; each where there is such a thing.
    """

    name: str
    grid: Grid
    chance: Grid | None = None
    told: list[list[str]] | None = None
    broken: list[list[int]] | None = None
