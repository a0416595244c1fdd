"""Merges that are made to be judged: scored on task suites in memory where the family fits, and then forgotten."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from merging.devices import resolve_device
from merging.errors import MergingError, PlanError
from merging.evaluation import SuiteResult, evaluate
from merging.events import Finished
from merging.executors import Inline, Threads, wanted_until, workers_here
from merging.heartbeats import Stopped, heartbeats
from merging.inference import LoadedModel
from merging.judging.suites import Suite
from merging.memory.unsaved import load_unsaved
from merging.memory.whatif import Residents
from merging.output import write_merge
from merging.plan import Plan, make_plan
from merging.recipe import Recipe

SIDE_BY_SIDE = 2
"""Small models that are scored at the same time, one core each: a single one leaves the second core idle."""
Stop = Callable[[], bool]
T = TypeVar("T")
Job = Callable[[Stop], T]
"""What is to be done, given a way to ask whether it is still wanted."""


def never() -> bool:
    """Goes on to the end."""
    return False


class Trials:
    """Scores merges and models on task suites, and keeps none of them.

    Args:
        residents: the families in memory; a family that does not fit is merged into a temporary folder.
        device: where the models answer.
        scratch: the folder for temporary ones; by default the system's.
        load: how a model that is there already is loaded onto a device, such as from a cache.
    """

    def __init__(
        self,
        residents: Residents,
        device: str = "auto",
        scratch: Path | None = None,
        load: Callable[[str | Path, str], LoadedModel] = LoadedModel.load,
    ):
        self.residents, self.load = residents, load
        self.scratch = scratch
        self.device = str(resolve_device(device))

    def score(
        self, merge: Recipe | Plan, suites: Sequence[Suite], stopped: Stop | None = None
    ) -> tuple[SuiteResult, ...]:
        """The results of a merge on every suite.

        Raises:
            MergingError: the recipe cannot run, the merge fails, or the result makes no model.
            Stopped: `stopped` said so before the end.
        """
        stopped = stopped or never
        plan = merge if isinstance(merge, Plan) else make_plan(merge)
        with self._merged(plan, stopped) as model:
            return results(model, suites, stopped)

    def score_model(
        self, folder: str | Path, suites: Sequence[Suite], stopped: Stop = never
    ) -> tuple[SuiteResult, ...]:
        """The results of the model in a folder, such as a parent; raises as `score`."""
        go_on(stopped)
        return results(self.load(folder, self.device), suites, stopped)

    def side_by_side(self, plan: Plan) -> int:
        """How many trials of such a plan are made at once: several of a small family, where there are cores for them."""
        small = self.device == "cpu" and self.residents.fits(plan)
        return min(SIDE_BY_SIDE, workers_here()) if small else 1

    def each(self, jobs: Sequence[Job[T]], at_once: int = 1) -> Iterator[T | None]:
        """What comes of every job, in their order, and None every quarter of a second in between.

        Closing the iterator stops the jobs within a second. Results do not depend on `at_once`.
        """
        stop = threading.Event()

        def work(job: Job[T]) -> T:
            go_on(stop.is_set)
            return job(stop.is_set)

        executor = Threads(at_once, "trial") if at_once > 1 else Inline()
        yield from heartbeats(executor.map(work, jobs), stop)

    @contextmanager
    def _merged(self, plan: Plan, stopped: Stop) -> Iterator[LoadedModel]:
        go_on(stopped)
        if self.residents.fits(plan):
            yield load_unsaved(plan, self.residents, self.device)
            return
        with tempfile.TemporaryDirectory(
            prefix=".trial-", suffix=".partial", dir=self.scratch, ignore_cleanup_errors=True
        ) as folder:
            out = Path(folder) / "model"
            with wanted_until(stopped), closing(write_merge(plan, out, device=self.device)) as events:  # type: ignore[type-var]
                for event in events:
                    if not isinstance(event, Finished):
                        go_on(stopped)
            yield LoadedModel.load(out, self.device)


def results(model: LoadedModel, suites: Sequence[Suite], stopped: Stop = never) -> tuple[SuiteResult, ...]:
    """A model's results on every suite.

    Raises:
        Stopped: `stopped` said so before the end.
    """
    found = []
    for suite in suites:
        go_on(stopped)
        found.append(evaluate(model, suite, stopped=stopped))
    go_on(stopped)
    return tuple(found)


def go_on(stopped: Stop) -> None:
    """Raise `Stopped` once nobody waits any more."""
    if stopped():
        raise Stopped


def sentence(error: MergingError) -> str:
    """Why a trial failed: of a plan's problems the first."""
    return error.problems[0] if isinstance(error, PlanError) and error.problems else str(error)


def mean_score(found: Sequence[SuiteResult]) -> float:
    """The mean of the suites' scores, each counting alike, 0 to 1."""
    return sum(result.score for result in found) / len(found) if found else 0.0
