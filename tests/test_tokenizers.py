"""Models with unequal vocabularies and heads, merged, saved, and read again by transformers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import merging
from merging.errors import PlanError
from merging.folders import small_files
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


@pytest.mark.parametrize("source", ["base", "union"])
def test_slices_whose_last_model_has_no_head_of_its_own(two, tmp_path, source):
    """Its embedding is the head, and not that of the first slice's model."""
    save_model(tmp_path / "tied", train("bpe", 45), seed=3, tie_word_embeddings=True)
    sources = [{"model": str(one), "layer_range": [0, 1]} for one in (two / "one", tmp_path / "tied")]
    keys = {"slices": [{"sources": [one]} for one in sources], "tokenizer_source": source}
    model, _ = reloaded(merging.merge(recipe(tmp_path, "passthrough", (), **keys), tmp_path / "out"))
    first, last = (merging.Checkpoint.open(one["model"]) for one in sources)
    tokens = merging.check(recipe(tmp_path, "passthrough", (), **keys)).tokens.vocabulary
    for weight, one in ((model.model.embed_tokens.weight, first), (model.lm_head.weight, last)):
        rows, values = one.vocabulary, one.read(EMBEDDING)
        for token in rows.keys() & tokens.keys():
            assert torch.equal(weight[tokens[token]], values[rows[token]]), token


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


@pytest.fixture(scope="session")
def padded(tmp_path_factory) -> Path:
    """`base` with padding rows; `trimmed` without them; `bare` without a tokenizer; `more` with an added end token and a
    template that writes it."""
    folder = tmp_path_factory.mktemp("padded")
    tokenizer = train("bpe", 50)
    save_model(folder / "base", tokenizer, rows=64, seed=1)
    save_model(folder / "trimmed", tokenizer, seed=2)
    save_model(folder / "bare", tokenizer, rows=64, seed=3)
    for file in (folder / "bare").glob("tokenizer*"):
        file.unlink()
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    save_model(
        folder / "more",
        tokenizer,
        added=("<|im_end|>",),
        end="<|im_end|>",
        template=template,
        rows=64,
        seed=4,
    )
    return folder


def task(folder: Path, *models: str, **keys) -> Path:
    return recipe(folder, "task_arithmetic", models, base_model=str(folder / "base"), **keys)


def test_a_padded_vocabulary_stays_padded(padded, tmp_path):
    with pytest.raises(PlanError, match="set tokenizer_source"):
        merging.check(task(padded, "trimmed"))
    out = merging.merge(task(padded, "trimmed", tokenizer_source="base"), tmp_path / "out")
    model, _ = reloaded(out)
    made, base, trimmed = (tensors(one)[EMBEDDING] for one in (out, padded / "base", padded / "trimmed"))
    torch.testing.assert_close(made[:50], (base[:50] + trimmed) / 2)
    assert torch.equal(made[50:], base[50:])
    assert model.config.vocab_size == len(made) == 64
    (own, borrowed) = merging.check(task(padded, "trimmed", tokenizer_source="base")).tokens.counts
    assert (own.own, borrowed.own, borrowed.copied, own.padding) == (50, 50, 0, 14)


def test_a_union_takes_padding_rows_first(padded):
    plan = merging.check(task(padded, "more", "trimmed", tokenizer_source="union")).tokens
    assert (plan.rows, plan.tokens, plan.added) == (64, 51, ("<|im_end|>",))
    assert [one.copied for one in plan.counts] == [1, 0, 1]


def test_padding_to_a_multiple_is_the_mean(padded, tmp_path):
    keys = {"tokenizer": {"source": "base", "pad_to_multiple_of": 8}}
    out = merging.merge(task(padded, "trimmed", **keys), tmp_path / "out")
    made = tensors(out)[HEAD]
    assert len(made) == 56
    torch.testing.assert_close(made[50:], made[:50].mean(0).expand(6, -1))


def test_tokenizer_files_of_other_names_go_with_it(padded):
    for name in ("spiece.model", "qwen.tiktoken"):
        (padded / "base" / name).write_bytes(b"x")
    tokens = merging.check(task(padded, "bare")).tokens
    assert {"spiece.model", "qwen.tiktoken", "tokenizer.json"} <= tokens.files().keys()
    for name in ("spiece.model", "qwen.tiktoken"):
        (padded / "base" / name).unlink()


def test_a_model_without_a_tokenizer_has_the_bases(padded):
    plan = merging.check(task(padded, "bare", tokenizer_source="union"))
    assert any("no tokenizer.json" in text for text in plan.warnings)
    assert plan.tokens.counts == () or plan.tokens.counts[1].own == 50
    with pytest.raises(PlanError, match="bare has no tokenizer"):
        merging.check(task(padded, "trimmed", tokenizer_source=str(padded / "bare")))


def test_end_token_and_template_are_shown_and_decided(padded, tmp_path):
    more = str(padded / "more")
    plan = merging.check(task(padded, "more", tokenizer_source="union"))
    assert any("its end token is <|im_end|>, the result's <|end|>" in text for text in plan.warnings)
    assert any("chat template differs" in text for text in plan.warnings)
    keys = {"tokenizer_source": "union", "special_tokens": more, "chat_template": more}
    assert not any(
        "end token" in t or "template" in t for t in merging.check(task(padded, "more", **keys)).warnings
    )
    model, tokenizer = reloaded(merging.merge(task(padded, "more", **keys), tmp_path / "out"))
    number = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token == "<|im_end|>"
    assert {number} == {model.config.eos_token_id, model.generation_config.eos_token_id}
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "the cat"}], tokenize=False)
    assert prompt == "the cat<|im_end|>"
    base = merging.check(task(padded, "more", special_tokens="base", chat_template="auto"))
    assert any("it writes '<|im_end|>'" in text for text in base.warnings)


