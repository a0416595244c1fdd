import re

import pytest

from merging import Recipe, RecipeError

GOOD = """
merge_method: ties
base_model: base
models:
  - model: base
  - model: one
    parameters: {density: [0.2, 0.8], weight: 0.5}
  - model: two
    parameters:
      density:
        - {filter: mlp, value: 0.5}
        - value: 0.1
parameters: {normalize: true, int8_mask: true}
dtype: bfloat16
"""


def test_mergekit_yaml_reads_as_it_is():
    recipe = Recipe.from_yaml(GOOD)
    assert recipe.profile == "mergekit"
    assert recipe.models[1].parameters["density"] == [0.2, 0.8]
    assert recipe.parameters == {"normalize": True}


def test_dump_and_load_give_the_same_recipe(tmp_path):
    recipe = Recipe.from_yaml(GOOD + "seed: 3\nexclude: ['*norm*']\nprofile: paper\n")
    recipe.dump(tmp_path / "r.yaml")
    assert Recipe.load(tmp_path / "r.yaml").model_dump() == recipe.model_dump()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("merge_metod: ties", "Did you mean 'merge_method'"),
        ("merge_method: ties\nbase: x", "unknown key 'base'"),
        ("merge_method: ties\nslices: 7", "slices: must be a list"),
        ("merge_method: ties\nslices: [7]", "slices.1: must be a table of sources, base_model, parameters"),
        ("merge_method: ties\nslices: [{sources: [{model: a}]}]", "slices.1.sources.1.layer_range: missing"),
        (
            "merge_method: ties\nslices: [{sources: [{model: a, layer_range: [0, 2.5]}]}]",
            "slices.1.sources.1.layer_range.2: must be two whole numbers",
        ),
        (
            "merge_method: ties\nslices: [{sources: [{model: a, layer_range: [0, 1], parametres: {}}]}]",
            "unknown key 'parametres' in slices.1.sources.1. Did you mean 'parameters'",
        ),
        ("merge_method: ties\nslices: [{source: []}]", "Did you mean 'sources'"),
        (
            "merge_method: ties\nslices: [{sources: [{model: a, layer_range: [0, 1], parameters: {weight: [[1]]}}]}]",
            "parameter weight",
        ),
        ("merge_method: ties\nmodules: {}", "multi-module"),
        ("merge_method: ties\ntokenizer: {sauce: union}", "Did you mean 'source'"),
        ("merge_method: ties\nmodels:\n- model: a\n  parametres: {}", "Did you mean 'parameters'"),
        ("merge_method: ties\nmodels:\n- {}", "models.1.model: missing"),
        ("merge_method: ties\nmodels: 7", "models"),
        ("merge_method: ties\ndtype: float8", "dtype"),
        ("merge_method: ties\nprofile: fast", "profile"),
        ("merge_method: ties\nseed: -1", "seed"),
        ("merge_method: ties\nparameters: {density: {a: 1}}", "parameter density"),
        ("- a\n- b", "table of keys"),
        ("merge_method: [", "line"),
        ("merge_method: !!python/object/apply:os.system ['true']", "not valid YAML"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
            "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d]",
            "more than 20,000 values",
        ),
        ("a: &a [*a]", "values"),
        ("merge_method: ties\n? [a]\n: 1", "a key must be a word"),
        ("seed: 2001-13-45", "not valid YAML"),
        ("merge_method: \x00", "not allowed"),
        ("merge_method: ties\noverrides: [{tensors: a, parameters: {weight: [[1]]}}]", "parameter weight"),
        ("merge_method: ties\nparameters: {weight: 1" + "0" * 400 + "}", "more than 100 digits"),
        ("merge_method: ties\nparameters: {weight: 1" + "0" * 40 + "}", "too large"),
        ("merge_method: ties\nmerge_method: slerp", "appears twice"),
        ("merge_method: ties\nmodels: [a]", "models.1: must be a table of model, parameters; it is 'a'"),
        ("merge_method: ties\nparameters: [1]", "parameters: must be a table of names and values"),
        (
            "merge_method: ties\ntokenizer: {tokens: {a: {source: {kind: foo}}}}",
            "recipe: tokenizer.tokens.a.source.kind: should be 'zero' or 'model_token'; it is 'foo'.$",
        ),
        ("merge_method: ties\nparameters: {weight: {filter: [a], value: 1}}", "filter ['a'] is no text"),
        ("merge_method: ties\n---\nmerge_method: ties", "a single document in the stream, but found another"),
        ("base_model: a\ngate_mode: hidden\nexperts: []", "mergekit-moe"),
        ("", "table of keys"),
        ("[" * 5000, "YAML"),
    ],
)
def test_mistakes_are_named(text, says):
    with pytest.raises(RecipeError, match=re.sub(r"([(\[\]])", r"\\\1", says)):
        Recipe.from_yaml(text)


def test_numbers_and_anchors_as_people_write_them():
    recipe = Recipe.from_yaml(
        "merge_method: ties\nparameters: &p {weight: 1e-3, density: -2E+1}\nmodels: [{model: a, parameters: *p}]"
    )
    assert recipe.parameters == {"weight": 0.001, "density": -20.0}
    assert recipe.models[0].parameters == recipe.parameters


def test_all_mistakes_at_once():
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(
            "merge_method: ties\nbse_model: x\nseed: no\nmodels:\n- modl: a\nslices: [{sorces: []}]"
        )
    for part in ("bse_model", "seed", "modl", "sorces"):
        assert part in str(caught.value)


def test_a_mistake_is_told_once():
    _, problems = Recipe.parse("merge_method: [ties]\nmodels: 5")
    assert problems == ["merge_method: must be a text; it is ['ties'].", "models: must be a list; it is 5."]


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(RecipeError, match=r"cannot be read \(No such file or directory\)\.$"):
        Recipe.load(tmp_path / "none.yaml")
    (tmp_path / "r.yaml").write_bytes("merge_method: ties".encode("utf-16"))
    with pytest.raises(RecipeError, match=r"it is no text in UTF-8; save it as such\)\.$"):
        Recipe.load(tmp_path / "r.yaml")


def test_models_are_found_beside_the_recipe(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "r.yaml").write_text("merge_method: linear\nmodels: [{model: model}]")
    recipe = Recipe.load(tmp_path / "r.yaml")
    assert recipe.locate("model") == tmp_path / "model"
