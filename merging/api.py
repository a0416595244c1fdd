"""The calls most programs need, each a few lines over plan, engine and output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from merging.checkpoint import StateDict
from merging.engine import MemorySink, run_plan
from merging.errors import MergingError, ParameterError, PlanError
from merging.events import Event, Finished
from merging.folders.room import parse_bytes
from merging.importances.artefact import Importance
from merging.methods import Profile, Scope, get_method
from merging.output import USUAL, Files, write_merge
from merging.plan import Plan, make_plan, plan_sources
from merging.recipe import IGNORED_PARAMETERS, ModelEntry, Recipe, read_text
from merging.reports.full import checked_scope, full_report
from merging.reports.report import Report
from merging.sources import Remote
from merging.values import value_problem

if TYPE_CHECKING:
    from merging.hub.client import Hub


def check(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    memory: int | str | None = None,
    hub: Hub | None = None,
) -> Plan:
    """Plan a merge from headers alone, without reading a weight.

    A path is read as a YAML recipe; then mistakes in the file and in the models are listed together. With `out` the
    output folder and the disk are checked as well. `memory` (bytes, or as `512MB`) is what the tensors of the merge may take;
    torch itself comes on top. It changes what is read how often, and at most the last bit of methods that need a sum over
    a tensor. With `hub` Hub models that are not here are looked at there, by their headers; without it nothing calls out.

    Raises:
        MergingError: listing every problem.
    """
    target = Path(out) if out is not None else None
    remote = hub.look if hub is not None else None
    if isinstance(recipe, Recipe):
        return make_plan(recipe, out=target, memory=parse_bytes(memory), remote=remote)
    return plan_file(recipe, out=target, memory=parse_bytes(memory), remote=remote)


def plan_file(
    path: str | Path, out: Path | None = None, memory: int | None = None, remote: Remote | None = None
) -> Plan:
    """`check` for a recipe file."""
    path = Path(path)
    recipe, problems = Recipe.parse(read_text(path), name=str(path), folder=path.parent)
    if recipe is None:
        raise PlanError(problems)
    return make_plan(recipe, out=out, earlier=problems, memory=memory, remote=remote)


def run(
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    memory: int | str | None = None,
    files: Files = USUAL,
) -> Iterator[Event]:
    """Merge into the folder `out`: `Progress` events, then one `Finished`. Closing the iterator cancels cleanly.
    `memory` as for `check`; `files` says how large the files of weights may be and what is written beside them.

    Raises:
        MergingError: before anything is read if the recipe cannot run, or during the run; `out` stays as it was.
    """
    return write_merge(check(recipe, out, memory=memory), Path(out), device=device, files=files)


def merge(
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    memory: int | str | None = None,
    files: Files = USUAL,
) -> Path:
    """`run` without the events; the path of the finished folder."""
    for event in run(recipe, out, device=device, memory=memory, files=files):
        if isinstance(event, Finished) and event.path is not None:
            return event.path
    raise AssertionError("a run ends with Finished")


def inspect(
    recipe: Recipe | str | Path,
    *,
    device: str = "auto",
    sample: float | None = None,
    density: float | None = None,
    scope: Scope | None = None,
) -> Report:
    """Measure the experts' changes and conflicts, and what the recipe would make of them, without merging.

    Args:
        sample: None looks at every element; a share in (0, 1) at a stratified sample of about so many: some rows of every
            large tensor, small ones whole. It is held in at most 2 GB of memory: of a share under a fifth that takes
            more, as many rows as fit are looked at, of a larger one every element, and a warning says so. Then
            `report.sample.error`, `report.preview.sample.error` and `report.trim.sample.error` give the standard error
            of a number, from eight independent groups of rows, `margin` half its 95 % interval, and the warnings that
            of every relative change. Of a method whose result rows cannot tell (DPPA, Model Stock, APL's cuts by
            importance) there is no preview, and a warning says so.
        density, scope: of the trim; by default those of the recipe, and no trim where it keeps everything.

    Raises:
        MergingError: the recipe cannot run, has no base, or has slices of different models; a wrong share or density.
    """
    events = full_report(
        check(recipe), device=device, sample=sample, density=density, scope=checked_scope(scope)
    )
    for event in events:
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
    importance: Importance | str | Path | None = None,
    **parameters: Any,
) -> dict[str, torch.Tensor]:
    """Merge dictionaries of tensors in memory.

    Args:
        base: tensors of the base; None for a method that needs none.
        models: one dictionary an expert, with the base's names and shapes.
        method: a key of `METHODS`.
        weight: one number, or one for each model.
        importance: what `merging.importance` measured on these models, or the path of its file; for methods that need it.
        parameters: the method's parameters by their YAML names, `lambda` also as `lambda_`; a per-model parameter
            takes one value or one for each model.

    Returns:
        Merged tensors in the base's dtype (the first model's without a base); under `profile="mergekit"` in the dtype
        that base and models promote to.

    Raises:
        MergingError: unknown method or parameter, values out of range, tensors that do not fit.
    """
    if isinstance(models, Mapping):
        raise MergingError("models: is one dictionary; give a list with a dictionary for each expert.")
    models = list(models)
    recipe = _recipe_in_memory(len(models), method, profile, _plain(seed), _spelled(parameters, weight))
    sources = [
        (entry, StateDict(tensors, entry.model)) for entry, tensors in zip(recipe.models, models, strict=True)
    ]
    known = Importance.load(importance) if isinstance(importance, str | Path) else importance
    plan = plan_sources(
        recipe, StateDict(base, "base") if base is not None else None, sources, importance=known
    )
    sink = MemorySink([tensor.info for tensor in plan.tensors])
    for _ in run_plan(plan, sink, device="cpu"):
        pass
    return sink.tensors


def _spelled(parameters: dict[str, Any], weight: Any) -> dict[str, Any]:
    """The parameters by their YAML names, arrays and tensors as lists."""
    if "lambda" in parameters and "lambda_" in parameters:
        raise MergingError("lambda: given twice, as lambda and as lambda_; give it once.")
    spelled = {
        "lambda" if name == "lambda_" else name: value
        for name, value in parameters.items()
        if name not in IGNORED_PARAMETERS
    }
    if weight is not None:
        spelled["weight"] = weight
    return {name: _plain(value) for name, value in spelled.items()}


def _plain(value: Any) -> Any:
    """Arrays, tensors and tuples as lists, their numbers as Python's."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _recipe_in_memory(
    count: int, method: str, profile: Profile, seed: int, parameters: dict[str, Any]
) -> Recipe:
    """A recipe over `count` nameless models; a sequence for a per-model parameter is one value for each of them."""
    own: list[dict[str, Any]] = [{} for _ in range(count)]
    shared = dict(parameters)
    for name in get_method(method).per_model() & parameters.keys():
        value = parameters[name]
        if isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) != count:
                raise MergingError(f"{name}: {len(value)} values for {count} models; give one for each.")
            for entry, number in zip(own, shared.pop(name), strict=True):
                entry[name] = number
    for name, value in [*shared.items(), *(item for entry in own for item in entry.items())]:
        if problem := value_problem(value):
            raise ParameterError(f"{name}: {problem}.")
    entries = [ModelEntry(model=f"model {number}", parameters=values) for number, values in enumerate(own, 1)]
    try:
        return Recipe(
            merge_method=method, models=tuple(entries), parameters=shared, profile=profile, seed=seed
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ParameterError(
            f"{first['loc'][0]}: {first['input']!r} is not possible; {first['msg']}."
        ) from None
