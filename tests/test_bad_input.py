"""Damaged, hostile and careless input: one sentence each, never a traceback, nothing lost."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch

import merging
from merging import MergingError, Recipe
from tests.conftest import edit_config


@pytest.fixture
def pair(family, tmp_path):
    for name in ("base", "one"):
        shutil.copytree(family / name, tmp_path / "pair" / name)
    return tmp_path / "pair"


def refused(recipe, out=None):
    with pytest.raises(MergingError) as caught:
        merging.check(recipe, out)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


def header(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


ENTRY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


@pytest.mark.parametrize(
    "content",
    [
        header(a={**ENTRY, "dtype": ["F32"]}),
        header(a={**ENTRY, "dtype": {}}),
        header(a={**ENTRY, "shape": "2"}),
        header(a={**ENTRY, "shape": [1] * 70, "data_offsets": [0, 4]}) + b"1234",
        header(__metadata__="text"),
        header(__metadata__=[1]),
        header(**{"\ud800": ENTRY}),
        header(**{"a\nb": ENTRY}),
        header(a=None),
        header(),
    ],
)
def test_hostile_headers(pair, write_recipe, content):
    (pair / "base" / "model.safetensors").write_bytes(content)
    refused(write_recipe(pair, "ties", ["one"]))


def test_an_absurd_empty_shape_takes_no_time(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(header(a={**ENTRY, "shape": [10**18, 0]}, b=ENTRY))
    recipe = Recipe(merge_method="linear", models=({"model": str(tmp_path / "m.safetensors")},))
    assert merging.check(recipe).parameters == 0


@pytest.mark.parametrize("values", [[], {}, {"a": ["x"]}, {"a": {}}, {"a": 5}, "text"])
def test_hostile_indexes(pair, write_recipe, values):
    (pair / "base" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": values}))
    refused(write_recipe(pair, "ties", ["one"]))


@pytest.mark.parametrize(
    "tokenizer",
    [
        [],
        {"model": "x"},
        {"model": {"vocab": 5}},
        {"model": {"vocab": "abc"}},
        {"model": {"vocab": [1, 2]}},
        {"model": {"vocab": {"a": [1]}}},
        {"model": {"vocab": {}}, "added_tokens": [5]},
        {"model": {"vocab": {}}, "added_tokens": [{"id": 1}]},
    ],
)
def test_odd_tokenizers_leave_the_other_problems_named(pair, write_recipe, tokenizer):
    (pair / "one" / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "densty" in refused(write_recipe(pair, "ties", ["one"], parameters={"densty": 1}))


@pytest.mark.parametrize("architectures", [5, True, {}, [], [5], "Llama", None])
def test_odd_architectures(pair, write_recipe, architectures):
    edit_config(pair / "one", architectures=architectures)
    merging.check(write_recipe(pair, "ties", ["one"]))


@pytest.mark.parametrize("text", ["", "[]", "{", "7", "\ud800" * 3, "[" * 100_000])
def test_odd_configs(pair, write_recipe, text):
    (pair / "one" / "config.json").write_text(text, errors="surrogatepass")
    refused(write_recipe(pair, "ties", ["one"]))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~nosuchuser/x", "", "org/" + "x" * 300])
def test_names_that_cannot_be(name):
    refused(Recipe(merge_method="ties", base_model=name, models=({"model": name},)))


@pytest.mark.parametrize("out", ["x" * 5000, "a\0b"])
def test_outputs_that_cannot_be(family, write_recipe, out):
    refused(write_recipe(family, "ties"), out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_weights(pair, write_recipe):
    (pair / "one" / "model.safetensors").chmod(0)
    assert "cannot be read" in refused(write_recipe(pair, "ties", ["one"]))


def test_an_input_under_the_hidden_name_of_the_output(pair, write_recipe, tmp_path):
    (pair / "one").rename(pair / ".z.partial")
    assert "would overwrite" in refused(write_recipe(pair, "ties", [".z.partial"]), pair / "z")


@pytest.mark.parametrize(
    "options",
    [
        {"density": {}},
        {"lambda": []},
        {"density": "much"},
        {"seed": -1},
        {"profile": "foo"},
        {"lambda": 1, "lambda_": 1},
        {"weight": [True, object()]},
        {"density": 10**400},
    ],
    ids=lambda options: " ".join(f"{name} {type(value).__name__}" for name, value in options.items()),
)
def test_odd_arguments_in_memory(options):
    base = {"a": torch.zeros(3)}
    with pytest.raises(MergingError):
        merging.merge_state_dicts(base, [base, base], "ties", **options)
    with pytest.raises(MergingError):
        merging.merge_state_dicts(base, [base, base], 5)


def test_arrays_and_generators_are_welcome():
    base = {"a": torch.zeros(3)}
    models = ({"a": torch.full((3,), value)} for value in (1.0, 2.0))
    merged = merging.merge_state_dicts(
        base, models, "ties", weight=np.array([1.0, 3.0]), density=torch.tensor([1.0, 1.0])
    )
    assert merged["a"].tolist() == [1.75] * 3


def test_one_sentence_for_many_blocks(family, write_recipe):
    text = refused(write_recipe(family, "ties", parameters={"density": [0.5, 7]}, scope="tensor"))
    assert text.count("density") <= 4


@pytest.mark.parametrize(
    "slices",
    [
        [{}],
        [{"sources": None}],
        [{"sources": [{}]}],
        [{"sources": [{"model": "x", "layer_range": None}]}],
        [{"sources": [{"model": "x", "layer_range": [0, 10**30]}]}],
        [{"sources": [{"model": "x", "layer_range": [-(10**9), 10**9]}]}],
        [{"sources": [{"model": {"path": ["x"]}, "layer_range": [0, 1]}]}],
        [{"sources": [{"model": {"model": {"path": "x"}, "lora": 5}, "layer_range": [0, 1]}]}],
        [{"sources": [{"model": "x", "layer_range": [0, 1], "parameters": []}]}],
        [{"sources": {"model": "x"}}],
        [[[]]],
        {"sources": []},
        ["x" * 5000],
    ],
    ids=lambda value: str(value)[:60],
)
def test_odd_slices(family, tmp_path, slices):
    text = json.dumps({"merge_method": "passthrough", "slices": slices}).replace(
        '"x"', json.dumps(str(family / "one"))
    )
    (tmp_path / "r.yaml").write_text(text)
    refused(tmp_path / "r.yaml")


def test_a_slice_of_endless_length_is_refused_at_once(family, tmp_path):
    source = {"model": str(family / "one"), "layer_range": [0, 10**12]}
    (tmp_path / "r.yaml").write_text(
        json.dumps({"merge_method": "passthrough", "slices": [{"sources": [source]}]})
    )
    assert "has no block 3; it has 3, 0 to 2" in refused(tmp_path / "r.yaml")


BASE = {"a": torch.zeros(3)}


@pytest.mark.parametrize(
    ("base", "models"),
    [
        (BASE, [3]),
        (BASE, BASE),
        (BASE, [{"a": [1.0, 2.0, 3.0]}]),
        (BASE, [{"a": np.zeros(3, dtype=np.float32)}]),
        ({1: torch.zeros(3)}, [BASE]),
        (BASE, [{"a": torch.zeros(3, device="meta")}]),
        ([torch.zeros(3)], [BASE]),
    ],
    ids=str,
)
def test_what_is_no_dictionary_of_tensors(base, models):
    with pytest.raises(MergingError, match="give"):
        merging.merge_state_dicts(base, models, "ties")


@pytest.mark.parametrize("method", ["sce", "dare_ties"])
def test_a_value_that_spoils_its_whole_scope_is_named(monkeypatch, method):
    """The first piece is not finite because of a value in the last: not λ is to blame."""
    monkeypatch.setattr("merging.tensor_plan.PIECE_BYTES", 8192)
    base = torch.full((64, 32), 0.1)
    one, two = base + torch.randn(2, 64, 32) * 0.01
    one[50, 3] = float("nan")
    rescale = {"rescale": "l1"} if method == "dare_ties" else {}
    with pytest.raises(MergingError, match=r"not finite, because model 1 holds 1 NaN .* in 'w'\. Use an"):
        merging.merge_state_dicts({"w": base}, [{"w": one}, {"w": two}], method, **rescale)
