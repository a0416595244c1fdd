"""Rows of embedding and head by token, beside mergekit's own: base, a model and the union as sources, and single tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import merging
from oracle.conftest import tensors_of
from tests.vocabularies import TEXT, save_model, train

NAMES = ("base", "one", "two")
BLOCK = {
    "source": "union",
    "tokens": {
        "<|a|>": {"source": "$two", "force": False},
        "<|both|>": {"source": {"kind": "zero"}, "force": True},
        "<|b|>": {"source": {"kind": "model_token", "model": "$base", "token": "<|end|>"}},
        "<|new|>": {"source": {"kind": "model_token", "model": "$one", "token_id": 3}},
    },
    "pad_to_multiple_of": 16,
}
BLOCK["tokens"]["<|a|>"]["source"] = "$one"
CASES = {
    "base": {"tokenizer_source": "base"},
    "union": {"tokenizer_source": "union"},
    "model": {"tokenizer_source": "$two"},
    "block": {"tokenizer": BLOCK},
    "no_base": {"merge_method": "linear", "base_model": None, "tokenizer_source": "union"},
}


@pytest.fixture(scope="module")
def merged(oracle, in_mergekit_of, tmp_path_factory):
    """For every case: mergekit's folder, ours, and our plan."""
    root = tmp_path_factory.mktemp("vocabularies")
    same = train("bpe", 50)
    save_model(root / "base", same, added=("<|both|>",), seed=1)
    save_model(root / "one", same, added=("<|a|>", "<|both|>", "<|c|>"), seed=2)
    save_model(root / "two", train("bpe", 60, TEXT[1:]), added=("<|b|>", "<|c|>", "<|both|>"), seed=3)
    jobs, recipes = [], {}
    for name, keys in CASES.items():
        recipe = {
            "merge_method": "task_arithmetic",
            "base_model": "$base",
            "models": [{"model": f"${one}", "parameters": {"weight": 0.5}} for one in NAMES[1:]],
            "dtype": "float32",
            **keys,
        }
        if recipe["base_model"] is None:
            recipe["models"].append({"model": "$base", "parameters": {"weight": 0.25}})
        text = json.dumps({key: value for key, value in recipe.items() if value is not None})
        for one in NAMES:
            text = text.replace(f"${one}", str(root / one))
        recipes[name] = root / f"{name}.yml"
        recipes[name].write_text(text)
        jobs.append(
            {"name": name, "recipe": str(recipes[name]), "out": str(root / "theirs" / name), "seed": 1}
        )
    answers = in_mergekit_of(jobs, root)
    assert {name: answer["error"] for name, answer in answers.items() if answer["error"]} == {}
    return {
        name: (root / "theirs" / name, merging.merge(file, root / "ours" / name), merging.check(file).tokens)
        for name, file in recipes.items()
    }


def ids_of(folder: Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True).get_vocab()


@pytest.mark.parametrize("name", CASES)
def test_every_token_has_mergekits_row(merged, name):
    theirs, ours, plan = merged[name]
    known, own = ids_of(theirs), ids_of(ours)
    assert own.keys() == known.keys()
    assert own == dict(plan.vocabulary)
    for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
        first, second = tensors_of(theirs)[tensor], tensors_of(ours)[tensor]
        for token, number in own.items():
            torch.testing.assert_close(second[number], first[known[token]], rtol=1e-6, atol=1e-8, msg=token)
        if name == "block":
            assert first.shape == second.shape
            torch.testing.assert_close(second[len(own) :], first[len(own) :], rtol=1e-5, atol=1e-7)
