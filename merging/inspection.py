"""Looking without merging: how much each expert changed where, and where the experts fight."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from merging import engine, ops
from merging.anatomy import Place, kinds, locate
from merging.errors import MergingError, OutputError
from merging.events import Progress
from merging.pieces import Piece
from merging.plan import Plan

HISTOGRAM_SHIFT = 22
"""|δ| is counted in half-octave bins: the exponent and the first mantissa bit of its float32."""
FIRST_BIN = 2 * 70
LAST_BIN = 2 * 140
"""Bins kept: magnitudes from 2**-57 to 2**13; what lies outside is counted in the first or last one."""


def bin_edges() -> list[float]:
    """Lower edges of the histogram bins, one more at the end."""
    bits = torch.arange(FIRST_BIN, LAST_BIN + 1, dtype=torch.int32) << HISTOGRAM_SHIFT
    return bits.view(torch.float32).double().tolist()


@dataclass
class TensorStatistics:
    """Sums over one tensor, or over several once added up; every shown number follows from these.

    Per expert: `change` = Σδ², `mass` = Σ|δ|, `nonzero`, `largest` = max|δ|, `histogram` of |δ| ≠ 0 in `bin_edges`.
    Per pair of experts (in the order of `itertools.combinations`): `shared` = elements changed by both, `opposite` =
    those of them with opposite signs, `dot` = Σδ_a·δ_b. `base` = Σθ0².
    """

    elements: int
    base: float
    change: list[float]
    mass: list[float]
    nonzero: list[int]
    largest: list[float]
    histogram: list[list[int]]
    shared: list[int]
    opposite: list[int]
    dot: list[float]

    def __add__(self, other: TensorStatistics) -> TensorStatistics:
        def add(one: list, two: list) -> list:
            return [add(a, b) if isinstance(a, list) else a + b for a, b in zip(one, two, strict=True)]

        sums = {
            field.name: add(getattr(self, field.name), getattr(other, field.name))
            for field in fields(self)
            if field.name not in {"elements", "base", "largest"}
        }
        return TensorStatistics(
            elements=self.elements + other.elements,
            base=self.base + other.base,
            largest=[max(a, b) for a, b in zip(self.largest, other.largest, strict=True)],
            **sums,
        )

    def relative_change(self, expert: int) -> float | None:
        """‖δ‖ / ‖θ0‖ (Frobenius); None where the base is all zero."""
        return (self.change[expert] / self.base) ** 0.5 if self.base > 0 else None

    def changed_share(self, expert: int) -> float | None:
        """Share of elements that the expert changed at all."""
        return self.nonzero[expert] / self.elements if self.elements else None

    def conflict(self, pair: int | None = None) -> float | None:
        """Share of opposite signs among elements that both experts of a pair changed; over all pairs if none is named.

        Unrelated experts show 0.5. None where no element was changed by two experts.
        """
        shared = sum(self.shared) if pair is None else self.shared[pair]
        opposite = sum(self.opposite) if pair is None else self.opposite[pair]
        return opposite / shared if shared else None

    def cosine(self, pair: int) -> float | None:
        """Cosine between two task vectors; None where one of them is zero."""
        first, second = list(combinations(range(len(self.change)), 2))[pair]
        norms = (self.change[first] * self.change[second]) ** 0.5
        return self.dot[pair] / norms if norms > 0 else None


class ChangeWatch:
    """Accumulates `TensorStatistics` for every tensor it sees."""

    def __init__(self) -> None:
        self.pieces: dict[tuple[str, int], TensorStatistics] = {}

    def update(self, piece: Piece) -> None:
        self.pieces[piece.key] = _measure(piece)

    def combine(self, other: ChangeWatch) -> None:
        self.pieces.update(other.pieces)

    def result(self) -> dict[str, TensorStatistics]:
        totals: dict[str, TensorStatistics] = {}
        for name, start in sorted(self.pieces):
            found = self.pieces[name, start]
            totals[name] = totals[name] + found if name in totals else found
        return totals


def _measure(piece: Piece) -> TensorStatistics:
    deltas = piece.deltas.reshape(piece.experts, -1)
    bits = deltas.contiguous().view(torch.int32)
    changed = deltas != 0
    nonzero = changed.count_nonzero(1).tolist()
    magnitudes = deltas.abs()
    pairs = list(combinations(range(piece.experts), 2))
    shared = [changed[a] & changed[b] for a, b in pairs]
    # the sign is the top bit, so two numbers of opposite sign differ in it: their exclusive or is negative
    opposite = [both & ((bits[a] ^ bits[b]) < 0) for both, (a, b) in zip(shared, pairs, strict=True)]
    return TensorStatistics(
        elements=deltas.shape[1],
        base=float(torch.linalg.vector_norm(piece.base_or_zero)) ** 2,
        change=[float(delta @ delta) for delta in deltas],
        mass=magnitudes.sum(1).tolist(),
        nonzero=nonzero,
        largest=magnitudes.amax(1).tolist() if deltas.shape[1] else [0.0] * piece.experts,
        histogram=[_histogram(delta, count) for delta, count in zip(deltas, nonzero, strict=True)],
        shared=[int(both.count_nonzero()) for both in shared],
        opposite=[int(both.count_nonzero()) for both in opposite],
        dot=[float(deltas[a] @ deltas[b]) for a, b in pairs],
    )


def _histogram(delta: torch.Tensor, nonzero: int) -> list[int]:
    bins = ops.magnitude_bits(delta) >> HISTOGRAM_SHIFT
    counts = torch.bincount(bins, minlength=LAST_BIN).cpu()
    counts[0] -= delta.numel() - nonzero
    inner = counts[FIRST_BIN:LAST_BIN]
    inner[0] += counts[:FIRST_BIN].sum()
    inner[-1] += counts[LAST_BIN:].sum()
    return inner.tolist()


@dataclass(frozen=True)
class Grid:
    """A map: `values[row][column]`, None where the model has no such module. `rows` are block numbers, or None for
    what lies outside the blocks."""

    rows: list[int | None]
    columns: list[str]
    values: list[list[float | None]]


@dataclass(frozen=True)
class Report:
    """What was measured on base and experts: everything the maps show."""

    base: str
    experts: tuple[str, ...]
    tensors: dict[str, TensorStatistics]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return list(combinations(range(len(self.experts)), 2))

    @property
    def total(self) -> TensorStatistics:
        return _sum(self.tensors.values())

    def places(self, *, everything: bool = False) -> dict[str, Place]:
        """Tensors and their places; weight matrices of attention and MLP only, unless `everything` is asked for."""
        found = {name: locate(name) for name in self.tensors}
        if everything or not any(_is_main(place) for place in found.values()):
            return found
        return {name: place for name, place in found.items() if _is_main(place)}

    def cells(self, *, everything: bool = False) -> dict[tuple[int | None, str], TensorStatistics]:
        """Block and kind -> the statistics of all tensors there."""
        cells: dict[tuple[int | None, str], TensorStatistics] = {}
        for name, place in self.places(everything=everything).items():
            key = (place.block, place.kind)
            cells[key] = cells[key] + self.tensors[name] if key in cells else self.tensors[name]
        return cells

    def grid(self, value: Callable[[TensorStatistics], float | None], *, everything: bool = False) -> Grid:
        """A map of any number that follows from a cell's statistics."""
        cells = self.cells(everything=everything)
        numbers: list[int | None] = [*sorted({block for block, _ in cells if block is not None})]
        if any(block is None for block, _ in cells):
            numbers.append(None)
        columns = kinds(self.places(everything=everything))
        values = [[value(cells[r, c]) if (r, c) in cells else None for c in columns] for r in numbers]
        return Grid(numbers, columns, values)

    def names_at(self, block: int | None, kind: str) -> list[str]:
        """The tensors behind one cell of a map."""
        return [name for name in self.tensors if (locate(name).block, locate(name).kind) == (block, kind)]

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        content = {
            "base": self.base,
            "experts": self.experts,
            "bin_edges": bin_edges(),
            "tensors": {name: asdict(statistics) for name, statistics in self.tensors.items()},
        }
        try:
            Path(path).write_text(json.dumps(_without_nan(content), allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path}: the report cannot be written ({error.strerror}).") from None

    @classmethod
    def load(cls, path: str | Path) -> Report:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        tensors = {name: TensorStatistics(**statistics) for name, statistics in content["tensors"].items()}
        return cls(content["base"], tuple(content["experts"]), tensors)


def _without_nan(content: Any) -> Any:
    """JSON knows no NaN: a number that is none becomes null."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _is_main(place: Place) -> bool:
    return place.block is not None and place.role in {"attention", "mlp"} and not place.kind.endswith(" bias")


def _sum(statistics: Iterable[TensorStatistics]) -> TensorStatistics:
    total, *others = statistics
    for other in others:
        total = total + other
    return total


def inspect_plan(plan: Plan, *, device: str = "auto") -> Iterator[Progress | Report]:
    """Progress after every piece, the report at the end.

    Raises:
        MergingError: slices that are made of different models.
    """
    if any(tensor.models != plan.names for tensor in plan.tensors):
        raise MergingError(
            "inspect: these slices are made of different models, which do not fit one map; inspect a recipe with whole "
            "models."
        )
    accumulator = ChangeWatch()
    yield from engine.watch(plan, accumulator, device=device)
    yield Report(plan.reference.label, plan.names, accumulator.result())
