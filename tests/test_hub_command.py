"""`python -m merging` with names of Hub models, against a stand-in server on localhost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import merging
from merging.errors import PlanError
from merging.hub.cache import cached_model
from merging.hub.client import Hub
from merging.references import Reference
from tests.conftest import save_llama, tune
from tests.hub_server import TOKEN


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base, an expert, and an adapter on the base."""
    root = tmp_path_factory.mktemp("models")
    save_llama(root / "base", num_hidden_layers=1)
    tune(root / "base", root / "expert", seed=1)
    model = AutoModelForCausalLM.from_pretrained(root / "base")
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="gaussian")
    get_peft_model(model, settings).save_pretrained(root / "adapter")
    return root


@pytest.fixture
def commits(hub, models):
    """The three on the Hub; their commits."""
    return {name: hub.add(f"org/{name}", models / name) for name in ("base", "expert", "adapter")}


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    names = ["org/expert@main", "org/base+org/adapter"]
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in names]
    file.write_text(
        yaml.safe_dump({"merge_method": "task_arithmetic", "base_model": "org/base", "models": models})
    )
    return file


def test_check_reads_headers_alone(hub, commits, recipe, models, command_line):
    done = command_line("check", recipe)
    assert done.returncode == 0, done.stderr
    assert "can run" in done.stdout
    for name, commit in commits.items():
        assert f"org/{name}: commit {commit}, " in done.stdout
    files = [models / "base/model.safetensors", models / "expert/model.safetensors"]
    files.append(models / "adapter/adapter_model.safetensors")
    headers = sum(8 + int.from_bytes(file.read_bytes()[:8], "little") for file in files)
    assert hub.bytes_of("model.safetensors") == headers


def test_merge_downloads_what_is_missing_and_keeps_the_commits(hub, commits, recipe, tmp_path, command_line):
    done = command_line("merge", recipe, tmp_path / "out", "--no-health", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["path"] == str(tmp_path / "out")
    written = (tmp_path / "out" / "README.md").read_text()
    assert f"- [org/base](https://huggingface.co/org/base/tree/{commits['base']}) (the base)" in written
    assert f"model: org/expert@{commits['expert']}" in written
    assert f"model: org/base@{commits['base']}+org/adapter@{commits['adapter']}" in written
    checked = command_line("check", recipe)
    assert f"org/expert@main: org/expert@{commits['expert']}, downloaded" in checked.stdout
    hub.forget()
    again = command_line("merge", recipe, tmp_path / "again", "--no-health")
    assert again.returncode == 0
    assert not hub.seen, "what was downloaded is used without a word to the network"
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_vocabularies_are_compared_from_afar(hub, commits, models, tmp_path, command_line):
    shutil.copytree(models / "expert", tmp_path / "longer")
    words = json.loads((tmp_path / "longer" / "tokenizer.json").read_text())
    words["added_tokens"].append({**words["added_tokens"][0], "id": 45, "content": "<more>", "special": True})
    (tmp_path / "longer" / "tokenizer.json").write_text(json.dumps(words))
    hub.add("org/longer", tmp_path / "longer")
    file = tmp_path / "recipe.yaml"
    content = {
        "merge_method": "task_arithmetic",
        "base_model": "org/base",
        "models": [{"model": "org/longer"}],
    }
    file.write_text(yaml.safe_dump({**content, "tokenizer_source": "union", "parameters": {"weight": 0.5}}))
    hub.forget()
    done = command_line("check", file)
    assert done.returncode == 0, done.stderr
    assert hub.bytes_of("model.safetensors") < 10_000
    file.write_text(yaml.safe_dump({**content, "tokenizer_source": "org/expert"}))
    assert "tokenizer_source: org/expert: there is no such folder" in command_line("check", file).stderr


def test_all_that_is_wrong_with_the_models_is_said_before_a_download(hub, commits, tmp_path, command_line):
    file = tmp_path / "recipe.yaml"
    models = [{"model": name} for name in ("org/nothing", "org/expert@gone", "org/adapter")]
    file.write_text(
        yaml.safe_dump({"merge_method": "task_arithmetic", "base_model": "org/base", "models": models})
    )
    done = command_line("merge", file, tmp_path / "out")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for said in ("org/nothing: is no model", "org/expert@gone: the Hub knows"):
        assert said in done.stderr
    assert cached_model(Reference("org/base")) is None


def test_download_prints_the_commit_and_uses_the_token_of_this_machine(
    hub, commits, command_line, monkeypatch
):
    hub.models["org/expert"].private = True
    refused = command_line("download", "org/expert")
    assert (refused.returncode, "or give a token if it is private" in refused.stderr) == (1, True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = command_line("download", "org/expert", "org/base+org/adapter", "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["commit"] for line in lines] == [commits[name] for name in ("expert", "base", "adapter")]
    assert TOKEN not in done.stdout + done.stderr


def test_nothing_calls_out_where_nobody_was_told_to(hub, commits, recipe, tmp_path):
    for ask in (lambda: merging.check(recipe), lambda: merging.merge(recipe, tmp_path / "out")):
        with pytest.raises(PlanError, match="python -m merging download org/expert@main"):
            ask()
    assert not hub.seen
    assert merging.check(recipe, hub=Hub()).commits == {}
    assert hub.seen


def test_offline_a_missing_model_is_one_sentence(hub, commits, recipe, command_line, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = command_line("check", recipe)
    assert done.returncode == 1
    assert "org/expert@main: HF_HUB_OFFLINE is set" in done.stderr
    assert not hub.seen


def test_ctrl_c_stops_a_download_that_the_next_one_goes_on_with(hub, commits, tmp_path):
    hub.fail("/storage/*", pause=0.05)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "merging", "download", "org/base"]
    started = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while hub.bytes_of("model.safetensors") < 10_000 and started.poll() is None:
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert (started.returncode, said) == (
        130,
        "cancelled; what was downloaded stays, and the next download goes on there\n",
    )
    assert cached_model(Reference("org/base")) is None
    assert next((tmp_path / "cache").glob("*/blobs/*.incomplete")).stat().st_size > 0
