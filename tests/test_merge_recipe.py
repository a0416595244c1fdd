"""The Merge tab's form is a recipe: what it shows, what it keeps, and what a YAML may bring."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import merging
from components.family import Family
from components.merge.presets import advice, profile_changes, with_preset
from components.merge.recipe import check, default_recipe, reference, title, to_form, to_recipe
from components.merge.yaml import MAX_YAML, from_yaml
from components.server.settings import ROOT
from merging import METHODS, Recipe


@pytest.fixture
def models(family) -> Family:
    return Family(str(family / "base"), tuple(str(family / name) for name in ("one", "two", "three")))


def edited(recipe: Recipe, models: Family, **changes) -> Recipe:
    """What the form gives when a visitor changes these of its values."""
    values, _ = to_form(recipe, models)
    return to_recipe(recipe, models, {**values, **{k.replace("__", "."): v for k, v in changes.items()}})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_an_untouched_form_gives_back_its_recipe(models, method, profile):
    recipe = default_recipe(models, method).model_copy(update={"profile": profile})
    values, fixed = to_form(recipe, models)
    assert to_recipe(recipe, models, values) == recipe
    assert fixed == set()
    needs_file = METHODS[method].needs_importance
    assert [p for p in check(recipe).problems if not (needs_file and p.startswith("importance:"))] == []


def test_only_what_differs_is_written(models):
    recipe = edited(default_recipe(models), models, **{"lambda": 0.7}, scope="layer", weight__1=0.25)
    assert recipe.parameters == {"density": 0.5, "lambda": 0.7, "scope": "layer"}
    assert [entry.parameters for entry in recipe.models] == [{}, {"weight": 0.25}, {}]
    back = edited(recipe, models, **{"lambda": 1.0}, scope="model", weight__1=1)
    assert back == default_recipe(models)


def test_what_experts_agree_on_is_said_once(models):
    recipe = edited(default_recipe(models), models, density__0=0.3, density__1=0.3, density__2=0.3)
    assert recipe.parameters == {"density": 0.3}
    recipe = edited(recipe, models, density__2=0.4)
    assert recipe.parameters == {}
    assert [entry.parameters["density"] for entry in recipe.models] == [0.3, 0.3, 0.4]


def test_experts_can_be_left_out_and_come_back(models):
    two = edited(default_recipe(models), models, experts=[0, 2])
    assert [Path(entry.model).name for entry in two.models] == ["one", "three"]
    assert edited(two, models, experts=[2, 1, 0]).models == default_recipe(models).models


def test_numbers_that_are_no_experts_are_left_out(models):
    recipe = edited(default_recipe(models), models, experts=[7, -1, "0", None, 1])
    assert [Path(entry.model).name for entry in recipe.models] == ["two"]


def test_slerp_takes_the_one_expert_that_was_chosen(models):
    recipe = edited(default_recipe(models), models, method="slerp", partner=2)
    recipe = edited(recipe, models, t=0.25)
    assert [Path(entry.model).name for entry in recipe.models] == ["three"]
    assert recipe.parameters == {"t": 0.25}
    assert check(recipe).problems == ()


def test_another_profile_brings_its_defaults_and_keeps_what_was_set(models):
    recipe = edited(default_recipe(models), models, **{"lambda": 0.6})
    changed = edited(recipe, models, profile="mergekit")
    values, _ = to_form(changed, models)
    assert (values["scope"], values["elect_on"], values["lambda"]) == (
        "tensor",
        "weighted",
        0.6,
    )
    assert changed.parameters == {"density": 0.5, "lambda": 0.6}
    assert edited(changed, models, profile="paper") == recipe


def test_gradients_filters_and_unseen_keys_survive_an_edit(models):
    text = f"""
merge_method: ties
base_model: {models.base}
models:
- model: {models.experts[0]}
  parameters: {{weight: [0.2, 1.0]}}
- model: {models.experts[1]}
parameters:
  density: 0.4
  lambda: [{{filter: mlp, value: 0.5}}, {{value: 1.0}}]
profile: paper
seed: 11
exclude: ["*norm*"]
"""
    recipe, problems = from_yaml(text, models)
    assert problems == []
    fixed = to_form(recipe, models)[1]
    assert {"weight.0", "lambda"} <= fixed
    after = edited(recipe, models, density__1=0.8)
    assert after.models[0].parameters == {"weight": [0.2, 1.0], "density": 0.4}
    assert after.models[1].parameters == {"density": 0.8}
    assert after.parameters["lambda"][0] == {"filter": "mlp", "value": 0.5}
    assert (after.seed, after.exclude) == (11, ("*norm*",))
    assert check(after).problems == ()


def test_a_mergekit_recipe_is_read_with_its_own_values(models):
    text = f"""
