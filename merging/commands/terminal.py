"""What the commands have in common: a bar on a terminal while they work, and how Ctrl-C ends them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar

from merging.events import Progress

INTERRUPTED = 130
"""The exit code of what Ctrl-C ended."""


def stage_of(event: Progress) -> str:
    return event.stage


def follow(
    events: Iterator[Any],
    told: Callable[[Progress], str] = stage_of,
    *,
    undone: str = "nothing was written",
    quiet: bool = False,
) -> Any:
    """Show `Progress` until the last event, and return that one; `told` puts a step into words.

    Raises:
        Exit: Ctrl-C, which closes the events; `undone` says what that comes to.
    """
    with cancelling(events, undone), bar(quiet=quiet) as show:
        for event in events:
            if isinstance(event, Progress):
                show(event.share, told(event))
            last = event
    return last


@contextmanager
def cancelling(events: Iterator[Any] | None, undone: str) -> Iterator[None]:
    """While it lasts Ctrl-C closes the events, says so and ends the command."""
    try:
        yield
    except KeyboardInterrupt:
        if events is not None:
            events.close()  # type: ignore[attr-defined]
        print(f"cancelled{f'; {undone}' if undone else ''}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def bar(*, quiet: bool = False) -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr where that is a terminal: to be called with the share that is done, and what is being done."""
    with _shown([TextColumn("{task.percentage:>3.0f} %")], quiet) as shown:
        task = shown.add_task("starting", total=1.0)
        yield lambda share, text: shown.update(task, completed=share, description=text)


@contextmanager
def transfer(name: str) -> Iterator[Callable[[int, float | None, str], None]]:
    """The same for bytes on their way: to be called with how many are done, of how many if that is known, and what of."""
    with _shown([DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]) as shown:
        task = shown.add_task(name, total=None)
        yield lambda done, of, text: shown.update(task, completed=done, total=of, description=text)


def _shown(columns: list[ProgressColumn], quiet: bool = False) -> Bar:
    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        console=Console(stderr=True),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )
