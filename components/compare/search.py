"""What the searches of the Compare tab have in common as jobs: a table of results that grows."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from components.figures.scores import TaskScore
from merging import Progress
from merging.evaluation import SuiteResult
from merging.job_records import Partial
from merging.judging.intervals import wilson
from merging.judging.suites import Suite


@dataclass
class Search(ABC):
    """A job at work: `found` counts the results, `done` of `total` says how far it is, `doing` what is under way."""

    suites: tuple[Suite, ...]
    started: float = field(default_factory=time.perf_counter)
    found: int = 0
    done: int = 0
    total: int = 1
    doing: str = ""
    remarks: list[str] = field(default_factory=list)

    @abstractmethod
    def steps(self) -> Iterator[object]:
        """The work, which yields several times a second and stops when it is closed."""

    @abstractmethod
    def results(self) -> dict[str, Any]:
        """What was found so far, as JSON."""

    def share(self) -> float:
        """How far it is, from 0 to 1."""
        return self.done / self.total

    def table(self) -> dict[str, Any]:
        """The results with what was asked; `mark` tells one state from the next."""
        return {
            "mark": self.found,
            "suites": [[suite.name, suite.fingerprint, suite.scoring, len(suite)] for suite in self.suites],
            "remarks": list(self.remarks),
            "seconds": time.perf_counter() - self.started,
            **self.results(),
        }

    def progress(self) -> Progress:
        return Progress(self.doing, 0, 0, 0, min(1.0, self.share()), time.perf_counter() - self.started)


def follow(search: Search) -> Iterator[Any]:
    """The events of the job: the table whenever there is more of it, progress in between, in the end the table."""
    shown = 0
    with closing(search.steps()) as steps:  # type: ignore[type-var]
        for _ in steps:
            if search.found != shown:
                shown = search.found
                yield Partial(search.table())
            yield search.progress()
    yield search.table()


def counted(results: Sequence[SuiteResult]) -> list[list[int]]:
    """Correct replies and items of every suite, as a table keeps them."""
    return [[sum(item.correct for item in result.items), result.n] for result in results]


def task_score(correct: int, n: int) -> TaskScore:
    """A score with its interval, from what a table keeps."""
    interval = wilson(correct, n)
    return TaskScore(correct / n if n else 0.0, interval.low, interval.high, n)


def mean(scores: Sequence[Sequence[int]]) -> float:
    """The mean score over all suites, each counting alike."""
    return sum(correct / n for correct, n in scores) / len(scores)


def task_names(result: dict[str, Any]) -> list[str]:
    """The suites of a table by their short names: `math` for `math/test`."""
    names = [name.split(" (")[0] for name, *_ in result["suites"]]
    short = [name.partition("/")[0] for name in names]
    return short if len(set(short)) == len(short) else names


def told(result: dict[str, Any], scores: Sequence[Sequence[int]]) -> str:
    """Each task's score in words."""
    pairs = zip(task_names(result), scores, strict=True)
    return ", ".join(f"{name} {correct / n:.0%}" for name, (correct, n) in pairs)
