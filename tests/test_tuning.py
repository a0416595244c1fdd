"""The search: what it varies, that it finds what is there, its budgets, its seeds, and what stops it."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time

import pytest
from typer.testing import CliRunner

from merging import METHODS, Checkpoint, MergingError, merge
from merging.cli import app
from merging.commands.tuning import _until_interrupted
from merging.evaluation import ItemResult, SuiteResult
from merging.inference import LoadedModel
from merging.judging.search_space import current, dimension, search_space, with_values
from merging.judging.strategies import Greedy, retention_objective
from merging.judging.suites import Suite
from merging.judging.trials import Trials, results
from merging.memory.whatif import Residents
from merging.recipe import ModelEntry, Recipe
from merging.tuning import Trial, Tuned, tune
from tests.test_architecture import files, imports
from tests.test_every_method import SUITE, recipe_of
from tests.test_trials import DEMO, demo_recipe, few


@pytest.fixture(scope="module")
def trials() -> Trials:
    return Trials(Residents(), "cpu")


@pytest.fixture(scope="module")
def won() -> Suite:
    """Questions that the expert can answer and the base cannot, so that the best merge scores 1 and the base 0."""
    suite = few("math", 16)
    (base,), (expert,) = (results(LoadedModel.load(f"{DEMO}/{name}"), [suite]) for name in ("base", "math"))
    kept = [
        item
        for item, one, two in zip(suite.items, base.items, expert.items, strict=True)
        if two.correct and not one.correct
    ]
    return Suite("won", tuple(kept[:4]))


def search(recipe, suites, trials, **named) -> tuple[list[Trial], Tuned]:
    events = list(tune(recipe, suites, trials=trials, **named))
    assert isinstance(events[-1], Tuned)
    return [event for event in events if isinstance(event, Trial)], events[-1]


@pytest.mark.parametrize("name", list(METHODS))
def test_the_space_is_the_methods_own(name):
    method, recipe = METHODS[name], demo_recipe(name)
    space = search_space(recipe)
    usual = {p for p, field in method.parameters().items() if not field.json_schema_extra["rare"]}
    assert {one.name for one in space} <= usual - {"seed"}
    assert {one.expert for one in space if one.name == "weight"} in (
        set(),
        {f"{DEMO}/math", f"{DEMO}/code", f"{DEMO}/words"},
    )
    for one in space:
        if not one.choices:
            assert one.least <= one.low < one.high <= one.most
            value = current(recipe, one)
            assert one.low <= value <= one.high
            changed = with_values(recipe, {one: one.high})
            assert current(changed, one) == one.tidy(one.high)
        for value in one.choices or (one.low, one.high):
            parameters = with_values(recipe, {one: value}).parameters
            method.configure(
                "paper", {k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()}
            )


def test_a_values_range_follows_what_it_usually_is():
    by_label = {one.label: one for one in search_space(demo_recipe("della"))}
    assert (by_label["density"].low, by_label["density"].high) == (0, 1)
    assert (by_label["epsilon"].low, by_label["epsilon"].high) == (0, pytest.approx(0.28))
    assert (by_label["weight of math"].low, by_label["weight of math"].high) == (0, 2)
    (near,) = search_space(demo_recipe("nearswap", ("math",)))
    assert near.logarithmic
    assert {one.label for one in search_space(demo_recipe("dppa"))} >= {"amplify 1", "amplify 2"}
    assert not [one for one in search_space(demo_recipe("dppa")) if one.name == "levels"]


@pytest.mark.parametrize(
    ("strategy", "experts"), [("tpe", ["math"]), ("cma-es", ["math"]), ("pcb-es", ["math", "code"])]
)
def test_a_search_finds_the_expert_that_is_there(strategy, experts, won, trials):
    recipe = demo_recipe("task_arithmetic", experts, parameters={"lambda": 1.0, "weight": 0.3})
    tried, tuned = search(recipe, [won], trials, strategy=strategy, budget=10)
    assert tried[0].recipe == recipe
    assert tried[0].score <= 0.25
    assert tuned.best.score >= 0.75
    assert tuned.best.score == max(trial.score for trial in tried)


def test_dppas_search_goes_up_while_it_helps():
    def climb(score) -> list[tuple[float, float]]:
        greedy, asked = Greedy(demo_recipe("dppa")), []
        while proposals := greedy.ask(1):
            asked.append(tuple(proposals[0].values()))
            greedy.tell([score(*asked[-1])])
        return asked

    assert climb(lambda a, b: -abs(a - 2.0) - abs(b - 1.1)) == [
        (1.8, 0), (1.9, 0), (2.0, 0), (2.1, 0), (2.0, 1.0), (2.0, 1.1), (2.0, 1.2)
    ]  # fmt: skip
    assert climb(lambda a, b: -b) == [(1.8, 0), (1.9, 0), (1.8, 1.0)]


def test_retention_is_by_the_best_expert():
    def result(correct: int) -> SuiteResult:
        items = tuple(ItemResult("", "", "", number < correct) for number in range(10))
        return SuiteResult("s", items)

    objective = retention_objective([[result(8), result(0), result(2)], [result(1), result(0), result(5)]])
    assert objective([result(4), result(3), result(5)]) == pytest.approx((0.5 * 1) ** 0.5)
    assert objective([result(0), result(3), result(5)]) == 0


def test_dppa_and_its_strategy(family, trials):
    recipe = recipe_of(family).model_copy(update={"merge_method": "dppa", "profile": "paper"})
    tried, tuned = search(recipe, [SUITE], trials, strategy="dppa", budget=3)
    assert [trial.values["amplify 1"] for trial in tried] == [1.0, 1.8, 1.9]
    assert "dppa" in tuned.note


@pytest.mark.parametrize("strategy", ["tpe", "cma-es"])
def test_the_same_seed_makes_the_same_trials(strategy, family, trials):
    def values(seed):
        tried, _ = search(recipe_of(family), [SUITE], trials, strategy=strategy, budget=5, seed=seed)
        return [(trial.values, trial.score) for trial in tried]

    first = values(1)
    assert values(1) == first
    assert values(2)[1:] != first[1:]


@pytest.mark.parametrize("strategy", ["tpe", "pcb-es"])
def test_experts_whose_folders_are_called_alike_are_searched_apart(strategy, family, trials, tmp_path):
    folders = [tmp_path / run / "checkpoint" for run in ("first", "second")]
    for folder, name in zip(folders, ("one", "two"), strict=True):
        shutil.copytree(family / name, folder)
    models = tuple(ModelEntry(model=str(folder)) for folder in folders)
    recipe = Recipe(merge_method="task_arithmetic", base_model=str(family / "base"), models=models)
    assert dimension(recipe, "weight", str(folders[1])).expert == str(folders[1])
    tried, _ = search(recipe, [SUITE], trials, strategy=strategy, budget=4)
    first, second = ([trial.values[f"weight of {folder}"] for trial in tried] for folder in folders)
    assert first[1:] != second[1:]


def test_a_value_of_the_whole_merge_goes_before_those_of_slices():
    ranges = [{"model": name, "layer_range": [0, 6]} for name in ("a", "b")]
    text = {
        "merge_method": "slerp",
        "base_model": "a",
        "slices": [{"sources": ranges, "parameters": {"t": 0.3}}],
    }
    recipe = Recipe.from_yaml(json.dumps(text))
    (t,) = search_space(recipe)
    assert current(recipe, t) == 0.3
    changed = with_values(recipe, {t: 0.7})
    assert current(changed, t) == 0.7
    assert [part.parameters for part in changed.slices] == [{}]
    halves = [{"sources": [one | {"layer_range": at} for one in ranges]} for at in ([0, 3], [3, 6])]
    halves[0]["parameters"] = {"t": 0.3}
    assert current(Recipe.from_yaml(json.dumps(text | {"slices": halves})), t) is None


def test_a_recipe_whose_models_lie_beside_it_can_be_tuned_and_run_again(
    family, tmp_path, command_line, monkeypatch
):
    shutil.copytree(family, tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    override = {"tensors": "*mlp*", "model": "one", "parameters": {"weight": 0.3}}
    content = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "one"}, {"model": "./two"}],
    }
    recipe = tmp_path / "models" / "r.yaml"
    recipe.write_text(json.dumps(content | {"overrides": [override], "tokenizer_source": "base"}))
    (tmp_path / "s.jsonl").write_text('{"prompt": "a", "answer": "b"}')
    done = command_line("tune", recipe, "--suite", "s.jsonl", "--out", "tuned.yaml", "--trials", "1")
    assert done.returncode == 0, done.stderr
    assert Recipe.load("tuned.yaml").overrides[0].model == str(tmp_path / "models" / "one")
    assert Recipe.load("tuned.yaml").tokenizer_source == "base", "a word, though a folder is called so"
    first, again = merge("tuned.yaml", "first"), merge(recipe, "again")
    monkeypatch.chdir(tmp_path / "again")
    last = merge("mergescope.yaml", "../last")
    written = {Checkpoint.open(tmp_path / out.name).fingerprint for out in (first, again, last)}
    assert len(written) == 1


def test_the_result_is_a_recipe_with_a_note(family, trials):
    _, tuned = search(recipe_of(family), [SUITE], trials, budget=4)
    text = tuned.to_yaml()
    assert text.startswith("# Tuned by tpe (seed 0) on letters: 4 trials")
    assert Recipe.from_yaml(text) == tuned.recipe


def test_failed_trials_are_told_and_the_search_goes_on(family, trials):
    recipe = recipe_of(family, parameters={"density": 0.5, "epsilon": 0.3, "lambda": 1.0})
    recipe = recipe.model_copy(update={"merge_method": "della", "profile": "paper"})
    tried, tuned = search(recipe, [SUITE], trials, budget=4)
    failed = [trial for trial in tried if trial.score is None]
    assert failed
    assert all("epsilon" in trial.problem and "\n" not in trial.problem for trial in failed)
    assert len(tried) - len(failed) == 4
    assert tuned.best.score is not None


def test_a_budget_in_minutes_ends_it(trials):
    started = time.perf_counter()
    tried, _ = search(demo_recipe(), [few("math", 6)], trials, minutes=1 / 60)
    assert tried
    assert time.perf_counter() - started < 5


def test_stopping_keeps_the_best_and_closing_ends_at_once(won, trials):
    stop = threading.Event()
    tried, tuned = [], None
    for event in tune(demo_recipe(), [won], trials=trials, budget=500, stopped=stop.is_set):
        if isinstance(event, Trial):
            tried.append(event)
            if len(tried) == 3:
                stop.set()
        tuned = event
    assert isinstance(tuned, Tuned)
    assert len(tuned.trials) in (3, 4)
    assert tuned.best.score == max(trial.score for trial in tuned.trials)

    events = tune(demo_recipe(), [few("words", 100)] * 3, trials=trials, budget=500)
    next(events)
    started = time.perf_counter()
    events.close()
    assert time.perf_counter() - started < 1
    never_begun = tune(demo_recipe(), [won], trials=trials, stopped=lambda: True)
    assert not [event for event in never_begun if isinstance(event, Tuned)]


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ({"strategy": "tpee"}, "Did you mean 'tpe'"),
        ({"strategy": "dppa"}, "searches for DPPA's factors"),
        ({"budget": 0}, "0 trials"),
        ({"seed": -1}, "seed -1"),
        ({"minutes": 0.0}, "0 minutes"),
        ({"minutes": float("nan")}, "nan minutes"),
        (
            {"recipe": demo_recipe("model_stock"), "strategy": "cma-es"},
            "nothing that cma-es could search over",
        ),
        ({"recipe": demo_recipe("model_stock"), "strategy": "pcb-es"}, "model_stock has none"),
        ({"suites": []}, "at least one suite"),
        ({"recipe": demo_recipe(parameters={"lamda": 1})}, "lamda"),
    ],
)
def test_bad_input_is_refused(trials, named, reason):
    arguments = {"recipe": demo_recipe(), "suites": [SUITE], "trials": trials, **named}
    with pytest.raises(MergingError, match=r".") as refused:
        list(tune(arguments.pop("recipe"), arguments.pop("suites"), **arguments))
    assert reason in str(refused.value)


def test_the_command_line_writes_the_best_recipe(family, write_recipe, tmp_path):
    file = write_recipe(family, "ties", ["one", "two"])
    suite = tmp_path / "suite.jsonl"
    suite.write_text(json.dumps({"prompt": "ab", "answer": "b"}))
    out = tmp_path / "best.yaml"
    arguments = ["tune", str(file), "--suite", str(suite), "--trials", "3", "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("trial") for line in lines] == [0, 1, 2, None]
    assert Recipe.load(out).merge_method == "ties"
    told = CliRunner().invoke(app, arguments)
    assert "written" in told.stdout
    for wrong, reason in ((file, "the recipe that is tuned"), (tmp_path, "is a folder")):
        refused = CliRunner().invoke(app, [*arguments[:-1], str(wrong)])
        assert reason in str(refused.exception)


def test_one_interrupt_asks_to_stop_and_a_second_insists():
    stop = threading.Event()
    with pytest.raises(KeyboardInterrupt), _until_interrupted(stop):
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        signal.raise_signal(signal.SIGINT)


def test_optuna_is_loaded_only_for_a_search():
    loaded = [name for file in files("merging") for name in imports(file, top_level_only=True)]
    assert not [name for name in loaded if name.split(".")[0] in ("optuna", "cmaes")]
