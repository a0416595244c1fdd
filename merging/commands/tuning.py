"""`python -m merging tune`: search for better values of a recipe from a terminal."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from merging.commands.terminal import INTERRUPTED, bar
from merging.errors import OutputError
from merging.events import Progress
from merging.hub.pinning import from_anywhere
from merging.judging.strategies import STRATEGIES
from merging.judging.suites import Suite
from merging.judging.trials import Trials
from merging.memory.whatif import Residents
from merging.recipe import Recipe
from merging.tuning import TRIALS, Trial, Tuned
from merging.tuning import tune as search


def tune(
    recipe: Annotated[Path, typer.Argument(help="A recipe in mergekit's YAML.", metavar="RECIPE")],
    suite: Annotated[
        list[Path],
        typer.Option(
            help="JSONL of prompt and answer to judge by, once for each file; keep others for a test."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where the best recipe is written.")],
    strategy: Annotated[
        str, typer.Option(help="; ".join(f"{name}: {told}" for name, told in STRATEGIES.items()) + ".")
    ] = "tpe",
    trials: Annotated[
        int | None,
        typer.Option(help=f"Recipes to score; {TRIALS} where neither this nor --minutes is given."),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Time to search; the first limit ends it.")] = None,
    seed: Annotated[int, typer.Option(help="The same number makes the same trials.")] = 0,
    device: Annotated[str, typer.Option(help="Where models answer: auto, cpu, cuda or cuda:N.")] = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable output, one JSON object a line.")
    ] = False,
) -> None:
    """Search over a method's parameters and the experts' weights. Ctrl-C keeps the best so far."""
    _require_writable(out, recipe)
    start = from_anywhere(Recipe.load(recipe))
    suites = [Suite.load(path) for path in suite]
    maker = Trials(Residents(), device)
    stop = threading.Event()
    with _until_interrupted(stop):
        found = _follow(
            search(
                start,
                suites,
                trials=maker,
                strategy=strategy,
                budget=trials,
                minutes=minutes,
                seed=seed,
                stopped=stop.is_set,
            ),
            as_json,
        )
    if found is None:
        print("cancelled; nothing was written", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    _write(out, found.to_yaml())
    _tell(found, out, as_json)
    if stop.is_set():
        raise typer.Exit(INTERRUPTED)


@contextmanager
def _until_interrupted(stop: threading.Event) -> Iterator[None]:
    """While it lasts the first Ctrl-C sets `stop`, and a second one interrupts."""

    def end(*_: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _follow(events: Iterator[Progress | Trial | Tuned], as_json: bool) -> Tuned | None:
    """Show the search until its end."""
    with bar() as show:
        for event in events:
            if isinstance(event, Tuned):
                return event
            if isinstance(event, Progress):
                show(event.share, event.stage)
            elif as_json:
                print(json.dumps(_plain(event)), flush=True)
    return None


def _plain(trial: Trial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "values": dict(trial.values),
        "score": trial.score,
        "mean": trial.mean,
        "suites": {result.suite: result.score for result in trial.results},
        "seconds": round(trial.seconds, 3),
        "problem": trial.problem,
        "best": trial.best,
    }


def _tell(found: Tuned, out: Path, as_json: bool) -> None:
    if as_json:
        told = {"path": str(out), "note": found.note, "trials": len(found.trials), "best": _plain(found.best)}
        print(json.dumps(told))
        return
    before = found.trials[0].results
    for number, result in enumerate(found.best.results):
        was = f", {before[number].score:.1%} before" if before else ""
        print(f"{result.suite}: {result.score:.1%} of {result.n}{was}")
    for trial in found.trials:
        if trial.problem:
            print(f"trial {trial.number} failed: {trial.problem}")
    print(found.note)
    print(f"{out}: written. Judge it on examples that took no part in the search.")


def _require_writable(out: Path, recipe: Path) -> None:
    """Refuse before the search what cannot be written after it."""
    if out.is_dir():
        raise OutputError(f"--out {out}: is a folder; name a file for the recipe.")
    if not out.absolute().parent.is_dir():
        raise OutputError(f"--out {out}: there is no folder {out.absolute().parent}; make it first.")
    if out.exists() and recipe.exists() and out.samefile(recipe):
        raise OutputError(f"--out {out}: is the recipe that is tuned; name another file.")
    if not os.access(out if out.exists() else out.absolute().parent, os.W_OK):
        raise OutputError(f"--out {out}: cannot be written; choose another place.")


def _write(out: Path, text: str) -> None:
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"--out {out}: cannot be written ({error.strerror}).") from None