merge_method: ties
base_model: {models.base}
models:
- model: {models.base}
- model: {models.experts[0]}
  parameters: {{density: 0.5, weight: 0.5}}
- model: {models.experts[2]}
  parameters: {{density: 0.5, weight: 0.3}}
parameters: {{normalize: true, int8_mask: true}}
dtype: float32
"""
    recipe, problems = from_yaml(text, models)
    assert problems == []
    values, _ = to_form(recipe, models)
    assert (values["profile"], values["experts"]) == ("mergekit", [0, 2])
    assert (values["weight.0"], values["weight.2"], values["zero_sum"]) == (0.5, 0.3, "plus")
    assert recipe.dtype == "float32"


def test_the_base_may_be_one_of_the_models_of_an_average(models):
    text = f"merge_method: linear\nmodels:\n- model: {models.base}\n- model: {models.experts[1]}\nprofile: paper\n"
    recipe, problems = from_yaml(text, models)
    assert problems == []
    assert [Path(entry.model).name for entry in edited(recipe, models, weight__1=0.5).models] == [
        "base",
        "two",
    ]


def test_all_mistakes_of_a_recipe_are_told_at_once(models):
    text = f"""
merge_methd: ties
merge_method: ties
base_model: {models.base}
models:
- model: {models.experts[0]}
  parameters: {{densty: 0.5}}
