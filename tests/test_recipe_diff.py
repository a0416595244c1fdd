"""Two recipes side by side: what differs in effect is told, and nothing else."""

from __future__ import annotations

import pytest
import yaml

from merging.recipe import Recipe
from merging.recipe_diff import Difference, diff

TIES = """
merge_method: ties
base_model: models/base
models:
  - {model: models/math, parameters: {weight: 0.5}}
  - {model: models/reverse}
parameters: {density: 0.4}
profile: paper
"""
SLICES = """
merge_method: slerp
slices:
  - sources: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 4]}]
    parameters: {t: 0.3}
  - sources: [{model: a, layer_range: [4, 8]}, {model: b, layer_range: [4, 8]}]
base_model: a
parameters: {t: 0.5}
"""


def changed(text: str = TIES, **keys) -> Recipe:
    content = {**yaml.safe_load(text), **keys}
    return Recipe.from_yaml(yaml.safe_dump({key: v for key, v in content.items() if v is not None}))


def rows(one: Recipe, other: Recipe) -> dict[str, tuple[str | None, str | None]]:
    return {row.key: (row.one, row.other) for row in diff(one, other)}


@pytest.mark.parametrize(
    "written",
    [
        "parameters: {lambda: 1.0, density: 0.4}\nprofile: paper\nmodels:\n- {parameters: {weight: 0.50}, model: ./models/math}"
        "\n- {model: models//reverse, parameters: {weight: 1}}\nbase_model: models/base/\nmerge_method: ties\n",
        TIES.replace("density: 0.4", "density: [0.4, 0.4], weight: 1"),
        TIES.replace(
            "parameters: {density: 0.4}",
            "parameters: {density: [{filter: q_proj, value: 0.4}, {value: 0.4}]}",
        ),
        TIES.replace("{model: models/reverse}", "{model: models/reverse, parameters: {density: 0.4}}"),
        TIES + "scope: model\nseed: 7\ntokenizer_source: base\n",
        TIES.replace("models:", "models:\n  - model: models/base"),
    ],
    ids=["order and defaults", "gradient without slope", "filters", "of a model", "keys", "base listed"],
)
def test_the_same_in_effect(written):
    assert diff(changed(), Recipe.from_yaml(written)) == ()
    assert diff(Recipe.from_yaml(written), changed()) == ()


def test_parameters_of_the_merge_and_of_models():
    other = changed(
        models=[{"model": "models/math"}, {"model": "models/reverse"}], parameters={"lambda": 0.7}
    )
    assert rows(changed(), other) == {
        "weight of math": ("0.5", "1"),
        "density": ("0.4", "0.2"),
        "lambda": ("1", "0.7"),
    }


def test_models_that_come_and_go():
    other = changed(models=[{"model": "models/reverse"}, {"model": "models/sort"}], base_model="models/other")
    assert rows(changed(), other) == {
        "base": ("models/base", "models/other"),
        "model math": ("models/math", None),
        "model sort": (None, "models/sort"),
        "weight of math": ("0.5", None),
        "weight of sort": (None, "1"),
    }


def test_models_of_one_name_keep_their_paths():
    other = changed(models=[{"model": "models/math"}, {"model": "older/math"}, {"model": "models/reverse"}])
    assert "model older/math" in rows(changed(), other)


def test_the_order_of_models():
    other = changed(models=yaml.safe_load(TIES)["models"][::-1])
    assert rows(changed(), other) == {"order of models": ("math, reverse", "reverse, math")}


def test_another_method():
    assert rows(changed(), changed(merge_method="dare_ties"))["method"] == ("ties", "dare_ties")
    linear = rows(changed(), changed(merge_method="task_arithmetic", parameters=None))
    assert linear == {
        "method": ("ties", "task_arithmetic"),
        "density": ("0.4", None),
        "lambda": ("1", "0.4"),
        "normalize": ("true", "false"),
    }


def test_a_seed_where_there_is_chance():
    assert rows(changed(merge_method="dare_ties"), changed(merge_method="dare_ties", seed=3)) == {
        "seed": ("0", "3")
    }


def test_filters_and_gradients():
    other = changed(parameters={"density": [{"filter": "q_proj", "value": [0.1, 0.9]}, {"value": 0.4}]})
    text = "[0.1, 0.9] over the blocks for q_proj, 0.4 elsewhere"
    assert rows(changed(), other) == {"density": ("0.4", text)}


def test_slices():
    other = yaml.safe_load(SLICES)
    other["slices"][1]["sources"][1]["layer_range"] = [3, 7]
    other["slices"][0]["parameters"] = {}
    assert rows(changed(SLICES), changed(SLICES, slices=other["slices"])) == {
        "slice 2": ("a blocks 4 to 7, b blocks 4 to 7", "a blocks 4 to 7, b blocks 3 to 6"),
        "t in slice 1": ("0.3", "0.5"),
    }


def test_models_into_slices():
    found = rows(changed(SLICES, slices=None, models=[{"model": "a"}, {"model": "b"}]), changed(SLICES))
    assert found["slice 1"] == (None, "a blocks 0 to 3, b blocks 0 to 3")
    assert "model a" not in found


def test_the_other_keys():
    other = changed(
        out_dtype="bfloat16",
        exclude=["*norm*", "*embed*"],
        chat_template="{{ a }}",
        overrides=[
            {"tensors": "*q_proj*", "model": "models/math", "parameters": {"weight": 0.0, "density": 1}}
        ],
    )
    assert rows(changed(), other) == {
        "out_dtype": (None, "bfloat16"),
        "chat_template": (None, "{{ a }}"),
        "exclude": (None, "*embed*, *norm*"),
        "override 1": (None, "*q_proj* of math: density 1, weight 0"),
    }
    assert diff(changed(dtype="bfloat16"), changed(out_dtype="bfloat16")) == ()
    assert rows(changed(profile="mergekit"), changed())["profile"] == ("mergekit", "paper")


def test_long_texts_are_shown_where_they_differ():
    (row,) = diff(changed(chat_template="{" + "a" * 500), changed(chat_template="{" + "a" * 499 + "b"))
    assert row.one != row.other
    assert len(row.one or "") < 100


def test_in_words():
    assert Difference("density", "0.4", "0.2").words == "density is 0.2 instead of 0.4."
    assert (
        Difference("model math", "models/math", None).words
        == "Only the first recipe has model math: models/math."
    )
    assert (
        Difference("model sort", None, "models/sort").words
        == "Only the second recipe has model sort: models/sort."
    )


def test_a_method_that_nobody_knows():
    assert rows(changed(merge_method="tiez"), changed())["method"] == ("tiez", "ties")
