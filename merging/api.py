"""The calls most programs need, each a few lines over plan, engine and output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from merging.checkpoint import StateDict
from merging.engine import MemorySink, run_plan
from merging.errors import MergingError, PlanError
from merging.events import Event, Finished
from merging.inspection import Report, inspect_plan
from merging.methods import Profile, get_method
from merging.output import write_merge
from merging.plan import Plan, make_plan, plan_sources
from merging.recipe import ModelEntry, Recipe


def check(recipe: Recipe | str | Path, out: str | Path | None = None) -> Plan:
    """Plan a merge from headers alone, without reading a weight.

    A path is read as a YAML recipe; then mistakes in the file and in the models are listed together. With `out` the
    output folder and the disk are checked as well.

    Raises:
        MergingError: listing every problem.
    """
    target = Path(out) if out is not None else None
    if isinstance(recipe, Recipe):
        return make_plan(recipe, out=target)
    return plan_file(recipe, out=target)


def plan_file(path: str | Path, out: Path | None = None) -> Plan:
    """`check` for a recipe file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        Recipe.load(path)
        raise
    recipe, problems = Recipe.parse(text, name=str(path), folder=path.parent)
    if recipe is None:
        raise PlanError(problems)
    return make_plan(recipe, out=out, earlier=problems)


def run(recipe: Recipe | str | Path, out: str | Path, *, device: str = "auto") -> Iterator[Event]:
    """Merge into the folder `out`: `Progress` events, then one `Finished`. Closing the iterator cancels cleanly.

    Raises:
        MergingError: before anything is read if the recipe cannot run, or during the run; `out` stays as it was.
    """
    return write_merge(check(recipe, out), Path(out), device=device)


def merge(recipe: Recipe | str | Path, out: str | Path, *, device: str = "auto") -> Path:
    """`run` without the events; the path of the finished folder."""
    for event in run(recipe, out, device=device):
        if isinstance(event, Finished) and event.path is not None:
            return event.path
    raise AssertionError("a run ends with Finished")


def inspect(recipe: Recipe | str | Path, *, device: str = "auto", sample: int | None = None) -> Report:
    """Measure the experts' changes and conflicts without merging.

    Args:
        sample: not supported yet; every element is measured.
    """
    if sample is not None:
        raise MergingError(
            "inspect: sampling is not supported yet; leave sample out to measure every element."
        )
    for event in inspect_plan(check(recipe), device=device):
        if isinstance(event, Report):
            return event
    raise AssertionError("an inspection ends with a Report")


def merge_state_dicts(
    base: Mapping[str, torch.Tensor] | None,
    models: Sequence[Mapping[str, torch.Tensor]],
    method: str,
    *,
    weight: float | Sequence[float] | None = None,
    profile: Profile = "paper",
    seed: int = 0,
    importance: Any = None,
    **parameters: Any,
) -> dict[str, torch.Tensor]:
    """Merge dictionaries of tensors in memory.

    Args:
        base: tensors of the base; None for a method that needs none.
        models: one dictionary an expert, with the base's names and shapes.
        method: a key of `METHODS`.
        weight: one number, or one for each model.
        parameters: the method's parameters by their YAML names, `lambda` also as `lambda_`; a per-model parameter
            takes one value or one for each model.

    Returns:
        Merged tensors in the base's dtype (the first model's without a base).

    Raises:
        MergingError: unknown method or parameter, values out of range, tensors that do not fit.
    """
    if importance is not None:
        raise MergingError("importance: no method here uses it yet; leave it out.")
    chosen = get_method(method)
    if "lambda_" in parameters:
        parameters["lambda"] = parameters.pop("lambda_")
    if weight is not None:
        parameters["weight"] = weight
    own: list[dict[str, Any]] = [{} for _ in models]
    for name in chosen.per_model() & parameters.keys():
        value = parameters[name]
        if isinstance(value, torch.Tensor):
            value = value.tolist()
        if isinstance(value, Sequence):
            if len(value) != len(models):
                raise MergingError(
                    f"{name}: {len(value)} values for {len(models)} models; give one for each."
                )
            for entry, number in zip(own, value, strict=True):
                entry[name] = number
            del parameters[name]
    entries = [ModelEntry(model=f"model {number}", parameters=values) for number, values in enumerate(own, 1)]
    recipe = Recipe(
        merge_method=method, models=tuple(entries), parameters=parameters, profile=profile, seed=seed
    )
    sources = [
        (entry, StateDict(tensors, entry.model)) for entry, tensors in zip(entries, models, strict=True)
    ]
    plan = plan_sources(recipe, StateDict(base, "base") if base is not None else None, sources)
    sink = MemorySink([tensor.info for tensor in plan.tensors])
    for _ in run_plan(plan, sink, device="cpu"):
        pass
    return sink.tensors
