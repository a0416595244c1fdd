"""`python -m merging extract`: a model's change as a LoRA adapter, from a terminal."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from merging.commands.terminal import follow
from merging.errors import ParameterError
from merging.events import Progress
from merging.extraction import EMBEDDINGS, extract
from merging.folders.room import bytes_text
from merging.inspecting.extraction_report import TABLE, Extracted
from merging.sources import open_model

SHOWN = 12
"""Tensors printed, those with the largest errors."""


def extraction(
    base: Annotated[str, typer.Argument(help="The base: a folder, or a Hub model that was downloaded.")],
    model: Annotated[str, typer.Argument(help="A model that was tuned or merged from it; BASE+ADAPTER too.")],
    out: Annotated[Path, typer.Argument(help="Folder for the adapter.", metavar="OUT")],
    rank: Annotated[int, typer.Option(help="Rank of every change.")] = 16,
    embeddings: Annotated[
        str, typer.Option(help="Embedding and head: low-rank, whole, or leave them out.")
    ] = "low-rank",
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable output, one JSON object.")
    ] = False,
) -> None:
    """Write what a model changed of its base as a LoRA adapter that peft loads, with the error of every tensor."""
    if embeddings not in EMBEDDINGS:
        raise ParameterError(f"--embeddings: {embeddings!r} is none of {', '.join(EMBEDDINGS)}.")
    events = extract(
        open_model(base),
        open_model(model),
        out,
        rank,
        embeddings=embeddings,
        base_name=base,
    )
    done = follow(events, _told)
    if as_json:
        print(json.dumps({**asdict(done), "relative": done.relative}, default=str))
        return
    _print(done)


def _told(event: Progress) -> str:
    return f"{event.stage} · {event.tensors_done}/{event.tensors}"


def _print(done: Extracted) -> None:
    shown = Table("tensor", "kept", "change", "error", "of its change", box=None, pad_edge=False)
    for one in sorted(done.tensors, key=lambda one: -one.error)[:SHOWN]:
        values = (f"{one.change:.4g}", f"{one.error:.4g}", f"{one.relative:.2%}")
        shown.add_row(escape(one.name), escape(one.kept), *values)
    Console(width=160).print(shown)
    more = len(done.tensors) - SHOWN
    if more > 0:
        print(f"and {more} more with smaller errors; all are in {done.path / TABLE}")
    print(
        f"{done.path}: an adapter of rank {done.rank} ({bytes_text(done.bytes_written)}); it leaves out "
        f"{done.relative:.2%} of the whole change. {done.unchanged} tensors did not change."
    )