def test_a_special_token_that_the_output_lacks(padded):
    with pytest.raises(PlanError, match="which the output's tokenizer lacks"):
        merging.check(task(padded, "more", tokenizer_source="base", special_tokens=str(padded / "more")))


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_other_kinds_of_tokenizers(tmp_path, kind):
    save_model(tmp_path / "one", train(kind, 40), added=("<|a|>",), seed=1)
    save_model(tmp_path / "two", train(kind, 45, TEXT[1:]), added=("<|b|>",), seed=2)
    file = recipe(tmp_path, tokenizer_source="union")
    model, tokenizer = reloaded(merging.merge(file, tmp_path / "out"))
    assert tokenizer.get_vocab() == dict(merging.check(file).tokens.vocabulary)
    ids = tokenizer("the cat <|a|> <|b|>")["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<|b|>") in ids
    assert max(ids) < len(model.get_input_embeddings().weight)
    assert tokenizer.decode(tokenizer("the cat sat")["input_ids"]).strip() == "the cat sat"


def test_tokenizers_that_have_no_union(two, tmp_path):
    save_model(tmp_path / "one", train("unigram", 40), seed=1)
    file = recipe(tmp_path, models=["one", str(two / "two")], tokenizer_source="union")
    with pytest.raises(PlanError, match="Choose tokenizer_source: base"):
        merging.check(file)


@pytest.mark.parametrize("number", [-1, 10**15])
def test_ids_without_end_are_refused(two, tmp_path, number):
    save_model(tmp_path / "one", train("bpe", 50))
    file = tmp_path / "one" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"][0]["id"] = number
    file.write_text(json.dumps(content))
    with pytest.raises(PlanError, match="which no embedding has rows for"):
        merging.check(recipe(tmp_path, models=["one", str(two / "two")], tokenizer_source="union"))


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ({"<x>": {"source": "nobody"}}, "the model nobody is none of"),
        ({"<x>": {"source": {"kind": "model_token"}}}, "either token or token_id"),
        ({"<x>": {"source": {"kind": "model_token", "model": "$one", "token_id": 9999}}}, "no row for 9999"),
        ({"<x>": {"source": "$one"}}, "no row for this token"),
    ],
)
def test_rows_that_cannot_be(two, tokens, says):
    tokens = json.loads(json.dumps(tokens).replace("$one", str(two / "one")))
    with pytest.raises(PlanError, match=says):
        merging.check(recipe(two, tokenizer={"source": "union", "tokens": tokens}))


def test_rows_are_read_alike_in_any_blocks(two):
    plan = merging.check(recipe(two, tokenizer_source="union"))
    for tensor in plan.tensors:
        if tensor.info.name in {EMBEDDING, HEAD}:
            for one in tensor.inputs:
                whole = one.source.read(one.name)
                rows = [one.source.read(one.name, row, row + 1) for row in range(len(whole))]
                assert torch.equal(whole, torch.cat(rows))


def test_such_a_family_is_inspected_and_asked_unsaved(two):
    from merging.memory.unsaved import load_unsaved
    from merging.memory.whatif import Residents
    from merging.tokenizing.vocabulary import plan_vocabulary

    file = recipe(two, "task_arithmetic", ["two"], base_model=str(two / "one"), tokenizer_source="union")
    plan = merging.check(file)
    assert merging.inspect(file).tensors
    asked = load_unsaved(plan, Residents())
    assert asked.tokenizer.get_vocab() == dict(plan.tokens.vocabulary)
    assert len(asked.model.get_input_embeddings().weight) == plan.tokens.rows
    shown = plan_vocabulary(plan)
    assert shown.token(plan.tokens.vocabulary["<|b|>"]).text == "<|b|>"


def test_the_command_line_reports_it(two, command_line):
    said = command_line("check", recipe(two, tokenizer_source="union"))
    assert "the union of all" in said.stdout
    assert "copied from another model" in said.stdout


def test_a_tokenizer_that_is_known_is_not_parsed_again(tmp_path):
    save_model(tmp_path / "one", train("bpe", 50), added=("<|kept|>",))
    shutil.copytree(tmp_path / "one", tmp_path / "same")
    known = merging.Checkpoint.open(tmp_path / "one").vocabulary
    assert merging.Checkpoint.open(tmp_path / "same").vocabulary is known
    file = tmp_path / "same" / "tokenizer.json"
    times = file.stat()
    file.write_text(file.read_text().replace("<|kept|>", "<|edit|>"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "<|edit|>" in merging.Checkpoint.open(tmp_path / "same").vocabulary
    for number in range(small_files.MOST_KEPT + 1):
        file.write_text(f'{{"model": {{"vocab": {{"{number}": 0}}}}}}')
        assert merging.Checkpoint.open(tmp_path / "same").vocabulary == {str(number): 0}
    assert len(small_files._kept) == small_files.MOST_KEPT