- model: {models.experts[0]}
- model: /somewhere/else
parameters: {{lambda: much}}
"""
    recipe, problems = from_yaml(text, models)
    assert recipe is None
    said = "\n".join(problems)
    for part in ("merge_method", "'density'", "listed twice", "'/somewhere/else'", "'much'"):
        assert part in said, part


@pytest.mark.parametrize(
    "text",
    ["", "{", "- a", "merge_method: nothing", "merge_method: ties", "x" * (MAX_YAML + 1), "a: &x 1\nb: *x"],
)
def test_what_is_no_recipe_changes_nothing(models, text):
    recipe, problems = from_yaml(text, models)
    assert recipe is None
    assert problems
    assert all(isinstance(problem, str) and problem for problem in problems)


def test_models_from_elsewhere_are_never_opened(models, tmp_path, monkeypatch):
    opened = []
    real = merging.plan.Checkpoint.open
    monkeypatch.setattr(merging.plan.Checkpoint, "open", lambda path: opened.append(Path(path)) or real(path))
    secret = tmp_path / "secret"
    text = f"merge_method: ties\nbase_model: {secret}\nmodels:\n- model: {secret}/../secret\n- model: {models.experts[0]}\n"
    _, problems = from_yaml(text, models)
    assert sum("secret" in problem for problem in problems) == 2
    assert opened
    assert {path.resolve() for path in opened} <= {Path(m).resolve() for m in (models.base, *models.experts)}


def test_no_path_of_this_machine_shows_for_models_of_the_project():
    assert reference(str(ROOT / "examples" / "demo" / "math")) == "examples/demo/math"
    assert reference("/elsewhere/model") == "/elsewhere/model"


def test_a_job_is_named_after_method_and_experts(models):
    assert (
        title(edited(default_recipe(models), models, experts=[0, 2]), models)
        == "TIES · density 0.5 · one, three"
    )


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_names_that_cannot_be_a_folder_are_foreign(models, name):
    text = json.dumps({"merge_method": "ties", "base_model": name, "models": [{"model": name}]})
    recipe, problems = from_yaml(text, models)
    assert recipe is None
    assert any("none of the chosen models" in problem for problem in problems)


def test_templates_are_not_taken_from_the_page(models):
    text = default_recipe(models).to_yaml() + "chat_template: '{{ messages }}'\n"
    assert any("chat_template" in problem for problem in from_yaml(text, models)[1])


@pytest.mark.parametrize(
    "key",
    [
        "tokenizer_source: /etc",
        "special_tokens: /etc",
        "tokenizer: {source: /etc}",
        "tokenizer: {tokens: {a: {source: /etc}}}",
    ],
)
def test_no_tokenizer_is_read_from_elsewhere(models, key):
    recipe, problems = from_yaml(f"{default_recipe(models).to_yaml()}{key}\n", models)
    assert any("'/etc' is none of the chosen models" in problem for problem in problems)
    assert not recipe or not [*recipe.vocabulary_models()]


def test_slices_are_not_opened_by_the_page(models, monkeypatch):
    monkeypatch.setattr(merging.plan.Checkpoint, "open", lambda path: pytest.fail("a model was opened"))
    source = {"model": "/somewhere/else", "layer_range": [0, 1]}
    text = json.dumps({"merge_method": "passthrough", "slices": [{"sources": [source]}]})
    recipe, problems = from_yaml(text, models)
    assert recipe is None
    assert any("slices" in problem for problem in problems)


def test_another_method_starts_at_its_own_values_and_keeps_what_means_the_same(models):
    ties = edited(default_recipe(models), models, **{"lambda": 0.7}, weight__1=0.25)
    dare = edited(ties, models, method="dare_ties")
    assert dare.parameters == {}
    assert [entry.parameters for entry in dare.models] == [{}, {"weight": 0.25}, {}]
    magnitude = edited(ties, models, method="magnitude")
    assert magnitude.parameters == {"density": 0.5}, "density means the same and has the same default"


def test_a_method_for_two_takes_two_and_gives_the_third_back(models):
    two = edited(default_recipe(models), models, method="nuslerp")
    assert [Path(entry.model).name for entry in two.models] == ["one", "two"]
    assert check(two).problems == ()
    one = edited(two, models, method="nearswap", partner=1)
    assert [Path(entry.model).name for entry in one.models] == ["two"]
    assert len(edited(one, models, method="ties").models) == 3
    alone = edited(two, models, with_base=False)
    assert alone.base_model is None
    assert check(alone).problems == ()
    assert to_form(alone, models)[0]["with_base"] is False


def test_lists_and_seeds_go_through_form_and_yaml(models):
    recipe = edited(default_recipe(models, "dppa"), models, levels="0.9, 0.6", amplify="1.8, 0")
    assert recipe.parameters == {"levels": [0.9, 0.6], "amplify": [1.8, 0]}
    assert to_form(recipe, models)[1] == set(), "a list that is one value is not locked"
    again, problems = from_yaml(recipe.to_yaml(), models)
    assert problems == []
    assert again == recipe
    wrong = edited(recipe, models, levels="0.9, x")
    assert wrong.parameters["levels"] == "0.9, x"
    assert any("levels: '0.9, x' is no list of numbers" in problem for problem in check(wrong).problems)
    assert to_form(wrong, models)[0]["levels"] == "0.9, x", "what was typed stays"
    uneven = edited(recipe, models, amplify="1.8")
    assert any("levels has 2 values and amplify 1" in problem for problem in check(uneven).problems)


def test_the_seed_is_the_recipes(models):
    recipe = edited(default_recipe(models, "dare_linear"), models, seed=7)
    assert (recipe.seed, recipe.parameters) == (7, {})
    assert to_form(recipe, models)[0]["seed"] == 7
    assert edited(recipe, models, method="ties").seed == 7
    huge = recipe.model_copy(update={"seed": 2**60 + 1})
    form, fixed = to_form(huge, models)
    assert "seed" in fixed
    assert to_recipe(huge, models, form).seed == 2**60 + 1, "the browser would round it"
    assert edited(recipe, models, seed=None).seed == 0


def test_a_preset_resets_everything(models):
    recipe = edited(default_recipe(models, "pcb"), models, ratio=0.3, weight__0=2.0, profile="mergekit")
    assert with_preset(recipe) == default_recipe(models, "pcb")
    title = next(name for name, values in METHODS["pcb"].presets.items() if values == {"ratio": 0.05})
    assert with_preset(recipe, title).parameters == {"ratio": 0.05}
    assert with_preset(recipe, "no such").parameters == {}
    for method in METHODS:
        for name in METHODS[method].presets:
            assert check(with_preset(default_recipe(models, method), name)).problems == ()


def test_what_a_profile_changes_is_named(models):
    recipe = edited(default_recipe(models), models, scope="layer")
    changed, kept = profile_changes(recipe, "mergekit")
    assert changed["elect_on"] == ("delta", "weighted")
    assert "density" not in changed
    assert kept == ["density", "scope"]


# advice before a merge


def advised(recipe: Recipe, models: Family, report: merging.Report | None = None) -> str:
    return " ".join(advice(check(recipe).plan, models, report))


@pytest.fixture(scope="module")
def report(family) -> merging.Report:
    models = Family(str(family / "base"), tuple(str(family / name) for name in ("one", "two", "three")))
    return merging.inspect(models.recipe(), device="cpu")


def test_random_dropping_of_strong_changes_is_advised_against_with_the_number(models, report):
    share = report.total.relative_change(0)
    assert share > 0.1
    dropped = edited(default_recipe(models, "dare_ties"), models, density__0=0.3)
    assert f"one: its change is {share:.0%} of the base's norm" in advised(dropped, models, report)
    assert "two: its change" not in advised(dropped, models, report)
    assert advised(dropped, models) == "", "without an inspection nothing is known"


def test_far_too_large_scales_are_advised_against(models):
    assert "lambda is 3" in advised(edited(default_recipe(models), models, **{"lambda": 3}), models)
    assert advised(edited(default_recipe(models), models, **{"lambda": 1.2}), models) == ""
    assert "sum of the weights is 3.6" in advised(
        edited(default_recipe(models, "task_arithmetic"), models, **{"lambda": 1.2}), models
    )


def test_a_density_beyond_what_changed_cannot_be_attained(models, report):
    sparse = {
        name: replace(found, nonzero=[found.nonzero[0], found.elements // 10, found.nonzero[2]])
        for name, found in report.tensors.items()
    }
    sparse = replace(report, tensors=sparse)
    text = advised(default_recipe(models), models, sparse)
    assert "two changed only 1" in text
    assert "density 0.5 cannot be attained" in text
    assert "one changed only" not in text


def test_twins_and_experts_without_a_change_are_found_in_the_report(models, report):
    odd = {
        name: replace(found, change=[found.change[0]] * 2 + [0.0], dot=[found.change[0], 0.0, 0.0])
        for name, found in report.tensors.items()
    }
    odd = replace(report, tensors=odd)
    text = advised(default_recipe(models), models, odd)
    assert "one and two are the same model" in text
    assert "three: equals the base" in text
    only = advised(edited(default_recipe(models), models, experts=[0, 2]), models, odd)
    assert "same model" not in only
    assert "three: equals the base" in only


WHERE = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def spoilt(family, tmp_path_factory):
    """Families with values of a tensor that are no numbers, by the model that holds them."""
    folder = tmp_path_factory.mktemp("spoilt")

    def spoil(name: str, value: float, count: int) -> str:
        tensors = load_file(family / name / "model.safetensors")
        tensors[WHERE].view(-1)[:count] = value
        made = folder / name
        shutil.copytree(family / name, made)
        save_file(tensors, made / "model.safetensors", {"format": "pt"})
        return str(made)

    base, one, two, three = (str(family / name) for name in ("base", "one", "two", "three"))
    return {
        "two": Family(base, (one, spoil("two", float("nan"), 3), three)),
        "base": Family(spoil("base", float("inf"), 1), (one, two, three)),
    }


def test_values_that_are_no_numbers_are_told_before_a_merge_with_model_and_tensor(spoilt):
    models = spoilt["two"]
    report = merging.inspect(models.recipe(), device="cpu")
    text = advised(default_recipe(models), models, report)
    assert f"two holds 3 NaN or infinite values in {WHERE}, so this merge would fail." in text
    assert "leave it out" in text
    without = edited(default_recipe(models), models, experts=[0, 2])
    kept = default_recipe(models).model_copy(update={"exclude": (WHERE,)})
    for recipe in (without, kept):
        assert "NaN" not in advised(recipe, models, report)
        assert check(recipe).plan is not None
    models = spoilt["base"]
    report = merging.inspect(models.recipe(), device="cpu")
    text = advised(default_recipe(models), models, report)
    assert f"The base holds 1 NaN or infinite value in {WHERE}, so this merge would fail." in text
    assert "leave it out" not in text
    linear = default_recipe(models, "linear")
    assert linear.base_model is None
    assert "NaN" not in advised(linear, models, report), "it reads no base"


@pytest.mark.parametrize("whose", ["two", "base"])
@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "slerp", "dare_ties", "model_stock", "linear"])
def test_what_is_told_of_values_that_are_no_numbers_is_true(spoilt, whose, method, tmp_path):
    models = spoilt[whose]
    recipe = default_recipe(models, method)
    if method == "slerp":
        recipe = edited(recipe, models, partner=1)
    report = merging.inspect(models.recipe(), device="cpu")
    told = "so this merge would fail" in advised(recipe, models, report)
    try:
        for _ in merging.run(recipe, tmp_path / "out", device="cpu"):
            pass
        failed = ""
    except merging.MergingError as error:
        failed = str(error)
    assert told == bool(failed)
    if told:
        assert WHERE in failed
        assert "NaN or infinite" in failed
        assert "Use an intact model" in failed
        assert not (tmp_path / "out" / "model.safetensors").exists()
