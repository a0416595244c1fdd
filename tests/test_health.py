"""The health check: silent on sound merges, one sentence for each thing that is wrong."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import merging
from components.merge.health import health_html, merge_and_look, unsound_html
from merging import Progress, Recipe
from merging.answering.health import check_health, health_after_merge
from merging.executors import wanted_until
from merging.heartbeats import Stopped
from tests.conftest import edit_config

DEMO = Path(__file__).parent.parent / "examples" / "demo"


def recipe_of(method: str, **parameters: float) -> Recipe:
    models = tuple({"model": str(DEMO / name)} for name in ("math", "code", "words"))
    return Recipe(
        merge_method=method,
        base_model=str(DEMO / "base"),
        models=models,
        parameters=parameters,
        profile="paper",
    )


@pytest.fixture(scope="module")
def merged(tmp_path_factory) -> Path:
    return merging.merge(recipe_of("linear"), tmp_path_factory.mktemp("merged") / "out", device="cpu")


@pytest.fixture(scope="module")
def plan():
    return merging.check(recipe_of("linear"))


def damaged(merged: Path, tmp_path: Path, change) -> Path:
    folder = shutil.copytree(merged, tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("task_arithmetic", {"lambda": 0.8}),
        ("task_arithmetic", {"lambda": 2.0}),
        ("ties", {}),
        ("dare_ties", {}),
    ],
)
def test_sound_merges_are_fine(tmp_path, method, parameters):
    recipe = recipe_of(method, **parameters)
    found = check_health(merging.merge(recipe, tmp_path / "out", device="cpu"), plan=merging.check(recipe))
    assert found.problems == ()
    assert [check.name for check in found.checks] == [
        "weights",
        "norms",
        "head",
        "logits",
        "repetition",
        "end",
    ]


def test_a_task_vector_thirty_times_too_large(tmp_path):
    recipe = recipe_of("task_arithmetic", **{"lambda": 30.0})
    out = merging.merge(recipe, tmp_path / "out", device="cpu")
    norms, end = check_health(out, plan=merging.check(recipe)).problems
    assert "times the size of its largest parent" in norms
    assert "replies do not end within 48 tokens, such as '" in end
    assert check_health(out).problems == (end,)


def test_a_value_that_is_no_number(merged, plan, tmp_path):
    def change(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")

    weights, logits = check_health(damaged(merged, tmp_path, change), plan=plan).problems
    assert weights == "model.layers.1.mlp.up_proj.weight: holds values that are not finite."
    assert logits == "Its logits are not finite."


def test_a_block_of_zeros(merged, plan, tmp_path):
    def change(tensors):
        for name, tensor in tensors.items():
            if ".layers.2." in name:
                tensor.zero_()

    folder = damaged(merged, tmp_path, change)
    (problem,) = check_health(folder, plan=plan).problems
    assert "model.layers.2." in problem
    assert problem.endswith("(and 8 more tensors): is all zeros.")
    assert "is all zeros" in check_health(folder).problems[0]


def test_a_size_that_the_recipe_asks_for_is_no_problem(family, tmp_path):
    scale = [{"filter": "down_proj", "value": 0.0}, {"value": 1.0}]
    source = {"model": str(family / "one"), "layer_range": [0, 3], "parameters": {"scale": scale}}
    recipe = Recipe.from_yaml(json.dumps({"merge_method": "passthrough", "slices": [{"sources": [source]}]}))
    folder = merging.merge(recipe, tmp_path / "out")
    norms = [
        check for check in check_health(folder, plan=merging.check(recipe)).checks if check.name == "norms"
    ]
    assert norms[0].ok
    assert "is all zeros" in check_health(folder).problems[0]


def test_a_model_with_an_adapter_is_no_folder_to_look_at(family, command_line):
    done = command_line("health", f"{family / 'one'}+org/adapter")
    assert done.stderr.startswith(f"error: {family / 'one'}+org/adapter: is a model with an adapter on it")


def test_a_head_of_its_own_that_is_declared_tied(merged, tmp_path):
    def change(tensors):
        tensors["lm_head.weight"] = -tensors["model.embed_tokens.weight"]

    problems = check_health(damaged(merged, tmp_path, change)).problems
    assert "lm_head.weight holds other values" in problems[0]

    def repeat(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    shutil.rmtree(tmp_path / "damaged")
    assert check_health(damaged(merged, tmp_path, repeat)).ok


def test_a_model_that_says_one_thing_over_and_over(merged, tmp_path):
    def change(tensors):
        tensors["model.norm.weight"].zero_()

    problems = check_health(damaged(merged, tmp_path, change)).problems
    assert any("repeat the same few tokens" in problem for problem in problems)


def test_what_an_expert_does_as_well_is_no_fault_of_the_merge(write_recipe, tmp_path):
    for name in ("base", "one", "two"):
        shutil.copytree(DEMO / "base", tmp_path / "family" / name)
        tensors = load_file(DEMO / "base" / "model.safetensors")
        tensors["model.norm.weight"].zero_()
        save_file(tensors, tmp_path / "family" / name / "model.safetensors", {"format": "pt"})
    recipe = write_recipe(tmp_path / "family", "task_arithmetic")
    out = merging.merge(recipe, tmp_path / "out", device="cpu")
    assert len(check_health(out).problems) == 2
    found = check_health(out, plan=merging.check(recipe))
    assert found.ok
    assert sum(check.sentence.endswith("Its first expert is no different.") for check in found.checks) == 2


def test_what_cannot_be_asked_is_weighed_only(merged, plan, tmp_path):
    folder = shutil.copytree(merged, tmp_path / "no tokenizer")
    (folder / "tokenizer.json").unlink()
    assert check_health(folder, plan=plan).checks[-1].sentence == (
        "The model has no tokenizer, so only its weights were looked at."
    )
    edit_config(folder, architectures=["BertModel"])
    found = check_health(folder, plan=plan)
    assert found.ok
    assert found.checks[-1].sentence.startswith("A BertModel turns its input into vectors and does not write")


def test_a_model_that_does_not_load(merged, tmp_path):
    folder = shutil.copytree(merged, tmp_path / "wrong")
    edit_config(folder, num_hidden_layers=9)
    (problem,) = check_health(folder).problems
    assert "asks for weights that are not there" in problem


def test_a_check_that_cannot_be_made_is_no_problem_of_the_merge(tmp_path, plan):
    found = health_after_merge(tmp_path / "gone", plan)
    assert found.ok
    assert found.checks[0].sentence.startswith("The health check could not be made: ")


def test_it_stops_when_nobody_wants_it(merged, plan):
    begun = time.monotonic()
    with pytest.raises(Stopped):
        check_health(merged, plan=plan, stopped=lambda: time.monotonic() > begun + 0.02)
    assert time.monotonic() - begun < 1


def test_a_job_that_is_cancelled_while_it_is_looked_at_leaves_nothing(tmp_path):
    out = tmp_path / "out"
    events = merge_and_look(recipe_of("linear"), out, "cpu")
    last = next(event for event in events if isinstance(event, Progress) and "health" in event.stage)
    assert last.share < 1
    assert out.exists()
    with wanted_until(lambda: True), pytest.raises(Stopped):
        next(events)
    assert not out.exists()


def test_a_job_keeps_the_health_with_what_it_attained(tmp_path):
    *_, table = merge_and_look(recipe_of("linear"), tmp_path / "out", "cpu")
    assert table["tensors"] == 56
    health = json.loads(json.dumps(table["health"]))
    assert unsound_html(health) == ""
    assert "Health: fine" in health_html(health)
    wrong = {"ok": False, "checks": [{"name": "weights", "ok": False, "sentence": "<b> is all zeros."}]}
    assert '<p class="mg-unsound" role="alert">&lt;b&gt; is all zeros.</p>' in unsound_html(wrong)
    assert (unsound_html(None), health_html(None)) == ("", "")


def test_large_tensors_are_read_in_parts(merged, plan, monkeypatch):
    monkeypatch.setattr("merging.answering.health.CHUNK", 1000)
    monkeypatch.setattr("merging.answering.health.SAMPLED", 1000)
    largest = 0
    read = merging.Checkpoint.read

    def watched(self, name, start=0, stop=None):
        nonlocal largest
        found = read(self, name, start, stop)
        largest = max(largest, found.numel())
        return found

    monkeypatch.setattr(merging.Checkpoint, "read", watched)
    assert check_health(merged, plan=plan).ok
    assert largest <= 1000
