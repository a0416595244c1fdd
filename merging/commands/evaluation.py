"""`python -m merging evaluate`: score models on task suites and texts from a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from merging.commands.terminal import bar, cancelling
from merging.devices import resolve_device
from merging.errors import MergingError, why_unread
from merging.evaluation import Perplexity, SuiteResult, perplexity
from merging.evaluation import evaluate as score
from merging.inference import LoadedModel
from merging.judging.intervals import Comparison, Interval, compare
from merging.judging.suites import Suite
from merging.sources import open_model

SHOWN = 3
"""Items gained and lost that are printed."""

Found = dict[str, tuple[list[SuiteResult], list[Perplexity]]]
"""By model: its results on every suite, and its perplexity of every text."""


def evaluate(
    given: Annotated[
        list[Path],
        typer.Argument(help="Model folders; or one folder, then suites.", metavar="MODEL... [SUITE...]"),
    ],
    suite: Annotated[
        list[Path] | None,
        typer.Option(help="JSONL of prompt and answer, perhaps choices; may be given several times."),
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option(help="A text file for perplexity; may be given several times.")
    ] = None,
    scoring: Annotated[
        str | None, typer.Option(help="exact, normalised or choice; by default as the suite says.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable output, one JSON object a line.")
    ] = False,
) -> None:
    """Score models on task suites with 95 % intervals, and compare the first two item by item."""
    models, files = _models_and_suites(given, suite or [], bool(text))
    suites = [Suite.load(file, scoring=scoring) for file in files]  # type: ignore[arg-type]
    texts = [(file.name, _text(file)) for file in text or []]
    where = str(resolve_device(device))
    found = {name: _ask(name, folder, suites, texts, where) for name, folder in _named(models).items()}
    pair = list(found)[:2]
    both = [found[name][0] for name in pair]
    compared = [compare(*results) for results in zip(*both, strict=True)] if len(pair) == 2 else []
    if as_json:
        _print_json(found, pair, compared)
    else:
        _print(found, pair, compared)


def _models_and_suites(
    given: Sequence[Path], suites: Sequence[Path], has_text: bool
) -> tuple[list[Path], list[Path]]:
    """Everything is a model where suites have an option of their own; else the first is, with all other folders."""
    if suites:
        return list(given), list(suites)
    models = [path for number, path in enumerate(given) if number == 0 or path.is_dir()]
    files = [path for path in given if path not in models]
    if not files and not has_text:
        raise MergingError("evaluate: give a suite with --suite FILE, or a text with --text FILE.")
    return models, files


def _named(models: Sequence[Path]) -> dict[str, Path]:
    """Folders by their short names, or by their paths where two share one."""
    names = [path.absolute().name for path in models]
    short = len(set(names)) == len(names)
    return {(name if short else str(path)): path for name, path in zip(names, models, strict=True)}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as cause:
        raise MergingError(f"The text {file} cannot be read ({why_unread(cause)}).") from cause


def _ask(
    name: str, folder: Path, suites: Sequence[Suite], texts: Sequence[tuple[str, str]], device: str
) -> tuple[list[SuiteResult], list[Perplexity]]:
    with cancelling(None, ""), bar() as show:
        show(0, f"loading {name}")
        model = LoadedModel.of_checkpoint(open_model(str(folder)), device)

        def steps(what: str) -> Callable[[int, int], None]:
            return lambda done, of: show(done / of, f"{name} · {what}")

        return (
            [score(model, one, progress=steps(one.name)) for one in suites],
            [perplexity(model, text, name=title, progress=steps(title)) for title, text in texts],
        )


def _print(found: Found, pair: Sequence[str], compared: Sequence[Comparison]) -> None:
    results, read = next(iter(found.values()))
    table = Table("model", box=None, pad_edge=False)
    for result in results:
        kind = "" if result.scoring == "exact" else f", {result.scoring}"
        table.add_column(escape(f"{result.suite} (n {result.n}{kind})"), justify="right")
    for one in read:
        table.add_column(escape(f"perplexity of {one.name} ({one.tokens:,} tokens)"), justify="right")
    for name, (scores, perplexities) in found.items():
        cells = [f"{one.score:.1%} ({_range(one.interval, '.1%')})" for one in scores]
        cells += [
            f"{one.value:.4g}" + (f" ({_range(one.interval, '.4g')})" if one.interval else "")
            for one in perplexities
        ]
        table.add_row(escape(name), *cells)
    Console(width=None if sys.stdout.isatty() else 400).print(table)
    for name, (scores, _) in found.items():
        for line in _notes(name, scores):
            print(line)
    for result, comparison in zip(results, compared, strict=False):
        print(_sentence(result.suite, pair, comparison))
        for sign, items in (("+", comparison.gained), ("−", comparison.lost)):
            for item in items[:SHOWN]:
                print(f"  {sign} {item.prompt[:60]!r}: {item.reply[:40]!r}, answer {item.answer[:40]!r}")


def _range(interval: Interval, format: str) -> str:
    return f"{interval.low:{format}} to {interval.high:{format}}"


def _notes(name: str, results: Sequence[SuiteResult]) -> list[str]:
    lines = []
    if results and results[0].plain:
        lines.append(f"{name}: has no chat template, so it gets the prompts as they are.")
    for result in results:
        if result.too_long:
            lines.append(
                f"{name}, {result.suite}: {result.too_long} prompts are too long for it and count as wrong."
            )
        if result.unended:
            lines.append(f"{name}, {result.suite}: {result.unended} replies did not end and were cut off.")
    return lines


def _sentence(suite: str, pair: Sequence[str], found: Comparison) -> str:
    low, high = 100 * found.interval.low, 100 * found.interval.high
    return (
        f"{suite}: {pair[1]} − {pair[0]} = {100 * found.difference:+.1f} points ({low:+.1f} to {high:+.1f}), "
        f"gained {len(found.gained)}, lost {len(found.lost)}, McNemar's p = {found.p:.2g}"
    )


def _print_json(found: Found, pair: Sequence[str], compared: Sequence[Comparison]) -> None:
    for name, (scores, perplexities) in found.items():
        for one in scores:
            fields = ("suite", "scoring", "n", "correct", "score", "too_long", "unended", "plain")
            values = {field: getattr(one, field) for field in fields}
            print(json.dumps({"model": name, **values, **vars(one.interval)}))
        for text in perplexities:
            values = {"text": text.name, "tokens": text.tokens, "perplexity": text.value}
            print(json.dumps({"model": name, **values, **(vars(text.interval) if text.interval else {})}))
    for result, comparison in zip(next(iter(found.values()))[0], compared, strict=False):
        values = {"suite": result.suite, "before": pair[0], "after": pair[1], "p": comparison.p}
        items = {"gained": len(comparison.gained), "lost": len(comparison.lost)}
        print(
            json.dumps(
                {
                    **values,
                    **items,
                    "difference": comparison.difference,
                    **vars(comparison.interval),
                }
            )
        )
