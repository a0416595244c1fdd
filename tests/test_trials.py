"""Merges scored in memory or by a folder that goes away again, two side by side, stopped within a second."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

import merging
from merging.errors import MergingError
from merging.evaluation import evaluate
from merging.heartbeats import Stopped
from merging.inference import LoadedModel
from merging.judging.suites import Suite
from merging.judging.trials import Trials, mean_score
from merging.memory.whatif import Residents
from merging.recipe import ModelEntry, Recipe

DEMO = "examples/demo"


def demo_recipe(method="task_arithmetic", experts=("math", "code", "words"), **keys) -> Recipe:
    return Recipe(
        merge_method=method,
        profile="paper",
        base_model=f"{DEMO}/base",
        models=tuple(ModelEntry(model=f"{DEMO}/{name}") for name in experts),
        **keys,
    )


def few(task: str, count: int = 4) -> Suite:
    suite = Suite.load(f"{DEMO}/data/{task}/validation.jsonl", task)
    return Suite(task, suite.items[:count])


@pytest.fixture(scope="module")
def suites() -> list[Suite]:
    return [few("math"), few("words")]


def test_a_trial_has_the_scores_of_the_written_merge(suites, tmp_path):
    recipe = demo_recipe()
    model = LoadedModel.load(merging.merge(recipe, tmp_path / "merged"))
    written = tuple(evaluate(model, suite) for suite in suites)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for residents in (Residents(), Residents(1 << 20)):
        assert Trials(residents, scratch=scratch).score(recipe, suites) == written
    assert list(scratch.iterdir()) == []
    assert mean_score(written) == (written[0].score + written[1].score) / 2


def test_a_trial_that_fails_says_why_and_leaves_nothing(suites, tmp_path):
    trials = Trials(Residents(1 << 20), scratch=tmp_path)
    with pytest.raises(MergingError, match="ratio"):
        trials.score(demo_recipe("pcb", parameters={"ratio": 2}), suites)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("most_bytes", [1 << 30, 1 << 20])
def test_a_trial_stops_when_nobody_wants_it(suites, tmp_path, most_bytes):
    trials = Trials(Residents(most_bytes), scratch=tmp_path)
    calls = iter(range(100_000))
    began = threading.Event()

    def stopped() -> bool:
        began.set()
        return next(calls) > 3

    started = time.perf_counter()
    with pytest.raises(Stopped):
        trials.score(demo_recipe(), suites * 40, stopped)
    assert began.is_set()
    assert time.perf_counter() - started < 5
    assert list(tmp_path.iterdir()) == []


def test_the_model_of_a_trial_is_freed(suites, monkeypatch):
    seen = []
    load = LoadedModel.of

    def noted(*arguments, **named):
        model = load(*arguments, **named)
        seen.extend(weakref.ref(parameter) for parameter in model.model.parameters())
        return model

    monkeypatch.setattr(LoadedModel, "of", noted)
    Trials(Residents()).score(demo_recipe(), suites)
    gc.collect()
    assert seen
    assert [one for one in seen if one() is not None] == []


def test_jobs_side_by_side_give_the_same_in_their_order(suites):
    trials = Trials(Residents())
    recipes = [demo_recipe(parameters={"lambda": value}) for value in (0.2, 0.6, 0.7)]
    jobs = [lambda stopped, one=one: trials.score(one, suites, stopped) for one in recipes]
    alone = [found for found in trials.each(jobs) if found is not None]
    assert [found for found in trials.each(jobs, at_once=2) if found is not None] == alone


def test_closing_stops_all_jobs_within_a_second():
    ended = []

    def work(stopped):
        while not stopped():
            time.sleep(0.01)
        ended.append(True)

    steps = Trials(Residents()).each([work] * 8, at_once=2)
    assert next(steps) is None
    started = time.perf_counter()
    steps.close()
    assert time.perf_counter() - started < 1
    assert len(ended) == 2


def test_only_small_families_on_the_cpu_are_tried_side_by_side():
    plan = merging.check(demo_recipe())
    assert Trials(Residents(1 << 20), "cpu").side_by_side(plan) == 1
    assert 1 <= Trials(Residents(), "cpu").side_by_side(plan) <= 2
