"""A recipe written for mergekit: the same weights, or every reason why it cannot give them."""

from __future__ import annotations

import pytest
import torch
import yaml
from safetensors.torch import load_file

import merging
from merging import METHODS, MergingError, Recipe
from merging.export import TAKES


def built(family, method, **keys):
    models = [{"model": str(family / name)} for name in keys.pop("names", ("one", "two"))]
    base = str(family / "base") if METHODS[method].needs_base else None
    return Recipe.model_validate({"merge_method": method, "base_model": base, "models": models, **keys})


def merged(recipe, out):
    return load_file(merging.merge(recipe, out) / "model.safetensors")


def refusal(recipe):
    with pytest.raises(MergingError) as caught:
        recipe.to_mergekit()
    return str(caught.value)


AS_MERGEKIT = {
    "linear": {},
    "task_arithmetic": {},
    "ties": {"scope": "tensor", "count": "floor", "elect_on": "weighted", "zero_sum": "plus"},
    "della": {"rescale": True, "density": 1.0},
    "dare_linear": {"density": 1.0},
    "slerp": {},
    "nuslerp": {},
    "multislerp": {},
    "karcher": {},
    "nearswap": {},
    "ram": {},
    "ramplus_tl": {},
}
"""Parameters over the paper's that mergekit can do, so that the result must be the same."""


@pytest.mark.parametrize("method", AS_MERGEKIT)
def test_a_paper_recipe_gives_its_weights_under_mergekits_defaults(family, tmp_path, method):
    names = ("one",) if METHODS[method].experts_wanted == 1 else ("one", "two")
    parameters = AS_MERGEKIT[method]
    recipe = built(family, method, names=names, profile="paper", dtype="float32", parameters=parameters)
    text = recipe.to_mergekit()
    again = Recipe.from_yaml(text)
    assert again.profile == "mergekit"
    before, after = merged(recipe, tmp_path / "a"), merged(again, tmp_path / "b")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_what_differs_from_mergekits_defaults_is_written_out(family):
    recipe = built(
        family,
        "della",
        profile="paper",
        seed=5,
        parameters={"rescale": "l1", "weight": [{"filter": "mlp", "value": 0.5}]},
    )
    text = recipe.to_mergekit()
    assert yaml.safe_load(text) == {
        "merge_method": "della",
        "base_model": str(family / "base"),
        "models": [{"model": str(family / "one")}, {"model": str(family / "two")}],
        "parameters": {
            "rescale": True,
            "weight": [{"filter": "mlp", "value": 0.5}, {"value": 1.0}],
            "density": 0.7,
            "epsilon": 0.07,
            "lambda": 1.1,
        },
    }
    assert text.startswith("# masks are random")
    assert "without dtype" in text


def test_a_mergekit_recipe_stays_as_it_is(family):
    text = f"""
merge_method: ties
base_model: {family}/base
models:
- model: {family}/base
- model: {family}/one
  parameters:
    density: [0.2, 0.8]
    weight: 0.5
- model: {family}/two
  parameters:
    weight:
    - filter: mlp
      value: 0.3
    - value: 1
parameters:
  normalize: true
  density: 0.5
dtype: bfloat16
out_dtype: float32
tokenizer_source: base
"""
    written = Recipe.from_yaml(text).to_mergekit()
    assert yaml.safe_load(written) == yaml.safe_load(text)
    assert "density: [0.2, 0.8]" in written
    assert not written.startswith("#")


def test_slices_keep_their_levels(family):
    content = {
        "merge_method": "ties",
        "base_model": "b",
        "slices": [
            {
                "sources": [
                    {"model": "b", "layer_range": [0, 2]},
                    {"model": "m", "parameters": {"weight": 0.5}, "layer_range": [0, 2]},
                ],
                "parameters": {"density": 0.5},
            },
            {
                "sources": [{"model": "b", "layer_range": [1, 2]}, {"model": "m", "layer_range": [0, 1]}],
            },
        ],
    }
    recipe = Recipe.model_validate(content)
    assert yaml.safe_load(recipe.to_mergekit()) == {**content, "parameters": {"weight": 1.0}}


