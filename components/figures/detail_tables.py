"""The numbers behind the charts of one tensor as rows of tables: heads, rows, tokens, spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import torch

from components.figures.metrics import MOST_PAIRS
from merging.inspecting.detail import TensorDetail
from merging.inspecting.part_sums import PartSums
from merging.inspecting.spectra import Spectrum
from merging.inspecting.tokens import TokenRows

Cell = str | int | float | None
NOT_FINITE = "not finite"


def head_rows(detail: TensorDetail, names: Sequence[str]) -> tuple[list[str], list[list[Cell]]]:
    """Headers, and one row a head; no rows where the tensor has no heads."""
    headers, columns = _columns(detail.rows if detail.heads is None else detail.heads, names)
    if detail.heads is None:
        return ["head", *headers], []
    return ["head", *headers], _beside([[name] for name in detail.head_names], columns)


def row_rows(detail: TensorDetail, names: Sequence[str]) -> tuple[list[str], list[list[Cell]]]:
    """Headers, and one row a row of the tensor (a column, where its outputs are columns)."""
    headers, columns = _columns(detail.rows, names)
    kind = "column" if detail.row_axis else "row"
    return [kind, *headers], _beside([[number] for number in range(len(detail.rows))], columns)


def token_rows(found: TokenRows, names: Sequence[str]) -> tuple[list[str], list[list[Cell]]]:
    """Headers, and one row a token: its text, id and mark before the numbers. Texts are to be escaped."""
    headers, columns = _columns(found.sums, names)
    first: list[list[Cell]] = [[token.text, token.id, token.mark or None] for token in found.tokens]
    return ["token", "id", "kind", *headers], _beside(first, columns)


def spectrum_rows(
    spectra: Mapping[int, Spectrum], names: Sequence[str]
) -> tuple[list[str], list[list[Cell]]]:
    """Headers, and one row an expert whose spectrum is known: its ranks and largest value."""
    headers = [
        "expert",
        "‖δ‖",
        "largest singular value",
        "stable rank",
        "effective rank",
        "rank of 0.9",
        "of",
    ]
    rows: list[list[Cell]] = []
    for expert, found in sorted(spectra.items()):
        largest = float(found.values[0]) if len(found.values) else 0.0
        ranks = [found.stable_rank, found.effective_rank, found.rank_of(0.9)]
        rows.append([names[expert], found.energy**0.5, largest, *ranks, min(found.shape)])
    return headers, rows


def written(rows: Sequence[Sequence[Cell]]) -> list[list[str]]:
    """The same cells as texts for a table on the page."""
    return [[_written(cell) for cell in row] for row in rows]


def _written(cell: Cell) -> str:
    if cell is None:
        return "–"
    return f"{cell:#.3g}".rstrip(".") if isinstance(cell, float) else str(cell)


def _columns(sums: PartSums, names: Sequence[str]) -> tuple[list[str], list[list[Cell]]]:
    """Headers and columns: each expert's change, then the conflict, by pair where there are a few."""
    columns: dict[str, list[Cell]] = {}
    norms, relative = sums.norm(), sums.relative_change()
    for expert, name in enumerate(names):
        broken = sums.broken[expert] > 0
        columns[f"{name} ‖δ‖"] = _cells(norms[expert], broken)
        columns[f"{name} relative"] = _cells(relative[expert], broken)
    if len(names) > 1:
        columns["opposite signs"] = _cells(sums.opposite_share(), sums.damaged)
        columns["cancelled change"] = _cells(sums.mass_conflict(), sums.damaged)
        columns["changed by two"] = _cells(sums.coverage(), sums.damaged)
    if 1 < len(sums.pairs) <= MOST_PAIRS:
        for pair, (a, b) in enumerate(sums.pairs):
            broken = sums.broken[[a, b]].sum(0) > 0
            columns[f"{names[a]} · {names[b]} opposite signs"] = _cells(sums.opposite_share(pair), broken)
    return list(columns), list(columns.values())


def _cells(values: torch.Tensor, broken: torch.Tensor) -> list[Cell]:
    """Numbers; nothing where they mean nothing, and words where values are damaged."""
    return [
        NOT_FINITE if bad else float(f"{value:.6g}") if isfinite(value) else None
        for value, bad in zip(values.tolist(), broken.tolist(), strict=True)
    ]


def _beside(first: Sequence[Sequence[Cell]], columns: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    return [[*start, *(column[number] for column in columns)] for number, start in enumerate(first)]
