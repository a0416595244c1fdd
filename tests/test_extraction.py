"""A model's change as a LoRA adapter: the best of its rank, loaded by peft, with errors that are true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from merging import Checkpoint, MergingError
from merging.extraction import Extracted, extract
from merging.sources import open_model
from tests.conftest import save_llama, tune
from tests.test_adapter import TINY, load, loaded_by_peft

IDS = torch.arange(12)[None]


@pytest.fixture(scope="module", params=["llama", "tied", "gpt2"])
def pair(request, tmp_path_factory) -> tuple[Path, Path]:
    """A base and a fine-tune in which every tensor changed: biases, norms and embeddings too."""
    from transformers import GPT2Config, GPT2LMHeadModel

    root = tmp_path_factory.mktemp(request.param)
    if request.param == "gpt2":
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=32)
        GPT2LMHeadModel(config).save_pretrained(root / "base")
    else:
        save_llama(root / "base", tied=request.param == "tied", **TINY)
    return root / "base", tune(root / "base", root / "tuned", seed=1, scale=0.1)


def extracted(base: Path, model: Path, out: Path, rank: int, **how) -> Extracted:
    *_, last = extract(Checkpoint.open(base), Checkpoint.open(model), out, rank, **how)
    assert isinstance(last, Extracted)
    return last


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_of_full_rank_it_is_the_model_in_peft_and_here(pair, tmp_path):
    base, tuned = pair
    found = extracted(base, tuned, tmp_path / "adapter", 48)
    assert found.relative < 1e-5
    wanted = logits(load(tuned))
    peft = loaded_by_peft(base, found.path).eval()
    torch.testing.assert_close(logits(peft), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(peft.merge_and_unload()), wanted, rtol=1e-4, atol=1e-4)
    ours, theirs = open_model(f"{base}+{found.path}"), Checkpoint.open(tuned)
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert ours.tied == theirs.tied
    for name in theirs.tensors:
        torch.testing.assert_close(ours.read(name), theirs.read(name), rtol=1e-4, atol=1e-5)


def test_of_a_smaller_rank_it_is_the_nearest_and_its_errors_are_true(tmp_path):
    size = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1}
    base = save_llama(tmp_path / "base", dtype=torch.bfloat16, **size)
    tuned = tune(base, tmp_path / "tuned", seed=1, scale=0.1, only=lambda name: "norm" not in name)
    found = extracted(base, tuned, tmp_path / "adapter", 3)
    ours, model, start = open_model(f"{base}+{found.path}"), Checkpoint.open(tuned), Checkpoint.open(base)
    assert {one.name for one in found.tensors} == {name for name in model.tensors if "norm" not in name}
    for one in found.tensors:
        change = model.read(one.name).float() - start.read(one.name).float()
        best = torch.linalg.svdvals(change.double())[3:].square().sum().sqrt()
        left = (model.read(one.name).float() - ours.read(one.name)).double().norm()
        assert one.rank == 3
        assert one.change == pytest.approx(float(change.norm()), rel=1e-4)
        assert one.error == pytest.approx(float(left), rel=1e-3)
        assert float(best) * 0.9999 <= one.error <= float(best) * 1.01
    assert len((found.path / "errors.csv").read_text().splitlines()) == 1 + len(found.tensors)


def test_what_cannot_be_extracted_is_said(family, tmp_path):
    base = family / "base"
    with pytest.raises(MergingError, match="nothing to extract"):
        extracted(base, base, tmp_path / "out", 2)
    with pytest.raises(MergingError, match=r"rank: is 0(.|\n)*overwrite or enclose the input"):
        extracted(base, family / "one", family / "one", 0)
    assert not (tmp_path / "out").exists()
    left = extracted(base, family / "one", tmp_path / "left", 2, embeddings="leave")
    out = {one.name: one.relative for one in left.tensors if one.way == "left out"}
    assert out == {"model.embed_tokens.weight": 1.0, "lm_head.weight": 1.0}


def test_the_command_line_extracts(family, tmp_path, command_line):
    arguments = ("extract", family / "base", family / "one", tmp_path / "adapter", "--rank", 4)
    done = command_line(*arguments)
    assert done.returncode == 0, done.stderr
    assert "rank 4" in done.stdout
    assert "errors.csv" in done.stdout
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 4
    assert settings["base_model_name_or_path"] == str(family / "base")
    again = json.loads(command_line(*arguments, "--json").stdout)
    assert again["rank"] == 4
    assert 0 < again["relative"] < 1
    assert len(again["tensors"]) > 20
