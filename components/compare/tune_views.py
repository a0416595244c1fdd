"""What the Tune part says of a search and of its one look at the test files, as HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from components.compare.search import mean, task_names
from components.numbers import clock, signed
from merging import MergingError, Recipe
from merging.judging.strategies import STRATEGIES, space_of

LABELS = {
    "tpe": "TPE (Optuna)",
    "cma-es": "CMA-ES (Optuna)",
    "dppa": "DPPA's greedy search",
    "pcb-es": "PCB's evolution of weights",
}
CHANCE = 0.05


def strategies_for(recipe: Recipe) -> list[tuple[str, str]]:
    """Label and key of the strategies that can vary something in a recipe."""
    found = []
    for key in STRATEGIES:
        with suppress(MergingError):
            space_of(key, recipe)
            found.append((LABELS.get(key, key), key))
    return found


def measure_of(strategy: str) -> str:
    """What a strategy compares trials by."""
    return "geometric mean of what is kept of each expert" if strategy == "dppa" else "mean score"


def about_html(recipe: str) -> str:
    """What is tuned."""
    if not recipe:
        return '<p class="quiet">Choose a base and its experts on the Models tab first.</p>'
    return f'<p class="quiet">Now under Merge: {html.escape(recipe)}.</p>'


def best_html(result: Mapping[str, Any]) -> str:
    """The best trial beside the recipe that the search began with."""
    best, names = result["best"], task_names(dict(result))
    first = result["trials"][0]["scores"]
    score = mean(best["scores"])
    tiles = [
        ("Best trial", f"{best['number']}", f"of {len(result['trials'])}, in {clock(result['seconds'])}")
    ]
    untuned = f"untuned {mean(first):.1%}" if first else ""
    tiles.append(("Mean score, validation", f"{score:.1%}", untuned))
    if first:
        gain = f"{signed(100 * (score - mean(first)))} points"
        tiles.append(("Gain on validation", gain, "flattering: chosen by these items"))
    cells = "".join(
        f'<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd><dd class="unit">{html.escape(unit)}</dd></div>'
        for name, value, unit in tiles
    )
    each = ", ".join(
        f"{name} {correct / n:.1%}" for name, (correct, n) in zip(names, best["scores"], strict=True)
    )
    return f'<dl class="tiles">{cells}</dl><p class="quiet cm-each">{html.escape(each)}</p>'


def final_html(result: Mapping[str, Any]) -> str:
    """Tuned against untuned on the test files: the outcome, whichever it is, and a row for each task."""
    rows = result.get("rows") or []
    if not rows:
        return ""
    body = "".join(_row(row) for row in rows)
    return (
        f'<p class="cm-verdict" role="status">{_verdict(rows[0])}</p><div class="figures" tabindex="0" role="region" '
        'aria-label="Tuned and untuned on the test files"><table><caption>Tuned and untuned on the test files</caption>'
        '<thead><tr><th scope="col">test file</th><th scope="col">n</th><th scope="col">untuned</th><th scope="col">tuned</th>'
        '<th scope="col">difference</th><th scope="col">95 % interval, paired</th><th scope="col">gained / lost</th>'
        f'<th scope="col">p (McNemar)</th></tr></thead><tbody>{body}</tbody></table></div>'
    )


def _row(row: Mapping[str, Any]) -> str:
    difference = 100 * (row["after"] - row["before"])
    cells = (
        f"{row['n']:,}",
        f"{row['before']:.1%}",
        f"{row['after']:.1%}",
        signed(difference),
        f"{signed(100 * row['low'])} to {signed(100 * row['high'])}",
        f"{row['gained']} / {row['lost']}",
        f"{row['p']:.2g}" if row["p"] >= 0.0001 else "< 0.0001",
    )
    return f'<tr><th scope="row">{html.escape(row["name"])}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _verdict(row: Mapping[str, Any]) -> str:
    difference = 100 * (row["after"] - row["before"])
    spread = f"95 % interval {signed(100 * row['low'])} to {signed(100 * row['high'])} points"
    if row["p"] >= CHANCE or difference == 0:
        return (
            f"<strong>No difference that these items can show:</strong> tuned {row['after']:.1%}, untuned "
            f"{row['before']:.1%} ({spread})."
        )
    which = "better" if difference > 0 else "worse"
    return (
        f"<strong>Tuning made it {which}</strong> on questions it never saw: {row['before']:.1%} → {row['after']:.1%}, "
        f"{signed(difference)} points ({spread})."
    )
