"""Partial merges: modules and blocks that stay the base's."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import merging
from components.family import Family
from components.merge.keep_fields import keep_update
from components.merge.recipe import default_recipe, to_form, to_recipe
from components.preview.brush import SetParameter, apply
from merging import MergingError, PlanError, Recipe
from merging.anatomy import locate
from merging.recipe import Keep


def kept(recipe) -> set[str]:
    return {tensor.info.name for tensor in merging.check(recipe).tensors if tensor.method is None}


@pytest.mark.parametrize(
    ("keep", "stays"),
    [
        ({"modules": ["attention"]}, lambda place: place.role == "attention"),
        ({"modules": ["q", "mlp norm"]}, lambda place: place.kind in {"q", "mlp norm"}),
        ({"modules": ["down_proj", "head"]}, lambda place: place.kind in {"down", "head"}),
        ({"layers": [[0, 1], [2, 3]]}, lambda place: place.block in (0, 2)),
        (
            {"modules": ["embedding"], "layers": [[1, 2]]},
            lambda place: place.kind == "embedding" or place.block == 1,
        ),
    ],
)
def test_modules_or_blocks_are_kept(family, write_recipe, keep, stays):
    recipe = write_recipe(family, "ties", keep=keep)
    names = [tensor.info.name for tensor in merging.check(recipe).tensors]
    assert kept(recipe) == {name for name in names if stays(locate(name))} != set()


def test_what_is_kept_is_the_bases_and_the_rest_is_merged(family, write_recipe, tmp_path):
    recipe = write_recipe(family, "task_arithmetic", keep={"modules": ["mlp"], "layers": [[0, 1]]})
    out = merging.merge(recipe, tmp_path / "out")
    base, merged = (load_file(folder / "model.safetensors") for folder in (family / "base", out))
    same = {name for name in base if torch.equal(base[name], merged[name])}
    assert same == kept(recipe)
    assert Recipe.load(out / "mergescope.yaml").keep == Recipe.load(recipe).keep


def test_all_mistakes_are_told_at_once(family, write_recipe, command_line):
    recipe = write_recipe(
        family, "ties", keep={"modules": ["atention"], "layers": [[1, 40], [2, 2]]}, exclude=["x*"]
    )
    with pytest.raises(PlanError) as error:
        merging.check(recipe)
    said = error.value.problems
    assert "exclude: 'x*' matches no tensor." in said
    assert any("'atention' is no module" in one and "Did you mean 'attention'?" in one for one in said)
    assert sum("the output has blocks 0-2" in one for one in said) == 2
    assert command_line("check", recipe).returncode == 1


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"module": ["q"]}, "unknown key 'module' in keep. Did you mean 'modules'?"),
        ({"layers": [0, 2]}, "runs of blocks"),
        ({"layers": [[0, 1.5]]}, "runs of blocks"),
        ({"modules": "q"}, "keep.modules"),
    ],
)
def test_a_malformed_keep_is_one_sentence(keep, words):
    with pytest.raises(MergingError, match="keep") as error:
        Recipe.from_yaml(json.dumps({"merge_method": "ties", "keep": keep}))
    assert words in str(error.value)


def test_the_brush_leaves_what_keep_holds(family, write_recipe):
    recipe = Recipe.load(write_recipe(family, "ties", keep={"layers": [[0, 1]]}))
    names = [tensor.info.name for tensor in merging.check(recipe).tensors]
    chosen = [name for name in names if locate(name).kind == "q"]
    unchanged, said = apply(recipe, chosen, names, SetParameter("density", 0.5))
    assert unchanged == recipe
    assert "keep holds the base in 1 of these" in said


def test_mergekit_cannot_keep():
    recipe = Recipe.from_yaml("merge_method: linear\nmodels: [{model: a}]\nkeep: {modules: [q]}")
    with pytest.raises(MergingError, match="keep: mergekit merges every tensor"):
        recipe.to_mergekit()
    assert "keep" not in Recipe.from_yaml(recipe.to_mergekit(approximate=True)).model_fields_set


def test_the_merge_tab_shows_and_takes_what_is_kept(family):
    models = Family(str(family / "base"), (str(family / "one"), str(family / "two")))
    recipe = default_recipe(models)
    form, _ = to_form(recipe, models)
    assert form["keep_modules"] == form["keep_blocks"] == []
    chosen = to_recipe(
        recipe, models, {**form, "keep_modules": ["norm"], "keep_blocks": ["0", "2", "x", None]}
    )
    assert chosen.keep == Keep(modules=("norm",), layers=((0, 1), (2, 3)))
    assert to_form(chosen, models)[0]["keep_blocks"] == ["0", "2"]
    written = chosen.model_copy(update={"keep": Keep(modules=("q_proj",), layers=((0, 2), (1, 3)))})
    again = to_recipe(written, models, to_form(written, models)[0])
    assert again.keep == written.keep, "as it was written"
    shown = keep_update("keep_modules", written, models)
    assert (shown["choices"][-1], shown["value"]) == ("q_proj", ["q_proj"])
    assert keep_update("keep_blocks", written, models)["choices"] == ["0", "1", "2"]
    assert keep_update("keep_blocks", recipe, Family("", ()))["choices"] == []
