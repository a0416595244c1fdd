"""APL's importance of a model's parts: measured exactly by putting them back, or estimated by gradients.

Activated Parameter Locating (2408.09485) is rebuilt here from the paper's abstract and public digests: its full text
was not available to us and its code is not public.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from merging.checkpoint import Checkpoint
from merging.devices import resolve_device
from merging.errors import MergingError, OutputError, PlanError, did_you_mean
from merging.events import Progress
from merging.folders.compatibility import compare
from merging.heartbeats import heartbeats
from merging.importances.agreement import summarise
from merging.importances.artefact import (
    At,
    Description,
    ExpertFacts,
    How,
    Importance,
    Parent,
    fingerprint,
    head_settings,
)
from merging.importances.attribution import MovedModel, carried
from merging.importances.calibration import AnswerTask, Calibration
from merging.importances.measuring import ExpertMeasures, Measured, Measurement, Step
from merging.inference import LoadedModel
from merging.judging.suites import Suite
from merging.partitions import Granularity, Partitions, make_partitions
from merging.recipe import Recipe, read_text
from merging.sources import open_models

TINY = 1 << 24
"""Parameters of a model that one core runs faster than several."""

Data = str | Path | Suite | Mapping[str, str | Path | Suite]
"""Calibration examples: of all experts, or of each one by its name."""


def importance(
    recipe: Recipe | str | Path,
    calibration: Data,
    *,
    how: How = "gradient",
    partition: Granularity = "module",
    at: At = "base",
    device: str = "auto",
    cache: str | Path | None = None,
    **more: Any,
) -> Importance:
    """How much each part of each expert matters to its task: APL's importance (2408.09485, a reconstruction).

    Args:
        recipe: base and experts; its method does not matter.
        calibration: a JSON-lines file of prompt and answer (or a `Suite`) for all experts, or a table from an
            expert's name to its own.
        how: `gradient` |Σ δᵢgᵢ| over a partition, or `exact` |ℓ(θt with P put back to θ0) − ℓ(θt)|.
        partition: model, layer, module, head or row.
        at: where gradients are taken: base, expert, midpoint, or trapezoid (mean of base's and expert's).
        cache: a folder that keeps results by content; the same question again is read from there.
        more: the other fields of `Measurement`.

    Raises:
        MergingError: models or data do not fit, or an option is unknown.
    """
    known = Measurement.__dataclass_fields__
    for name in more:
        if name not in known:
            raise MergingError(f"importance: there is no option '{name}'.{did_you_mean(name, list(known))}")
    wanted = Measurement(how=how, partition=partition, at=at, **more)
    for event in measure_importance(recipe, calibration, wanted, device=device, cache=cache):
        if isinstance(event, Importance):
            return event
    raise AssertionError("a measurement ends with Importance")


def measure_importance(
    recipe: Recipe | str | Path,
    calibration: Data,
    wanted: Measurement | None = None,
    *,
    device: str = "auto",
    cache: str | Path | None = None,
) -> Iterator[Progress | Importance]:
    """`importance` step by step: `Progress` events, then the artefact. Closing the iterator cancels.

    Raises:
        MergingError: as `importance`.
    """
    wanted = wanted or Measurement()
    run = _Run(*_open(recipe), wanted, str(resolve_device(device)))
    data = run.calibrations(calibration)
    kept = run.file(data, cache) if cache is not None else None
    if kept is not None and (found := _from_cache(kept)) is not None:
        yield found
        return
    try:
        result = yield from run.measure(data)
    except torch.OutOfMemoryError:
        raise MergingError(
            f"importance: the memory of {run.device} does not hold the model in float32 with one batch. Use device cpu, or "
            "shorter examples."
        ) from None
    yield _into_cache(kept, result) if kept is not None else result


def kept_at(recipe: Recipe | str | Path, calibration: Data, wanted: Measurement, cache: str | Path) -> Path:
    """The file in which `measure_importance` keeps this result, whether or not it is there; nothing is run.

    Raises:
        MergingError: as `importance`.
    """
    run = _Run(*_open(recipe), wanted, "cpu")
    return run.file(run.calibrations(calibration), cache)


def keep_importance(
    recipe: Recipe | str | Path, calibration: Data, wanted: Measurement, *, device: str, cache: str | Path
) -> Iterator[Progress | Path]:
    """`measure_importance` into a cache, unless it is there already: `Progress` events, then the file.

    Raises:
        MergingError: as `importance`, or there is no room to keep it.
    """
    with closing(measure_importance(recipe, calibration, wanted, device=device, cache=cache)) as events:  # type: ignore[type-var]
        for event in events:
            if isinstance(event, Progress):
                yield event
    file = kept_at(recipe, calibration, wanted, cache)
    if not file.is_file():
        raise MergingError("Importance was measured but cannot be kept. Free some disk space.")
    yield file


@contextmanager
def _one_thread_if_tiny(model: Checkpoint) -> Iterator[None]:
    """While it lasts, threads that start compute on one core if the model is so small that sharing a matrix between
    cores costs more than it saves (measured on the demo family: seven times the processor time)."""
    before = torch.get_num_threads()
    if model.parameters < TINY:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cache_folder() -> Path:
    """Where importance is kept between runs: under the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mergescope" / "importance"


