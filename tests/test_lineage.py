"""Two stages and more: a merge as a parent of the next, and what the last one tells of the first."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import merging
from merging import Checkpoint, Recipe
from merging.cards.lineage import (
    LINEAGE,
    MOST_MODELS,
    Ancestor,
    in_words,
    lineage_of_model,
    lineage_of_plan,
    short,
)
from merging.recipe import ModelEntry


def test_two_stages_in_python(family, tmp_path):
    one, two, three = (str(family / name) for name in ("one", "two", "three"))
    models = (ModelEntry(model=one), ModelEntry(model=two))
    skills = merging.merge(
        Recipe(merge_method="linear", models=models, parameters={"weight": 0.5}), tmp_path / "skills"
    )
    both = (ModelEntry(model=str(skills)), ModelEntry(model=three))
    last = merging.merge(
        Recipe(
            merge_method="task_arithmetic",
            base_model=str(family / "base"),
            models=both,
            parameters={"weight": 0.5},
        ),
        tmp_path / "last",
    )
    parts = {name: load_file(family / name / "model.safetensors") for name in ("base", "one", "two", "three")}
    for name, merged in load_file(last / "model.safetensors").items():
        base = parts["base"][name]
        half = 0.5 * parts["one"][name] + 0.5 * parts["two"][name]
        by_hand = base + 0.5 * (half - base) + 0.5 * (parts["three"][name] - base)
        torch.testing.assert_close(merged, by_hand, rtol=1e-5, atol=1e-6)

    found = lineage_of_model(Checkpoint.open(last))
    assert (
        in_words(found)
        == "Task arithmetic of skills (Linear (model soup) of one and two) and three over base"
    )
    card = (last / "README.md").read_text()
    assert (
        "- `base` (the base); licence not stated\n- `skills`; a merge by `Linear (model soup)` of\n"
        "  - `one`; licence not stated\n  - `two`; licence not stated\n- `three`; licence not stated\n"
        in card
    )
    assert "convert_hf_to_gguf.py FOLDER --outfile FOLDER.gguf --outtype f32" in card


def test_two_stages_on_the_command_line(family, write_recipe, tmp_path, command_line):
    first = write_recipe(family, "task_arithmetic", ["one", "two"], parameters={"weight": 0.5})
    assert command_line("merge", first, tmp_path / "skills", "--no-health").returncode == 0
    second = tmp_path / "second.yaml"
    second.write_text(
        "merge_method: slerp\nbase_model: skills\n"
        f"models:\n  - model: {family}/three\nparameters:\n  t: 0.5\n"
    )
    done = command_line("merge", second, tmp_path / "last", "--no-health")
    assert done.returncode == 0
    assert "a merge by `Task arithmetic` of" in (tmp_path / "last" / "README.md").read_text()
    exported = command_line("export", tmp_path / "last").stdout
    assert Recipe.from_yaml(exported).base_model == str(tmp_path / "skills"), "found from any folder"
    assert (
        f"# python convert_hf_to_gguf.py {tmp_path}/last --outfile {tmp_path}/last.gguf --outtype f32"
        in exported
    )


def test_grandparents_need_not_be_there_and_are_not_looked_for(family, tmp_path):
    folder = _claiming(
        family, tmp_path, {"method": "ties", "parents": [{"name": "/etc/passwd", "base": True}]}
    )
    plan = merging.check(Recipe(merge_method="linear", models=(ModelEntry(model=str(folder)),)))
    found = lineage_of_plan(plan)
    assert found.parents[0].parents == (Ancestor("/etc/passwd", is_base=True),)


@pytest.mark.parametrize(
    "claimed",
    [
        "[" * 50_000,
        "null",
        "[]",
        "x" * 200_000,
        {"parents": 7},
        {"parents": ["x", None, {"name": ["y"], "method": 3}]},
        {"parents": [{"name": "a\n# b `<img>`" + "c" * 5000}]},
    ],
)
def test_what_a_file_claims_may_be_anything(family, tmp_path, claimed):
    folder = _claiming(family, tmp_path, claimed)
    card = merging.merge(
        Recipe(merge_method="linear", models=(ModelEntry(model=str(folder)),)), tmp_path / "out"
    ).joinpath("README.md")
    lines = card.read_text().partition("## Licences")[0].splitlines()
    assert all(len(line) < 300 for line in lines)
    assert not [line for line in lines if line.startswith("# b")]


def test_many_generations_stay_few(family, tmp_path):
    one = {"name": "one", "method": "linear", "parents": []}
    for _ in range(30):
        one = {
            "name": "n",
            "method": "linear",
            "parents": [one, one] if len(json.dumps(one)) < 40_000 else [one],
        }
    folder = _claiming(family, tmp_path, one)
    out = merging.merge(
        Recipe(merge_method="linear", models=(ModelEntry(model=str(folder)),)), tmp_path / "out"
    )
    assert Checkpoint.open(out).metadata[LINEAGE].count('"name"') <= MOST_MODELS


def test_a_merge_of_an_earlier_version_tells_its_recipe(family, tmp_path):
    recipe = "merge_method: ties\nbase_model: org/base\nmodels: [{model: org/math}, {model: ./code}]"
    metadata = {"format": "pt", "mergescope_version": "0.1", "recipe": recipe}
    folder = _with_metadata(family, tmp_path, metadata)
    assert in_words(lineage_of_model(Checkpoint.open(folder))) == "TIES of org/math and code over org/base"


def test_names_are_short():
    assert [
        short(name) for name in ("/a/b/c", "./x/", "org/name", "org/name@main", "runs/by-name/ties-1")
    ] == [
        "c",
        "x",
        "org/name",
        "org/name@main",
        "ties-1",
    ]


def _claiming(family, tmp_path, claimed):
    text = claimed if isinstance(claimed, str) else json.dumps(claimed)
    return _with_metadata(family, tmp_path, {"format": "pt", LINEAGE: text})


def _with_metadata(family, tmp_path, metadata):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(load_file(family / "one" / "model.safetensors"), folder / "model.safetensors", metadata)
    (folder / "config.json").write_bytes((family / "one" / "config.json").read_bytes())
    return folder
