"""`python -m merging push`: a merged folder becomes a model of the Hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub.utils import logging

from merging.cards.parcel import packing
from merging.cards.scores import CardScore, card_scores
from merging.commands.terminal import cancelling, transfer
from merging.errors import MergingError
from merging.folders.room import bytes_text
from merging.hub.client import Hub
from merging.hub.push import LONGEST_MESSAGE, MESSAGE, Order, Pushed, push
from merging.judging.history import FILE, LOCAL_OWNER, History
from merging.writer import require_merged

PATIENCE = 60.0
"""Seconds that a push which ends early may take to remove what it made: the process is not left before."""
RUNS = Path(__file__).resolve().parents[2] / "runs"
"""Where the app keeps its history of runs, unless MERGESCOPE_RUNS says where."""


def push_folder(
    folder: Annotated[Path, typer.Argument(help="A merged folder.", metavar="FOLDER")],
    name: Annotated[str, typer.Argument(help="The repository on the Hub: org/name.", metavar="ORG/NAME")],
    public: Annotated[
        bool, typer.Option("--public", help="For everybody; without it, for you alone.")
    ] = False,
    add: Annotated[
        bool, typer.Option("--add", help="Add a commit to a repository of yours that is there already.")
    ] = False,
    message: Annotated[
        str, typer.Option(help=f"What the commit says, {LONGEST_MESSAGE} letters at most.")
    ] = MESSAGE,
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable output, one JSON object.")
    ] = False,
) -> None:
    """Push a merged folder to the Hugging Face Hub, with its model card, in one commit; private unless --public.

    The account is that of HF_TOKEN, or of `hf auth login`. The card has the scores that the app on this machine measured.
    """
    require_merged(folder)
    hub = Hub.from_environment()
    if not hub.has_token:
        raise MergingError(
            "To push, the Hub has to know you: run `hf auth login`, or set HF_TOKEN to a token with the right to write."
        )
    logging.set_verbosity_error()  # its remarks are for programmers; what fails is said below
    done = _follow(hub, folder, Order(name.strip(), private=not public, add=add, message=message))
    if as_json:
        print(
            json.dumps(
                {"url": done.url, "commit": done.commit, "private": done.private, "bytes": done.nbytes}
            )
        )
        return
    kind = "private" if done.private else "public"
    print(
        f"{done.url}: pushed, {kind}, {bytes_text(done.nbytes)} in {done.seconds:.1f} s; commit {done.commit}"
    )


def _follow(hub: Hub, folder: Path, order: Order) -> Pushed:
    files = packing(folder, scores=_scores(folder), name=order.name)
    events = push(hub, folder, order, files, patience=PATIENCE)
    with cancelling(events, "nothing of it is left on the Hub"), transfer(order.name) as show:
        for event in events:
            if isinstance(event, Pushed):
                return event
            total = event.bytes_done / event.share if event.bytes_done and event.share else None
            show(event.bytes_done, total, event.stage)
    raise AssertionError("a push ends with what was pushed")


def _scores(folder: Path) -> list[CardScore]:
    """What the app on this machine measured of a merge and its parents; nothing where its history cannot be read."""
    file = Path(os.environ.get("MERGESCOPE_RUNS") or RUNS).expanduser() / FILE
    try:
        return card_scores(History(file), LOCAL_OWNER, folder) if file.is_file() else []
    except MergingError:
        return []
