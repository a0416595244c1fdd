import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from merging.checkpoint import Checkpoint, StateDict
from merging.errors import CheckpointError
from tests.conftest import edit_config, save_llama


@pytest.fixture
def folder(tmp_path):
    return save_llama(tmp_path / "model", dtype=torch.bfloat16)


def shard(folder):
    """Split a single-file model into three shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    weight_map = {}
    for number, names in enumerate([list(tensors)[0::3], list(tensors)[1::3], list(tensors)[2::3]], 1):
        file = f"model-{number:05}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def test_values_and_rows_are_those_of_the_file(folder):
    checkpoint = Checkpoint.open(folder)
    for name, value in load_file(folder / "model.safetensors").items():
        assert torch.equal(checkpoint.read(name), value)
        assert torch.equal(checkpoint.read(name, 1, 3), value[1:3])


def test_shards_read_like_one_file(folder):
    whole = shard(folder)
    checkpoint = Checkpoint.open(folder)
    assert set(checkpoint.tensors) == set(whole)
    assert all(torch.equal(checkpoint.read(name), value) for name, value in whole.items())


def test_opening_reads_no_weights(folder, monkeypatch):
    monkeypatch.setattr("merging.checkpoint.read_at", lambda *_: pytest.fail("a weight was read"))
    assert Checkpoint.open(folder).parameters > 0


def test_scalars_empty_tensors_and_every_dtype(tmp_path):
    values = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "half": torch.ones(3, dtype=torch.float16),
        "whole": torch.arange(4),
        "truth": torch.tensor([True, False]),
    }
    save_file(values, tmp_path / "m.safetensors")
    checkpoint = Checkpoint.open(tmp_path / "m.safetensors")
    for name, value in values.items():
        assert torch.equal(checkpoint.read(name), value)
        assert checkpoint.read(name).dtype == value.dtype


def test_a_tied_head_is_one_tensor(tmp_path):
    tied = Checkpoint.open(save_llama(tmp_path / "tied", tied=True))
    untied = Checkpoint.open(save_llama(tmp_path / "untied"))
    assert tied.tied
    assert "lm_head.weight" not in tied.tensors
    assert not untied.tied
    assert "lm_head.weight" in untied.tensors


def test_a_stored_copy_of_a_tied_head_is_left_out(folder):
    edit_config(folder, tie_word_embeddings=True)
    assert "lm_head.weight" not in Checkpoint.open(folder).tensors


def test_vocabulary_with_added_tokens(folder):
    vocabulary = Checkpoint.open(folder).vocabulary
    assert vocabulary["<eos>"] == 1
    assert vocabulary["a"] == 2


def test_fingerprint_changes_with_a_weight(folder):
    before = Checkpoint.open(folder).fingerprint
    assert Checkpoint.open(folder).fingerprint == before
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors")
    assert Checkpoint.open(folder).fingerprint != before


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "/etc/passwd", "a/b.safetensors", "..", "a\\b", "", 7]
)
def test_an_index_cannot_leave_its_folder(folder, name):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError, match="plain file name"):
        Checkpoint.open(folder)


def test_a_missing_shard_is_named(folder):
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="00002-of-00003"):
        Checkpoint.open(folder)


def test_an_index_with_tensors_that_are_not_there(folder):
    shard(folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="ghost"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("pytorch_model.bin", "save_pretrained"),
        ("model.gguf", "GGUF"),
        ("adapter_config.json", "adapter"),
        ("notes.txt", "no model.safetensors"),
    ],
)
def test_other_formats_are_refused_with_a_remedy(tmp_path, file, says):
    (tmp_path / file).write_text("{}")
    with pytest.raises(CheckpointError, match=says):
        Checkpoint.open(tmp_path)


def test_quantised_models_are_refused(folder):
    edit_config(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="gptq"):
        Checkpoint.open(folder)


def test_no_such_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.open(tmp_path / "nowhere")


def test_a_file_that_shrinks_is_noticed(folder):
    checkpoint = Checkpoint.open(folder)
    name = list(checkpoint.tensors)[-1]
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match="ended inside"):
        checkpoint.read(name)


def test_a_state_dict_reads_the_same(folder):
    tensors = load_file(folder / "model.safetensors")
    source = StateDict({**tensors, "scalar": torch.tensor(1.0)})
    checkpoint = Checkpoint.open(folder)
    for name in tensors:
        assert torch.equal(source.read(name, 1, 2), checkpoint.read(name, 1, 2))
    assert source.read("scalar").item() == 1.0
    with pytest.raises(CheckpointError, match="complex"):
        StateDict({"odd": torch.zeros(2, dtype=torch.complex64)})
