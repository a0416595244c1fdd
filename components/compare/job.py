"""Measuring scores as a job: parents always, merges as chosen; what is known already is not measured again."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.compare.suites import Ruler, Text
from components.server.backend import run_history
from components.server.settings import Settings
from components.server.zero_gpu import Size, on_gpu
from merging import MergingError, Progress
from merging.evaluation import SuiteResult, evaluate, perplexity
from merging.executors import wanted_until
from merging.heartbeats import heartbeats
from merging.inference import LoadedModel
from merging.judging.suites import Suite

KIND = "scores"
SCRATCH = ".scores.partial"
"""Where a recipe is merged whose models do not fit into memory; after a crash the job store clears such folders."""

Load = Callable[[Path], LoadedModel]


@dataclass(frozen=True)
class Subject:
    """Somebody who is measured: `load` gets a folder for what it has to write; `record` makes a merge a run."""

    key: str
    name: str
    load: Load
    record: Callable[[], object] | None = None
    parameters: int = 0


@dataclass(frozen=True)
class Request:
    """Who is measured by what, for whom."""

    owner: str
    subjects: tuple[Subject, ...]
    ruler: Ruler


def missing(settings: Settings, request: Request) -> dict[str, tuple[Suite | Text, ...]]:
    """What of a request the history does not know yet, by subject."""
    history, keys = run_history(settings), [subject.key for subject in request.subjects]
    known = {*history.totals(request.owner, keys), *history.perplexities(request.owner, keys)}
    things = (*request.ruler.suites, *request.ruler.texts)
    found = {
        subject.key: tuple(thing for thing in things if (subject.key, thing.fingerprint) not in known)
        for subject in request.subjects
    }
    return {key: things for key, things in found.items() if things}


def work(settings: Settings, request: Request) -> Callable[[Path], Iterator[Any]]:
    """The job: progress, in the end how much was measured and what is to be said of it."""
    subjects, ruler = request.subjects, request.ruler
    answers = len(subjects) * sum(map(len, ruler.suites))
    parameters = sum(subject.parameters for subject in subjects)
    return on_gpu(Size(parameters, answers=answers), _follow, settings, request)


def _follow(settings: Settings, request: Request, out: Path) -> Iterator[Any]:
    measuring = _Measuring(settings, request, out.parent / SCRATCH)
    with closing(heartbeats(measuring.steps(), measuring.stop)) as beats:
        for _ in beats:
            yield measuring.progress()
    yield {
        "measured": measuring.measured,
        "remarks": measuring.remarks,
        "seconds": time.perf_counter() - measuring.started,
    }


@dataclass
class _Measuring:
    """A job at work: its thread writes how far it is, whoever follows it reads that."""

    settings: Settings
    request: Request
    scratch: Path
    stop: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.perf_counter)
    measured: int = 0
    remarks: list[str] = field(default_factory=list)
    models: int = 1
    model: int = 0
    things: int = 1
    thing: int = 0
    share: float = 0.0
    """Of the one that is measured now."""
    doing: str = ""

    def progress(self) -> Progress:
        """How far it is, as `2/5 models · 3/4 tasks`; what it counts as tensors are scores."""
        done = (self.model + min(1.0, (self.thing + self.share) / self.things)) / self.models
        model, thing = min(self.model + 1, self.models), min(self.thing + 1, self.things)
        stage = f"{model}/{self.models} models · {thing}/{self.things} tasks"
        seconds = time.perf_counter() - self.started
        stage = f"{stage} · {self.doing}" if self.doing else stage
        return Progress(stage, self.measured, self.models * self.things, 0, min(1.0, done), seconds)

    def steps(self) -> Iterator[None]:
        """Measure everybody; what one of them cannot do does not spoil the others."""
        todo = missing(self.settings, self.request)
        waiting = [subject for subject in self.request.subjects if subject.key in todo]
        self.models = max(1, len(waiting))
        for self.model, subject in enumerate(waiting):
            try:
                with wanted_until(self.stop.is_set):
                    yield from self._one(subject, todo[subject.key])
            except MergingError as error:
                self.remarks.append(f"{subject.name}: {error}")
            finally:
                shutil.rmtree(self.scratch, ignore_errors=True)
        self.model = self.models
        if waiting and not self.measured and self.remarks:
            raise MergingError(" ".join(self.remarks))

    def _one(self, subject: Subject, things: tuple[Suite | Text, ...]) -> Iterator[None]:
        """Measure one model by all that is missing of it."""
        self.things, self.thing, self.share = len(things), 0, 0.0
        self.doing = f"loading {subject.name}"
        yield
        model = subject.load(self.scratch)
        if subject.record is not None:
            subject.record()
        for self.thing, thing in enumerate(things):
            self.share, self.doing = 0.0, f"{subject.name} on {thing.name}"
            yield
            self._score(subject, model, thing)
            self.measured += 1
        self.thing = self.things

    def _score(self, subject: Subject, model: LoadedModel, thing: Suite | Text) -> None:
        """Measure one model by one thing and keep what came of it."""
        started, owner, history = time.perf_counter(), self.request.owner, run_history(self.settings)
        if isinstance(thing, Text):
            found = perplexity(
                model, thing.content, name=thing.name, progress=self._report, stopped=self.stop.is_set
            )
            history.put_perplexity(owner, subject.key, found, thing.content, time.perf_counter() - started)
            return
        result = evaluate(model, thing, progress=self._report, stopped=self.stop.is_set)
        history.put_score(owner, subject.key, result, thing, time.perf_counter() - started)
        self.remarks += _told(subject, result)

    def _report(self, done: int, total: int) -> None:
        self.share = done / total if total else 1.0


def _told(subject: Subject, result: SuiteResult) -> list[str]:
    """What a visitor should know of how a score came about."""
    found = []
    if result.too_long:
        found.append(
            f"{subject.name} on {result.suite}: {result.too_long} of {result.n} prompts are longer than the model reads; "
            "they count as wrong."
        )
    if result.unended * 2 > result.n:
        found.append(
            f"{subject.name} on {result.suite}: {result.unended} of {result.n} replies did not end by themselves."
        )
    return found