def test_all_that_mergekit_cannot_express_is_told_at_once(family):
    recipe = built(
        family,
        "ties",
        profile="paper",
        exclude=["*norm*"],
        overrides=[{"tensors": "*", "model": str(family / "one"), "parameters": {"weight": 2}}],
        parameters={"sign": "frequency"},
    )
    text = refusal(recipe)
    for part in (
        "scope: model; mergekit has only tensor",
        "count: nearest; mergekit has only floor",
        "sign: frequency; mergekit has only total",
        "elect_on: delta; mergekit has only weighted",
        "zero_sum: majority; mergekit has only plus",
        "exclude:",
        "overrides:",
    ):
        assert part in text, part
    assert "zero_divisor" not in text
    written = recipe.to_mergekit(approximate=True)
    assert written.count("# left out:") == 7
    assert yaml.safe_load(written)["parameters"] == {"density": 0.2, "weight": 1.0}


@pytest.mark.parametrize(
    ("method", "parameters", "silent"),
    [
        ("ties", {"density": 1.0, "zero_sum": "plus"}, True),  # all is kept: nothing to rank; equal weights
        ("ties", {"density": 1.0}, False),  # draws go to the majority here
        ("ties", {"density": 0.5, "zero_sum": "plus"}, False),
        ("dare_linear", {"density": 0.5}, False),  # rescale: expected
        ("dare_linear", {"density": 0.5, "rescale": False}, True),
        ("dare_linear", {"density": [1, 0.5]}, False),
        ("dare_linear", {"density": 1.0}, True),
        ("della", {"density": 0.7, "epsilon": 0.3, "rescale": True}, False),  # mergekit refuses a sum of 1
        ("della", {"density": 0.7, "epsilon": 0.2, "rescale": True}, True),
        ("model_stock", {}, False),
        ("model_stock", {"clamp": False, "floor": 1e-6}, True),
        ("sce", {"floor": 1e-6}, True),
    ],
)
def test_only_what_decides_weights_is_refused(family, method, parameters, silent):
    recipe = built(family, method, profile="paper", parameters=parameters)
    if silent:
        assert "left out" not in recipe.to_mergekit()
    else:
        assert "mergekit" in refusal(recipe)


def test_one_expert_has_no_election(family):
    parameters = {"density": 1.0}
    assert (
        "left out"
        not in built(family, "ties", names=("one",), profile="paper", parameters=parameters).to_mergekit()
    )


def test_unequal_weights_make_the_election_matter(family):
    recipe = built(
        family,
        "ties",
        profile="paper",
        parameters={"density": 1.0, "zero_sum": "plus", "weight": [{"filter": "mlp", "value": 2}]},
    )
    assert "elect_on: delta" in refusal(recipe)


def test_the_base_of_an_average_is_left_out_where_it_does_not_count(family):
    recipe = built(family, "linear", profile="paper", base_model=str(family / "base"))
    written = recipe.to_mergekit()
    assert "base_model" not in yaml.safe_load(written)
    assert "would average it as one more model" in written


@pytest.mark.parametrize("method", sorted(METHODS.keys() - TAKES.keys()))
def test_methods_that_mergekit_lacks(family, method):
    assert f"no method '{method}'" in refusal(built(family, method))


def test_a_parameter_nobody_knows_is_not_dropped(family):
    assert "densty" in refusal(built(family, "ties", parameters={"densty": 1}))


def test_every_parameter_of_mergekits_is_ours(family):
    idle = {("task_arithmetic", "density"), ("task_arithmetic", "rescale")}
    for name, takes in TAKES.items():
        missing = {(name, parameter) for parameter in takes - METHODS[name].parameters().keys()}
        assert missing <= idle, missing


def test_the_command(family, write_recipe, command_line):
    recipe = write_recipe(family, "ties", profile="paper")
    refused = command_line("export", recipe)
    assert refused.returncode == 1
    assert "scope: model" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = command_line("export", recipe, "--approximate")
    assert done.returncode == 0
    assert "# left out: scope: model" in done.stdout
    assert yaml.safe_load(done.stdout)["parameters"] == {"weight": 1.0, "density": 0.2}
    no_merge = command_line("export", family / "one")
    assert "one: is no merged folder; name the OUT of" in no_merge.stderr


def test_what_belongs_to_another_of_mergekits_methods_is_left_out(family):
    recipe = built(family, "slerp", names=("one",), parameters={"density": 0.5, "t": 0.3})
    assert yaml.safe_load(recipe.to_mergekit())["parameters"] == {"t": 0.3}
