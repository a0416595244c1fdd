"""`python -m merging importance`: measure importance from a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from merging.commands.terminal import follow
from merging.errors import MergingError
from merging.importance import Measurement, cache_folder, measure_importance
from merging.importances.agreement import Agreement, interval
from merging.importances.artefact import Importance, ensure_place

SHOWN = 5
"""Partitions printed for each expert."""


def importance(
    recipe: Annotated[Path, typer.Argument(help="A recipe in mergekit's YAML.", metavar="RECIPE")],
    data: Annotated[
        list[str],
        typer.Option(help="NAME=FILE for each expert, or one FILE for all: JSONL of prompt and answer."),
    ],
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    how: Annotated[str, typer.Option(help="gradient or exact.")] = "gradient",
    partition: Annotated[str, typer.Option(help="model, layer, module, head or row.")] = "module",
    at: Annotated[
        str, typer.Option(help="Where gradients are taken: base, expert, midpoint, trapezoid.")
    ] = "base",
    samples: Annotated[int, typer.Option(help="Examples an expert, evenly spaced over its file.")] = 16,
    sample: Annotated[int | None, typer.Option(help="Partitions that are put back exactly.")] = None,
    seed: Annotated[int, typer.Option(help="Draws samples, shuffled answers and resamples.")] = 0,
    elementwise: Annotated[bool, typer.Option(help="Σ|δg| in place of |Σ δg|.")] = False,
    elements: Annotated[bool, typer.Option(help="Keep δg of every element as well (drop: taylor).")] = False,
    agreement: Annotated[bool, typer.Option(help="Compare the scores with exact intervention.")] = False,
    cache: Annotated[bool, typer.Option(help="Reuse what was measured before, by content.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable output, one JSON object.")
    ] = False,
) -> None:
    """Measure how much each part of each expert matters to its task (APL, a reconstruction of 2408.09485)."""
    wanted = Measurement(
        how=how,  # type: ignore[arg-type]
        partition=partition,  # type: ignore[arg-type]
        at=at,  # type: ignore[arg-type]
        elementwise=elementwise,
        elements=elements,
        samples=samples,
        sample=sample,
        seed=seed,
        agreement=agreement,
    )
    ensure_place(out)
    folder = cache_folder() if cache else None
    found = follow(measure_importance(recipe, _data(data), wanted, device=device, cache=folder))
    found.save(out)
    if as_json:
        print(json.dumps({"path": str(out), **summary(found)}))
        return
    _print(found)
    print(f"{out}: written.")


def _data(given: Sequence[str]) -> str | dict[str, str]:
    """One file for all, or a table from experts to files."""
    if len(given) == 1 and ("=" not in given[0] or Path(given[0]).is_file()):
        return given[0]
    pairs = [text.partition("=") for text in given]
    for (name, equals, file), text in zip(pairs, given, strict=True):
        if not (name and equals and file):
            raise MergingError(f"--data {text}: give NAME=FILE for every expert, or one file for all.")
    table = {name: file for name, _, file in pairs}
    if len(table) < len(pairs):
        raise MergingError("--data: an expert has two files; give it one.")
    return table


def summary(found: Importance) -> dict[str, Any]:
    """What a machine wants to know: how it was measured, losses, the top partitions, the agreement report."""
    return {
        **found.description.model_dump(
            mode="json", include={"how", "at", "partition", "samples", "elementwise"}
        ),
        "partitions": len(found.partitions),
        "experts": [
            {**expert.model_dump(mode="json"), "top": _top(found, number)}
            for number, expert in enumerate(found.experts)
        ],
        "agreement": asdict(found.agreement) if found.agreement else None,
    }


def _top(found: Importance, expert: int) -> list[dict[str, Any]]:
    values = found.values[expert].nan_to_num(-1)
    return [
        {"partition": found.partitions[number].key, "signed": float(found.signed[expert, number])}
        for number in values.topk(min(SHOWN, len(values))).indices.tolist()
        if values[number] >= 0
    ]


def _print(found: Importance) -> None:
    where = f" at {found.at}" if found.at else ""
    count = f"{len(found.partitions):,} partitions ({found.partition})"
    print(f"{found.how} importance{where}, {count}, {found.description.samples} examples an expert")
    for number, expert in enumerate(found.experts):
        print(
            f"\n{expert.name}: loss {expert.base_loss:.4g} as the base, {expert.expert_loss:.4g} as the expert"
        )
        for row in _top(found, number):
            print(f"  {row['partition']:<40} {row['signed']:+.4g}")
    print("\nA number is what the partition's change does to the loss; negative: it helps.")
    if found.agreement:
        Console().print(agreement_table(found.agreement))
        print(advice(found.agreement))


def agreement_table(report: Agreement) -> Table:
    """Spearman's correlation with exact intervention: a row a predictor, a column an expert."""
    table = Table(title="Spearman's correlation with exact intervention", box=None, pad_edge=False)
    table.add_column("predictor")
    for expert in report.experts:
        table.add_column(expert.expert, justify="right")
    for row in zip(*(expert.correlations for expert in report.experts), strict=True):
        table.add_row(row[0].predictor, *(interval(one) for one in row))
    return table


def advice(report: Agreement) -> str:
    """Whether to use the scores, in one sentence."""
    if not report.recommended:
        return f"APL is not recommended here: {report.score} agrees no better with exact intervention than ‖δ‖² does."
    told = f"APL can be recommended here: {report.score} agrees better with exact intervention than ‖δ‖² does"
    if report.as_good:
        return f"{told}, but no better than {' and '.join(report.as_good)}: trust it little."
    return f"{told}."