def _open(recipe: Recipe | str | Path) -> tuple[Checkpoint, dict[str, Checkpoint], dict[str, str]]:
    """Base, experts by short name, and each expert's name in the recipe."""
    problems: list[str] = []
    if not isinstance(recipe, Recipe):
        path = Path(recipe)
        parsed, problems = Recipe.parse(read_text(path), name=str(path), folder=path.parent)
        if parsed is None or problems:
            raise PlanError(problems)
        recipe = parsed
    base, experts = open_models(recipe, problems)
    if base is None and not problems:
        problems.append("importance is about changes from a base; name it under 'base_model'.")
    for entry, source in experts:
        if base is not None:
            problems += compare(base, source, entry.model)[0]
    if not experts and not problems:
        problems.append("importance: the recipe names no expert; list models under 'models'.")
    for model in (base, *(source for _, source in experts)):
        if isinstance(model, Checkpoint) and not model.config:
            problems.append(f"{model.label}: has no config.json, so it cannot be run to measure importance.")
    if problems:
        raise PlanError(list(dict.fromkeys(problems)))
    assert base is not None
    labels = [source.label for _, source in experts]
    opened, written = {}, {}
    for entry, source in experts:
        assert isinstance(source, Checkpoint)
        name = source.label if labels.count(source.label) == 1 else entry.model
        opened[name], written[name] = source, entry.model
    return base, opened, written


