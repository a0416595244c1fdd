"""Measuring importance as a job, and finding again what one measured; the files are kept by content."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from components.family import Family
from components.importance.examples import demo_file, read_all, usual_source
from components.server.backend import job_store
from components.server.settings import Settings
from components.server.zero_gpu import Size, on_gpu
from merging import Importance, MergingError
from merging.importance import keep_importance
from merging.importances.agreement import Agreement
from merging.importances.measuring import Measurement
from merging.job_records import Job
from merging.judging.suites import Suite
from merging.sources import open_model

KIND = "importance"
MAPPED = "module"
"""The partition that the maps show."""
CACHE = ".importance"
_KEPT = re.compile(r"[0-9a-f]{32}\.safetensors")
DETAILS = ("head", "row")
"""The partitions that the story of a cell shows."""


@dataclass(frozen=True)
class Request:
    """What to measure: `wanted` for the units that a merge shall use, and heads and rows as well with `details`."""

    family: Family
    examples: Mapping[str, Suite]
    wanted: Measurement
    details: bool

    @property
    def measurements(self) -> dict[str, Measurement]:
        """Each partition with its measurement; the agreement report belongs to the map's."""
        units = dict.fromkeys((MAPPED, self.wanted.partition))
        plain = replace(self.wanted, elements=False, agreement=False)
        found = {unit: replace(plain, partition=unit) for unit in units}
        found[self.wanted.partition] = replace(found[self.wanted.partition], elements=self.wanted.elements)
        found[MAPPED] = replace(found[MAPPED], agreement=self.wanted.agreement)
        if self.details:
            gradient = replace(plain, how="gradient", sample=None)
            found |= {unit: replace(gradient, partition=unit) for unit in DETAILS if unit not in found}
        return found


@dataclass(frozen=True)
class Found:
    """What a finished job measured on a family: a file for each partition, `unit` the one that merges use.

    `places` says where each expert of the family stands in the files.
    """

    job: str
    family: Family
    folder: str
    files: tuple[tuple[str, str], ...]
    unit: str
    places: tuple[int, ...]
    compared: str = ""
    """The file with the agreement report on these scores, if there is one."""

    @property
    def path(self) -> Path:
        """The file a merge uses."""
        return Path(self.folder) / dict(self.files)[self.unit]

    def load(self, unit: str) -> Importance | None:
        """The importance of a partition, where it was measured."""
        name = dict(self.files).get(unit)
        return load(Path(self.folder) / name) if name is not None else None

    @property
    def agreement(self) -> Agreement | None:
        """How the map's scores compare with exact intervention, if that was measured."""
        known = load(Path(self.folder) / self.compared) if self.compared else None
        return known.agreement if known is not None else None


def cache_of(settings: Settings) -> Path:
    """Where importance is kept by content; its name is no owner's."""
    return settings.runs.resolve() / CACHE


def work(settings: Settings, request: Request) -> Callable[[Path], Iterator[Any]]:
    """The job: progress over all partitions, in the end a table of the files they are kept in."""
    models = (request.family.base, *request.family.experts)
    parameters = sum(open_model(model).parameters for model in models)
    size = Size(parameters, rounds=len(request.measurements) * request.wanted.samples, gradients=True)
    return on_gpu(size, _measure, settings, request)


def _measure(settings: Settings, request: Request, out: Path) -> Iterator[Any]:
    cache, recipe = cache_of(settings), request.family.recipe()
    started, wanted = time.perf_counter(), request.measurements
    files: dict[str, str] = {}
    for number, (unit, measurement) in enumerate(wanted.items()):
        events = keep_importance(recipe, request.examples, measurement, device=settings.device, cache=cache)
        with closing(events) as steps:  # type: ignore[type-var]
            for event in steps:
                if isinstance(event, Path):
                    files[unit] = event.name
                    continue
                share = (number + event.share) / len(wanted)
                stage = f"{unit}s, {event.stage}"
                yield replace(event, stage=stage, share=share, seconds=time.perf_counter() - started)
    yield {
        "files": files,
        "unit": request.wanted.partition,
        "base": open_model(request.family.base).fingerprint,
        "experts": [open_model(expert).fingerprint for expert in request.family.experts],
        "seconds": time.perf_counter() - started,
    }


def demo_examples(settings: Settings, family: Family) -> dict[str, Suite] | None:
    """The examples that come with the demo's experts; None for other models."""
    if not family.experts or any(demo_file(settings, expert) is None for expert in family.experts):
        return None
    return read_all(settings, family, [usual_source(settings, expert) for expert in family.experts])


def find(settings: Settings, owner: str, family: Family) -> Found | None:
    """The newest importance this owner measured on just these models; nothing is run."""
    jobs = [job for job in job_store(settings).list(owner) if job.kind == KIND and job.state == "done"]
    if not jobs or not family.experts:
        return None
    try:
        base = open_model(family.base).fingerprint
        experts = [open_model(expert).fingerprint for expert in family.experts]
    except (MergingError, OSError):
        return None
    fitting = [one for job in jobs if (one := _fits(settings, job, family, base, experts))]
    return replace(fitting[0], compared=_compared(fitting)) if fitting else None


def _compared(fitting: list[Found]) -> str:
    """The newest file that compares the first one's scores with exact intervention."""
    shown = fitting[0].load(MAPPED)
    if shown is None:
        return ""
    scores = shown.description.model_copy(update={"agreement": None})
    for one in fitting:
        other = one.load(MAPPED)
        if other is None or other.agreement is None:
            continue
        if other.description.model_copy(update={"agreement": None}) == scores:
            return dict(one.files)[MAPPED]
    return ""


def _fits(settings: Settings, job: Job, family: Family, base: str, experts: list[str]) -> Found | None:
    result, folder = job.result or {}, cache_of(settings)
    known = result.get("experts", [])
    if result.get("base") != base or any(expert not in known for expert in experts):
        return None
    files = tuple(result["files"].items())
    if not all((folder / name).is_file() for _, name in files):
        return None
    return Found(job.id, family, str(folder), files, result["unit"], tuple(map(known.index, experts)))


def is_kept(path: str) -> bool:
    """Whether a recipe's path looks like a file of `cache_of`; others are not opened for people on the page."""
    file = Path(path)
    return file.parent.name == CACHE and _KEPT.fullmatch(file.name) is not None


@lru_cache(maxsize=24)
def load(path: Path) -> Importance | None:
    """An artefact of the cache, whose name says its content; None where it is gone or damaged."""
    try:
        return Importance.load(path)
    except MergingError:
        return None
