"""`python -m merging health`: look whether a model is sound, from a terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from merging.answering.health import Health, check_health, health_after_merge
from merging.devices import resolve_device
from merging.errors import MergingError
from merging.hub.cache import cached_model
from merging.plan import Plan
from merging.references import Reference, path_exists


def health(
    model: Annotated[Path, typer.Argument(help="A model folder, or a Hub model that was downloaded.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable output, one JSON object.")
    ] = False,
) -> None:
    """Look whether a model is sound: weights, output head, logits, replies; exit code 1 where it is not."""
    found = check_health(_folder(model), device=str(resolve_device(device)))
    if as_json:
        print(json.dumps(found.as_json()))
    else:
        print_health(found, in_full=True)
    if not found.ok:
        raise typer.Exit(1)


def _folder(model: Path) -> Path:
    if path_exists(model):
        return model
    named = Reference.parse(str(model))
    if named.adapter is not None:
        raise MergingError(
            f"{model}: is a model with an adapter on it, and health looks at the folder of one model. Merge it into one "
            "first, with merge_method: passthrough."
        )
    return cached_model(named) or model


def health_of(folder: Path, plan: Plan, device: str) -> Health:
    """The health of what was just merged; an interrupt leaves the merge as it is."""
    try:
        return health_after_merge(folder, plan, device=str(resolve_device(device)))
    except KeyboardInterrupt:
        print(f"{folder} is complete; its health was not looked at", file=sys.stderr)
        raise typer.Exit(130) from None


def print_health(found: Health, *, in_full: bool = False) -> None:
    """One line where all is well, else one for each problem; or one for everything that was looked at."""
    for problem in found.problems:
        print(f"health: {problem}")
    if in_full:
        for check in found.checks:
            if check.ok:
                print(f"{check.name}: {check.sentence}")
    elif found.ok:
        print("health: fine" if len(found.checks) > 1 else f"health: {found.checks[0].sentence}")
