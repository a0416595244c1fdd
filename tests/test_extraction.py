"""A model's change as a LoRA adapter: the best of its rank, loaded by peft, with errors that are true."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path

import gradio as gr
import pytest
import torch

from components import downloads
from components.chat.models import choices
from components.merge import events as merge_events
from components.merge import extraction_part as part
from components.merge.recipe import default_recipe
from components.models.opening import choose
from components.server.backend import job_store
from components.server.settings import Settings
from components.stages import run_folder
from merging import Checkpoint, MergingError
from merging.extraction import extract
from merging.inspecting.extraction_report import Extracted
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
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


def test_the_page_extracts_the_merge_on_its_card(family, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "get_upload_folder", lambda: str(tmp_path / "sent"))
    settings = Settings(demo=family, runs=tmp_path / "runs", device="cpu", single_owner=False)
    owner, other, store = "a" * 32, "b" * 32, job_store(settings)
    chosen = choose(settings, "demo:base", ["demo:one", "demo:two"], owner).family
    recipe = default_recipe(chosen, "task_arithmetic")
    merge = merge_events.start(settings, recipe, chosen, owner)[0]
    assert store.wait(owner, merge, 60).state == "done"
    with pytest.raises(gr.Error, match="no finished merge"):
        part.start(settings, 4, merge, other)
    id = part.start(settings, 4, merge, owner)[0]
    assert store.wait(owner, id, 60).state == "done", store.get(owner, id).error
    page = part.shown(settings, id, owner)
    assert "LoRA adapter of rank 4" in page[3]
    assert "rank 4</td>" in page[3]
    with zipfile.ZipFile(part.download(settings, id, owner)["value"]) as archive:
        names = {Path(name).name for name in archive.namelist()}
        assert not any(str(family).encode() in archive.read(name) for name in archive.namelist())
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "errors.csv", "README.md"}
    assert part.attach(settings, other)[0] == ""
    assert f"job:{id}" not in [key for _, key in choices(store, owner, chosen)]
    with pytest.raises(MergingError):
        run_folder(settings, owner, id)
    assert open_model(f"{family / 'base'}+{store.model(owner, id)}").tensors
    store.close()
