"""`python -m merging download`, and what `check` and `merge` do with Hub models that are not on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from merging.checkpoint import Checkpoint
from merging.commands.terminal import cancelling, transfer
from merging.folders.room import bytes_text
from merging.hub.client import Hub
from merging.hub.download import Downloaded
from merging.hub.files import Pinned
from merging.hub.remote import RemoteCheckpoint
from merging.plan import Plan
from merging.references import Reference


def download(
    models: Annotated[
        list[str],
        typer.Argument(
            help="org/name or org/name@revision; org/name+org/adapter is both.", metavar="MODEL..."
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable output, one JSON object a model.")
    ] = False,
) -> None:
    """Download models or adapters of the Hub into huggingface_hub's cache; goes on where an earlier download stopped.

    Private and gated models: HF_TOKEN, or `hf auth login`.
    """
    hub = Hub.from_environment()
    fetch(hub, [hub.pin(part) for text in models for part in _parts(Reference.parse(text))], as_json)


def _parts(reference: Reference) -> Iterator[Reference]:
    """A model and the adapters on it, of those that are of the Hub."""
    if reference.looks_like_hub or reference.adapter is None:
        yield reference.alone
    if reference.adapter is not None:
        yield from _parts(reference.adapter)


def missing_models(plan: Plan) -> list[Pinned]:
    """The Hub models of a plan whose weights are not here yet."""
    models = (one for one in (plan.reference, plan.base, *plan.experts) if isinstance(one, Checkpoint))
    return list({p.reference: p for one in models for p in _remote(one)}.values())


def _remote(model: Checkpoint) -> Iterator[Pinned]:
    if isinstance(model, RemoteCheckpoint):
        yield model.pinned
    for one in model.made_of:
        yield from _remote(one)


def say_commits(plan: Plan, hub: Hub) -> None:
    """Which commits of Hub models a plan is about, and what a merge would download first."""
    for name, here in plan.commits.items():
        print(f"{name}: {here}, downloaded")
    for pinned in missing_models(plan):
        print(f"{pinned.id}: commit {pinned.commit}, {bytes_text(hub.missing(pinned))} to download")


def fetch(hub: Hub, models: Sequence[Pinned], as_json: bool = False) -> None:
    """Download models one after the other, once there is room for all of them.

    Raises:
        HubError: see `Hub.download`.
        Exit: Ctrl-C; what was downloaded stays.
    """
    hub.ensure_room(models)
    for pinned in models:
        last = _follow(hub.download(pinned), pinned.id)
        if as_json:
            print(
                json.dumps({"model": pinned.id, "commit": pinned.commit, "path": str(last.folder)}),
                flush=True,
            )
        else:
            print(f"{pinned.id}: commit {pinned.commit}, in {last.folder}", file=sys.stderr)


def _follow(events: Iterator[Downloaded], name: str) -> Downloaded:
    stays = "what was downloaded stays, and the next download goes on there"
    with cancelling(events, stays), transfer(name) as show:
        for event in events:
            show(event.bytes_done, event.nbytes, name)
    return event
