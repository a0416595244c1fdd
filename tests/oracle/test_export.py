"""Recipes that we write are mergekit's: its own configuration class reads them, and they give the same weights."""

from __future__ import annotations

import pytest
import torch
import yaml

import merging
from oracle.compare import UNIT, Tally
from oracle.conftest import tensors_of
from oracle.recipes import ALL, DETERMINISTIC

MERGED_AGAIN = ("ties-filters", "slices-slerp-own-base", "linear-base-listed", "slices-ties")


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
        case.name: merging.Recipe.load(oracle.root / "recipes" / f"{case.name}.yml").to_mergekit()
        for case in ALL
    }
    for name, config in read_by_mergekit(in_mergekit, tmp_path, texts).items():
        assert unknown_keys(yaml.safe_load(texts[name]), config) == [], name


@pytest.mark.parametrize("name", MERGED_AGAIN)
def test_exported_recipe_gives_mergekits_own_weights(oracle, in_mergekit, tmp_path, name):
    case = next(case for case in DETERMINISTIC if case.name == name)
    recipe = merging.Recipe.load(oracle.root / "recipes" / f"{name}.yml")
    (tmp_path / "exported.yml").write_text(recipe.to_mergekit())
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


WEIGHTS = {"weight": 0.5}
ALONE = ("slerp", "dare_linear")
LIKE_MERGEKIT = {"scope": "tensor", "elect_on": "weighted", "zero_sum": "plus", "count": "floor"}
BUILT = {
    "linear": (WEIGHTS, {}),
    "task_arithmetic": ({}, {}),
    "ties": ({"weight": [0.1, 0.7], "density": 0.3}, LIKE_MERGEKIT),
    "slerp": ({}, {"t": [0.2, 0.6]}),
    "breadcrumbs": ({"density": 0.7, "gamma": 0.1}, {"lambda": 0.5, "count": "floor"}),
    "dare_linear": ({"weight": 0.5, "density": 0.8}, {"normalize": False, "rescale": "l1"}),
}


@pytest.mark.parametrize("method", BUILT)
def test_recipe_built_by_the_api_gives_our_weights(oracle, in_mergekit, tmp_path, method):
    """Built from values, with the papers' defaults: mergekit, which has others, does the same once they are written."""
    folders = oracle.families["smooth"]
    own, shared = BUILT[method]
    recipe = merging.Recipe.model_validate(
        {
            "merge_method": method,
            "base_model": str(folders["base"]),
            "models": [
                {"model": str(folders[name]), "parameters": own}
                for name in (["one"] if method in ALONE else ["one", "two"])
            ],
            "parameters": shared,
            "profile": "paper",
            "dtype": "float32",
        }
    )
    (tmp_path / "built.yml").write_text(recipe.to_mergekit())
    job = {"name": method, "recipe": str(tmp_path / "built.yml"), "out": str(tmp_path / "theirs"), "seed": 0}
    answer = in_mergekit([job])[method]
    assert answer["error"] is None
    ours = tensors_of(merging.merge(recipe, tmp_path / "ours", device="cpu"))
    theirs = tensors_of(tmp_path / "theirs")
    assert set(ours) == set(theirs)
    if (
        method == "dare_linear"
    ):  # other masks, but Σ|change| of a tensor is kept by both, but for its n roundings
        for name, base in tensors_of(folders["base"]).items():
            sums = [float((side[name].double() - base).abs().sum()) for side in (ours, theirs)]
            rounding = UNIT * float(base.abs().sum()) / sums[0]
            assert sums[0] == pytest.approx(sums[1], rel=2 * (rounding + 2 * UNIT * base.numel())), name
        return
    tally = Tally.of(ours, theirs, answer["tensors"], method, oracle.tensor, ours)
    print(f"\n{method}: {tally}")
    assert not tally.beyond, "\n".join(tally.beyond)


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