@dataclass
class _Run:
    """One measurement over all experts of a recipe."""

    base: Checkpoint
    experts: dict[str, Checkpoint]
    written: dict[str, str]
    wanted: Measurement
    device: str
    started: float = field(default_factory=time.perf_counter)
    stop: threading.Event = field(default_factory=threading.Event)

    def calibrations(self, data: Data) -> dict[str, Calibration]:
        """The examples of each expert, by its short name."""
        if not isinstance(data, Mapping):
            shared = Calibration.of(data, self.wanted.samples)
            return dict.fromkeys(self.experts, shared)
        names = {
            **{written: name for name, written in self.written.items()},
            **{name: name for name in self.experts},
        }
        if unknown := [name for name in data if name not in names]:
            raise MergingError(
                f"calibration: there is no expert '{unknown[0]}'; there are {', '.join(self.experts)}."
                + did_you_mean(unknown[0], list(self.experts))
            )
        given = {names[name]: value for name, value in data.items()}
        if missing := [name for name in self.experts if name not in given]:
            raise MergingError(
                f"calibration: nothing for the expert '{missing[0]}'. Give every expert examples of its own task: "
                f"{missing[0]}=FILE."
            )
        return {name: Calibration.of(given[name], self.wanted.samples) for name in self.experts}

    def file(self, data: Mapping[str, Calibration], cache: str | Path) -> Path:
        """Where the result is kept in a cache folder."""
        return Path(cache) / f"{self.key(data)}.safetensors"

    def key(self, data: Mapping[str, Calibration]) -> str:
        """A hash of everything the result follows from."""
        experts = [
            (name, fingerprint(source), data[name].fingerprint) for name, source in self.experts.items()
        ]
        wanted = asdict(self.wanted) | ({"at": None} if self.wanted.how == "exact" else {})
        content = [Description.model_fields["version"].default, fingerprint(self.base), experts, wanted]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def measure(self, data: Mapping[str, Calibration]) -> Generator[Progress, None, Importance]:
        """All experts, one after the other; at any time one model is in memory."""
        shapes, config = carried(self.base), head_settings(self.base.config)
        partitions = make_partitions(shapes, config, self.wanted.partition)
        measured = []
        for number, name in enumerate(self.experts):
            last = Step(f"{name}: loading", 0, 0)
            beats = heartbeats(self._measures(name, data[name], partitions), self.stop)
            with _one_thread_if_tiny(self.base), closing(beats) as steps:
                for step in steps:
                    if isinstance(step, Measured):
                        measured.append(step)
                        continue
                    last = step or last
                    yield self._progress(number, last)
            self.stop.clear()
        return Importance(
            self._description(shapes, config, data, measured),
            torch.stack([found.signed for found in measured]),
            torch.stack([found.change for found in measured]),
            tuple(found.elements for found in measured if found.elements is not None) or None,
        )

    def _measures(
        self, name: str, examples: Calibration, partitions: Partitions
    ) -> Iterator[Step | Measured]:
        """Load one expert and measure it; its model is gone when this ends."""
        source = self.experts[name]
        yield Step(f"{name}: loading", 0, 0)
        loaded = LoadedModel.of_checkpoint(source.origin)
        if loaded.reads_apart:
            raise MergingError(
                f"{name}: importance is measured on models that continue a text; an encoder-decoder cannot be measured yet."
            )
        task = AnswerTask.of(examples, loaded)
        moved = MovedModel(loaded.model.to(self.device), self.base, source, self.stop)
        for step in ExpertMeasures(name, moved, task, partitions, self.wanted).run():
            yield replace(step, stage=f"{name}: {step.stage}") if isinstance(step, Step) else step

    def _progress(self, number: int, step: Step) -> Progress:
        seconds = time.perf_counter() - self.started
        share = (number + (step.share if step.total else 0.0)) / len(self.experts)
        return Progress(step.stage, step.done, step.total, 0, share, seconds)

    def _description(
        self,
        shapes: dict[str, tuple[int, ...]],
        config: dict[str, Any],
        data: Mapping[str, Calibration],
        measured: Sequence[Measured],
    ) -> Description:
        wanted = self.wanted
        facts = [
            ExpertFacts(
                name=name,
                fingerprint=fingerprint(source),
                data=data[name].fingerprint,
                base_loss=found.base_loss,
                expert_loss=found.expert_loss,
            )
            for (name, source), found in zip(self.experts.items(), measured, strict=True)
        ]
        reports = [found.agreement for found in measured if found.agreement is not None]
        samples = max(len(examples.items) for examples in data.values())
        return Description(
            how=wanted.how,
            at=wanted.at if wanted.how == "gradient" else None,
            partition=wanted.partition,
            elementwise=wanted.elementwise,
            samples=samples,
            base=Parent(name=self.base.label, fingerprint=fingerprint(self.base)),
            experts=tuple(facts),
            shapes=shapes,
            config=config,
            agreement=summarise(wanted.score, reports, samples, wanted.seed) if reports else None,
        )


def _from_cache(file: Path) -> Importance | None:
    """A kept result; None where there is none, or it is damaged."""
    try:
        return Importance.load(file) if file.is_file() else None
    except MergingError:
        file.unlink(missing_ok=True)
        return None


def _into_cache(file: Path, result: Importance) -> Importance:
    """The result as it is kept; the result itself where there is no room to keep it."""
    try:
        result.save(file)
        return Importance.load(file)
    except OutputError:
        return result
