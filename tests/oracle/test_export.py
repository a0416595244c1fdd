"""Recipes that we write are mergekit's: its own configuration class reads them, and they give the same weights."""

from __future__ import annotations

import pytest
import torch
import yaml

import merging
from oracle.conftest import tensors_of
from oracle.recipes import ALL, DETERMINISTIC

MERGED_AGAIN = ("ties-filters", "slices-slerp-own-base", "linear-base-listed", "slices-ties")


def exported(recipe: merging.Recipe) -> str:
    if not hasattr(recipe, "to_mergekit"):
        pytest.skip("Recipe.to_mergekit is not in Mergescope yet")
    return recipe.to_mergekit()


def read_by_mergekit(in_mergekit, tmp_path, texts: dict[str, str]) -> dict[str, dict]:
    """What mergekit's configuration class makes of each text."""
    jobs = []
    for name, text in texts.items():
        (tmp_path / f"{name}.yml").write_text(text)
        jobs.append({"name": name, "recipe": str(tmp_path / f"{name}.yml"), "out": None, "seed": 0})
    answers = in_mergekit(jobs)
    assert {name: answer["error"] for name, answer in answers.items() if answer["error"]} == {}
    return {name: answer["config"] for name, answer in answers.items()}


def unknown_keys(written, read, where="") -> list[str]:
    """Keys of the YAML that mergekit's configuration dropped; it does so without a word."""
    if isinstance(written, dict) and isinstance(read, dict):
        missing = [f"{where}{key}" for key in written if key not in read]
        shared = [key for key in written if key in read]
        return missing + [
            lost for key in shared for lost in unknown_keys(written[key], read[key], f"{where}{key}.")
        ]
    if isinstance(written, list) and isinstance(read, list):
        return [lost for pair in zip(written, read, strict=True) for lost in unknown_keys(*pair, where)]
    return []


def test_every_recipe_survives_the_way_back(oracle, in_mergekit, tmp_path):
    """Read by us and exported, a recipe of mergekit's is read by mergekit, which knows every key."""
    texts = {
        case.name: exported(merging.Recipe.load(oracle.root / "recipes" / f"{case.name}.yml")) for case in ALL
    }
    for name, config in read_by_mergekit(in_mergekit, tmp_path, texts).items():
        assert unknown_keys(yaml.safe_load(texts[name]), config) == [], name


@pytest.mark.parametrize("name", MERGED_AGAIN)
def test_exported_recipe_gives_mergekits_own_weights(oracle, in_mergekit, tmp_path, name):
    case = next(case for case in DETERMINISTIC if case.name == name)
    recipe = merging.Recipe.load(oracle.root / "recipes" / f"{name}.yml")
    (tmp_path / "exported.yml").write_text(exported(recipe))
    job = {
        "name": name,
        "recipe": str(tmp_path / "exported.yml"),
        "out": str(tmp_path / "merged"),
        "seed": 0,
    }
    assert in_mergekit([job])[name]["error"] is None
    again, before = tensors_of(tmp_path / "merged"), tensors_of(oracle.theirs(case))
    assert set(again) == set(before)
    for tensor, value in before.items():
        assert torch.equal(again[tensor], value), tensor


def test_recipes_built_by_the_api(oracle, in_mergekit, tmp_path):
    """Built from values instead of a file, with both profiles where mergekit can do what the recipe asks."""
    models = oracle.families["smooth"]
    texts = {}
    for method, own in {
        "linear": {"weight": 0.5},
        "task_arithmetic": {"weight": [0.1, 0.5]},
        "ties": {"weight": 0.5, "density": 0.3},
        "dare_linear": {"weight": 0.5, "density": 0.8},
        "dare_ties": {"weight": 0.5, "density": 0.8},
        "della": {"weight": 0.5, "density": 0.7, "epsilon": 0.1},
        "della_linear": {"weight": 0.5, "density": 0.7, "epsilon": 0.1},
    }.items():
        recipe = merging.Recipe.model_validate(
            {
                "merge_method": method,
                "base_model": None if method == "linear" else str(models["base"]),
                "models": [{"model": str(models[name]), "parameters": own} for name in ("one", "two")],
                "dtype": "float32",
                "seed": 0,
            }
        )
        texts[method] = exported(recipe)
    for name, config in read_by_mergekit(in_mergekit, tmp_path, texts).items():
        assert unknown_keys(yaml.safe_load(texts[name]), config) == [], name
        assert config["merge_method"] == name
        assert len(config["models"]) == 2


def test_own_keys_are_ignored_by_mergekit_without_a_word(oracle, in_mergekit, tmp_path):
    """Why an export is needed: mergekit reads our keys and drops them, so it would merge something else."""
    own = {
        "profile": "paper",
        "seed": 7,
        "scope": "model",
        "exclude": ["*norm*"],
        "overrides": [{"tensors": "*", "parameters": {}}],
    }
    recipe = yaml.safe_load((oracle.root / "recipes" / "ties.yml").read_text())
    texts = {"own": yaml.safe_dump({**recipe, **own}), "without": yaml.safe_dump(recipe)}
    read = read_by_mergekit(in_mergekit, tmp_path, texts)
    assert set(unknown_keys(yaml.safe_load(texts["own"]), read["own"])) == set(own)
    assert read["own"] == read["without"]


def test_plain_yaml_of_a_mergekit_recipe_is_read(oracle, in_mergekit, tmp_path):
    """`to_yaml` of what was loaded adds no key that mergekit does not know."""
    texts = {
        case.name: merging.Recipe.load(oracle.root / "recipes" / f"{case.name}.yml").to_yaml() for case in ALL
    }
    for name, config in read_by_mergekit(in_mergekit, tmp_path, texts).items():
        assert unknown_keys(yaml.safe_load(texts[name]), config) == [], name
