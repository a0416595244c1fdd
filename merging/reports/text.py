"""A report for a terminal: a table of blocks and a few lines; and the same for machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from merging.anatomy import Block, block_order
from merging.effective import short_names
from merging.inspecting.advice import Advice, Kinship
from merging.inspecting.changes import TensorStatistics
from merging.inspecting.fate import FATES
from merging.inspecting.sums import total
from merging.reports.report import Report


def block_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Headings and a row for each block: change of every expert, conflict beside chance, mean cosine."""
    names = short_names(report.experts)
    blocks: dict[Block | None, list[TensorStatistics]] = {}
    for name, place in report.places(everything=True).items():
        blocks.setdefault(place.block, []).append(report.tensors[name])
    headings = ["block", *(f"change of {names[expert]}" for expert in report.experts)]
    if report.pairs:
        headings += ["opposite signs", "mass conflict", "by chance", "cosine"]
    order = sorted(blocks, key=block_order)
    rows = [["outside" if b is None else str(b), *_cells(report, total(blocks[b]))] for b in order]
    whole = report.intact
    if whole is not None and len(rows) > 1:
        rows.append(["all", *_cells(report, whole)])
    return headings, rows


def _cells(report: Report, found: TensorStatistics) -> list[str]:
    cells = [_number(found.relative_change(expert)) for expert in range(len(report.experts))]
    if report.pairs:
        cosines = [found.cosine(pair) for pair in range(len(report.pairs))]
        known = [cosine for cosine in cosines if cosine is not None]
        cells += [
            _share(found.signs.opposite_share()),
            _share(found.signs.mass()),
            _share(found.signs.mass_chance()),
            _number(sum(known) / len(known) if known else None),
        ]
    return cells


def lines(report: Report, kin: Kinship, found: list[Advice]) -> Iterator[str]:
    """Conflict with its chance level, fates, kinship, advice."""
    whole = report.intact
    if whole is not None and report.pairs:
        signs = whole.signs
        yield (
            f"conflict: opposite signs {_share(signs.opposite_share())} (chance 50.0 %) · not unanimous "
            f"{_share(signs.split_share())} (chance {_share(signs.split_chance())}) · mass {_share(signs.mass())} (chance "
            f"{_share(signs.mass_chance())}) · over {_share(signs.coverage)} of the weights"
        )
    trim = report.trim
    if trim is not None and trim.tensors and report.pairs:
        after = total(trim.tensors.values()).signs
        yield (
            f"conflict after trimming to density {trim.density:g}: opposite signs {_share(after.opposite_share())} · not "
            f"unanimous {_share(after.split_share())} (chance {_share(after.split_chance())}) · mass {_share(after.mass())} "
            f"(chance {_share(after.mass_chance())}) · over {_share(after.coverage)} of the weights"
        )
    yield from _fates(report)
    if report.pairs:
        pearson, cosine, distance = kin.means
        yield (
            f"kinship: Pearson {_number(pearson)} · cosine {_number(cosine)} · distance {_number(distance)} (means over "
            f"pairs). {kin.suggestion}"
        )
    for one in found:
        yield f"{one.severity}: {one.text} ({one.evidence})"


def _fates(report: Report) -> Iterator[str]:
    preview, names = report.preview, short_names(report.experts)
    if preview is None or not preview.tensors:
        return
    whole = total(preview.tensors.values())
    for number, expert in enumerate(report.experts):
        shares = [(fate, whole.share(number, fate)) for fate in reversed(FATES)]
        said = " · ".join(f"{fate} {_share(share)}" for fate, share in shares if share is not None)
        present = _number(whole.projection(number))
        yield f"{preview.method} makes of {names[expert]}: {said}{' · ' if said else ''}present {present}"


def as_json(report: Report, kin: Kinship, found: list[Advice]) -> dict[str, Any]:
    """What the lines say, for machines; None where there is no such number."""
    whole = report.intact
    preview = report.preview
    fates = total(preview.tensors.values()) if preview is not None and preview.tensors else None
    experts = range(len(report.experts))
    return {
        "base": report.base,
        "experts": list(report.experts),
        "relative_change": None if whole is None else [whole.relative_change(t) for t in experts],
        "changed_share": None if whole is None else [whole.changed_share(t) for t in experts],
        "conflict": None if whole is None else _conflict(whole),
        "trim": None if report.trim is None else {"density": report.trim.density, "scope": report.trim.scope},
        "fates": None
        if fates is None or fates.energy is None
        else [{fate: fates.share(t, fate) for fate in FATES} for t in experts],
        "presence": None if fates is None else [fates.projection(t) for t in experts],
        "kinship": {
            **{name: list(getattr(kin, name)) for name in ("pairs", "pearson", "cosine", "distance")},
            "means": kin.means,
            "suggestion": kin.suggestion,
        },
        "advice": [asdict(one) for one in found],
    }


def _conflict(whole: TensorStatistics) -> dict[str, Any]:
    signs = whole.signs
    return {
        "opposite_signs": signs.opposite_share(),
        "opposite_signs_by_pair": [signs.opposite_share(pair) for pair in range(len(signs.shared))],
        "not_unanimous": signs.split_share(),
        "not_unanimous_by_chance": signs.split_chance(),
        "mass": signs.mass(),
        "mass_by_chance": signs.mass_chance(),
        "coverage": signs.coverage,
    }


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
