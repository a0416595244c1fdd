"""What a score is kept under: the same for the same bits, however the recipe is written."""

from __future__ import annotations

import shutil

import pytest
import torch

import merging
from merging.checkpoint import Checkpoint
from merging.folders.adapter import Adapted
from merging.folders.adapter_file import AdapterFile
from merging.judging.history import Draft, subject_of_model, subject_of_plan
from merging.judging.suites import Item, Suite
from merging.recipe import Recipe
from merging.tokenizing.view import Lender, Rows, View
from tests.test_adapter import save_adapter


def subject(file) -> str:
    return subject_of_plan(merging.check(Recipe.load(file)))


@pytest.fixture
def plain(family, write_recipe):
    return write_recipe(
        family, "dare_ties", name="plain.yaml", profile="paper", parameters={"density": 0.5, "lambda": 1.0}
    )


def test_another_way_to_write_the_same_recipe(family, write_recipe, plain, monkeypatch):
    found = subject(plain)
    monkeypatch.chdir(family)
    yaml = "\n".join(
        [
            "parameters: {lambda: 1, density: [0.5, 0.5], weight: 1.0}",
            "models: [{parameters: {density: 0.5}, model: ./one}, {model: one/../two}]",
            "seed: 0\nprofile: paper\nbase_model: base/\ntokenizer_source: base\nmerge_method: dare_ties",
        ]
    )
    assert subject_of_plan(merging.check(Recipe.from_yaml(yaml))) == found


def test_a_copy_of_the_models_elsewhere_is_the_same(family, write_recipe, plain, tmp_path):
    copy = shutil.copytree(family, tmp_path / "copy")
    other = write_recipe(
        copy, "dare_ties", name="copy.yaml", profile="paper", parameters={"density": 0.5, "lambda": 1.0}
    )
    assert subject(other) == subject(plain)


@pytest.mark.parametrize(
    "keys",
    [
        {"parameters": {"density": 0.5, "lambda": 1.1}},
        {"parameters": {"density": 0.6, "lambda": 1.0}},
        {"seed": 1},
        {"dtype": "bfloat16"},
        {"profile": "mergekit", "dtype": "float32"},
        {"exclude": ["model.norm.weight"]},
        {"overrides": [{"tensors": "*.q_proj.weight", "parameters": {"weight": 0.5}}]},
        {"chat_template": "{{ messages }}"},
        {"experts": ("two", "one")},
        {"experts": ("one", "three")},
        {"experts": ("one", "two", "three")},
        {"experts": ("one", {"model": "two", "parameters": {"weight": 0.9}})},
    ],
    ids=lambda keys: str(keys),
)
def test_what_changes_bits_or_words_changes_the_subject(family, write_recipe, plain, keys):
    keys = {"profile": "paper", "parameters": {"density": 0.5, "lambda": 1.0}, **keys}
    assert subject(write_recipe(family, "dare_ties", **keys)) != subject(plain)


def test_the_seed_of_a_method_without_chance_does_not_matter(family, write_recipe):
    assert subject(write_recipe(family, "ties", seed=1)) == subject(write_recipe(family, "ties", seed=2))


def test_a_draft_names_the_models_and_what_their_scores_are_kept_under(family, plain):
    draft = Draft.of(merging.check(Recipe.load(plain)))
    folders = [family / name for name in ("base", "one", "two")]
    assert [model.path for model in draft.models] == [str(folder) for folder in folders]
    fingerprints = [Checkpoint.open(folder).fingerprint for folder in folders]
    assert [model.fingerprint for model in draft.models] == fingerprints
    assert [subject_of_model(Checkpoint.open(folder)) for folder in folders] == fingerprints


def test_a_merge_that_was_written_has_the_subject_of_its_plan(family, plain, tmp_path):
    merged = merging.merge(Recipe.load(plain), tmp_path / "merged", device="cpu")
    again = Checkpoint.open(merged)
    assert subject_of_model(again) == subject(plain) != again.fingerprint
    onward = Recipe.from_yaml(
        f"merge_method: linear\nmodels: [{{model: {merged}}}, {{model: {family / 'three'}}}]\nparameters: {{weight: 1}}"
    )
    draft = Draft.of(merging.check(onward))
    assert draft.models[0].fingerprint == subject(plain)


def test_a_model_that_is_computed_from_a_merge_is_not_that_merge(plain, tmp_path):
    merged = Checkpoint.open(merging.merge(Recipe.load(plain), tmp_path / "merged", device="cpu"))
    shorter = View(Lender(merged, {}), {merged.embedding: Rows(torch.arange(5), {}, 5)})
    adapted = Adapted(merged, AdapterFile(save_adapter(merged.folder, tmp_path / "adapter")))
    found = [subject_of_model(model) for model in (merged, shorter, adapted)]
    assert found == [subject(plain), shorter.fingerprint, adapted.fingerprint]
    assert len(set(found)) == 3


@pytest.mark.parametrize("said", ["\ud800", "base", "0" * 33, ""])
def test_a_file_cannot_say_it_is_something_else_than_a_merge(family, said):
    model = Checkpoint.open(family / "base")
    model.metadata["mergescope_subject"] = said
    assert subject_of_model(model) == model.fingerprint


def test_other_weights_chat_template_or_tokenizer_of_a_parent(family, plain, write_recipe, tmp_path):
    copy = shutil.copytree(family, tmp_path / "copy")
    keys = {"profile": "paper", "parameters": {"density": 0.5, "lambda": 1.0}}
    other = write_recipe(copy, "dare_ties", name="copy.yaml", **keys)
    (copy / "base" / "chat_template.jinja").write_text("{{ messages }}")
    with_template = subject(other)
    (copy / "base" / "tokenizer.json").write_text((copy / "base" / "tokenizer.json").read_text() + "\n")
    with_both = subject(other)
    shutil.copy(copy / "three" / "model.safetensors", copy / "one" / "model.safetensors")
    assert len({subject(plain), with_template, with_both, subject(other)}) == 4


def test_importance_counts_by_its_content(family, write_recipe, tmp_path):
    suite = Suite("sums", tuple(Item(f"{n}+1=", f"{n + 1}") for n in range(4)))
    recipe = Recipe.load(write_recipe(family, "task_arithmetic"))
    for name, partition in (("a", "module"), ("b", "module"), ("c", "layer")):
        merging.importance(recipe, suite, partition=partition, device="cpu").save(tmp_path / name)
    found = {
        name: subject(write_recipe(family, "apl", profile="paper", importance=str(tmp_path / name)))
        for name in "abc"
    }
    assert found["a"] == found["b"] != found["c"]
