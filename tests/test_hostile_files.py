"""Configs and tokenizers of strangers: one sentence, at once, and the app goes on."""

from __future__ import annotations

import base64
import json
import shutil

import pytest

import merging
from merging import Checkpoint, MergingError
from merging.inference import LoadedModel
from merging.tokenizing.tokenizer_check import require_sound_tokenizer
from tests.conftest import edit_config

WORDS = {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"}
PARTS = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
PLAIN = {"version": "1.0", **PARTS, "added_tokens": [], "model": WORDS}
TEN = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
LONG_MAP = base64.b64encode((8).to_bytes(4, "little") + bytes(8) + b"a" * 5000 + b"\0").decode()
BROKEN_MAP = "/////wAAAAAAAAA="
SENT = {"id": "A", "type_id": 0}


@pytest.fixture
def model(family, tmp_path):
    return shutil.copytree(family / "one", tmp_path / "model")


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000"),
        ({"num_hidden_layers": -1}, "from 0 to 256"),
        ({"num_attention_heads": -4}, "num_attention_heads is -4"),
        ({"num_key_value_heads": 0}, "from 1"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"vocab_size": 10**30}, "vocab_size"),
        ({"head_dim": True}, "head_dim is True"),
        ({"intermediate_size": [48, [48]]}, "intermediate_size"),
        ({"max_position_embeddings": 1e400}, "max_position_embeddings is inf"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"text_config": "x"}, "text_config is 'x', and must be a table"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "text_config: num_hidden_layers"),
        ({"attn_implementation": "somebody/kernels"}, "code from the Hub"),
        ({"num_attention_heads": 10**100}, "more than 40 digits"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_absurd_configs_are_refused_by_name(model, entries, named):
    edit_config(model, **entries)
    for use in (Checkpoint.open, LoadedModel.load):
        with pytest.raises(MergingError, match="is no config of a model") as caught:
            use(model)
        assert named in str(caught.value)
        assert len(str(caught.value)) < 500


def test_an_absurd_config_is_one_of_the_problems_of_a_recipe(model, family, write_recipe):
    edit_config(model, num_hidden_layers=10**12)
    with pytest.raises(MergingError, match="num_hidden_layers") as caught:
        merging.check(write_recipe(family, "ties", ["two", {"model": str(model)}], parameters={"densty": 1}))
    assert "densty" in str(caught.value)


def test_usual_configs_are_let_through(model):
    edit_config(
        model,
        head_dim=None,
        n_inner=None,
        num_local_experts=0,
        n_ctx=-1,
        intermediate_size=48.0,
        text_config=None,
    )
    assert Checkpoint.open(model).config["num_local_experts"] == 0


@pytest.mark.parametrize("entries", [{"rope_scaling": 5}, {"id2label": "x"}, {"pad_token_id": 10**9}])
def test_whatever_transformers_raises_is_one_sentence(model, entries):
    edit_config(model, **entries)
    with pytest.raises(MergingError, match="cannot be loaded"):
        LoadedModel.load(model)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [TEN] * 12}}, "times as long"),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}}, "before every text"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": LONG_MAP}}, "bytes for a letter"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": BROKEN_MAP}}, "crashed"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": SENT}] * 9999}}, "tokens around"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}}, "Regex"),
        ({"decoder": {"type": "Strip", "content": "a", "start": 10**15, "stop": 10**15}}, "index out of bounds"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}}, "out of range"),
        ({"model": {"type": "nothing"}}, "did not match"),
    ],
)  # fmt: skip
def test_hostile_tokenizers_are_refused_before_they_are_loaded(tmp_path, parts, reason):
    (tmp_path / "tokenizer.json").write_text(json.dumps(PLAIN | parts))
    with pytest.raises(MergingError, match=reason) as caught:
        require_sound_tokenizer(tmp_path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", ["[" * 100_000, "{", '{"model": ' * 5000])
def test_malformed_tokenizers(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(MergingError, match="not readable as JSON"):
        require_sound_tokenizer(tmp_path)


@pytest.mark.parametrize("number", [-1, 10**6, 10**30, float("inf")])
def test_ids_that_no_embedding_has_are_refused(model, family, write_recipe, number):
    content = json.loads((model / "tokenizer.json").read_text())
    content["model"]["vocab"]["zz"] = number
    (model / "tokenizer.json").write_text(json.dumps(content))
    recipe = write_recipe(family, "ties", ["one"], base_model=str(model))
    with pytest.raises(MergingError, match=r"ids from|malformed"):
        merging.check(recipe)


def test_a_tokenizer_that_is_too_large_is_not_read(model, monkeypatch):
    monkeypatch.setattr("merging.folders.small_files.MOST_BYTES", 500)
    with pytest.raises(MergingError, match="too many for a file of its kind"):
        Checkpoint.open(model).vocabulary  # noqa: B018
    with pytest.raises(MergingError, match="too many for a file of its kind"):
        LoadedModel.load(model)


def test_a_sound_tokenizer_is_tried_once(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text(json.dumps(PLAIN))
    require_sound_tokenizer(tmp_path)
    monkeypatch.setattr("merging.tokenizing.tokenizer_check._fails", lambda file: "tried again")
    require_sound_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(PLAIN) + " ")
    with pytest.raises(MergingError, match="tried again"):
        require_sound_tokenizer(tmp_path)
