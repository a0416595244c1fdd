"""Models with unequal vocabularies and heads, merged, saved, and read again by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import merging
from tests.vocabularies import TEXT, save_model, train

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def recipe(folder: Path, method: str = "linear", models=("one", "two"), **keys) -> Path:
    content = {
        "merge_method": method,
        "models": [{"model": str(folder / name), "parameters": {"weight": 0.5}} for name in models],
        **keys,
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(content))
    return file


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def reloaded(folder: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="session")
def two(tmp_path_factory) -> Path:
    """`one` and `two`: one BPE vocabulary and another, a special token of its own each."""
    folder = tmp_path_factory.mktemp("two")
    save_model(folder / "one", train("bpe", 50), added=("<|a|>", "<|both|>"), seed=1)
    save_model(folder / "two", train("bpe", 60, TEXT[1:]), added=("<|both|>", "<|b|>"), seed=2, end="<|b|>")
    return folder


def test_union(two, tmp_path):
    plan = merging.check(recipe(two, tokenizer_source="union"))
    out = merging.merge(recipe(two, tokenizer_source="union"), tmp_path / "out")
    model, tokenizer = reloaded(out)
    print(*plan.tokens.lines(), *plan.warnings, sep="\n")
    for text in [*TEXT, "the <|a|>cat<|b|> <|both|>"]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert max(ids) < model.get_input_embeddings().weight.shape[0]
    assert tokenizer.get_vocab() == dict(plan.tokens.vocabulary)
    made, parents = tensors(out), {name: tensors(two / name) for name in ("one", "two")}
    known = {name: merging.Checkpoint.open(two / name).vocabulary for name in parents}
    for name in (EMBEDDING, HEAD):
        for token, number in tokenizer.get_vocab().items():
            rows = [parents[one][name][ids[token]] for one, ids in known.items() if token in ids]
            torch.testing.assert_close(made[name][number], torch.stack(rows).mean(0), msg=token)
    reply = model.generate(**tokenizer("the <|b|>", return_tensors="pt"), max_new_tokens=2, do_sample=False)
    assert reply.shape[0] == 1
    assert tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id) == "<|end|>"


@pytest.mark.parametrize("base", ["tied", "own"])
def test_a_tied_model_with_one_that_has_a_head(tmp_path, base):
    for seed, name in enumerate(("tied", "own")):
        save_model(tmp_path / name, train("bpe", 50), seed=seed, tie_word_embeddings=name == "tied")
    keys = {"base_model": str(tmp_path / base), "merge_method": "task_arithmetic"}
    other = "own" if base == "tied" else "tied"
    out = merging.merge(recipe(tmp_path, models=[other], **keys), tmp_path / "out")
    model, _ = reloaded(out)
    parents = {name: tensors(tmp_path / name) for name in ("tied", "own")}
    parents["tied"][HEAD] = parents["tied"][EMBEDDING]
    for name in (EMBEDDING, HEAD):
        expected = (parents["tied"][name] + parents["own"][name]) / 2
        torch.testing.assert_close(model.state_dict()[name], expected)
    assert model.config.tie_word_embeddings is False
    plan = merging.check(recipe(tmp_path, models=[other], **keys))
    assert dict(plan.tokens.heads) == {str(tmp_path / "tied"): "tied", str(tmp_path / "own"): "own"}


def test_a_head_that_is_missing_everywhere(tmp_path):
    """config.json says that there is a head, and no file has one: transformers would draw one at random."""
    for seed, name in enumerate(("one", "two")):
        save_model(tmp_path / name, train("bpe", 50), seed=seed, tie_word_embeddings=True)
        file = tmp_path / name / "config.json"
        file.write_text(
            file.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
        )
    out = merging.merge(recipe(tmp_path), tmp_path / "out")
    model, _ = reloaded(out)
    assert torch.equal(model.lm_head.weight, tensors(out)[EMBEDDING])
    assert any("output head" in text for text in merging.check(recipe(tmp_path)).warnings)
