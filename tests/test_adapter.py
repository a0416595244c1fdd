"""LoRA adapters as models: what peft makes of the same folder over the same base, weight by weight."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import merging
from merging import Checkpoint, CheckpointError, PlanError, ops
from merging.checkpoint import bytes_of
from merging.folders.adapter import Adapted
from merging.folders.adapter_file import AdapterFile
from merging.folders.compatibility import compare
from tests.conftest import save_llama

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "attention_bias": True}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    """`plain` and `tied` in float32, `half` in bfloat16: Llamas with biases; and a `gpt2`, whose weights are [in, out]."""
    from transformers import GPT2Config, GPT2LMHeadModel

    root = tmp_path_factory.mktemp("bases")
    save_llama(root / "plain", **TINY)
    save_llama(root / "tied", tied=True, **TINY)
    save_llama(root / "half", dtype=torch.bfloat16, **TINY)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=2)).save_pretrained(root / "gpt2")
    return root


def load(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def save_adapter(base: Path, folder: Path, **settings) -> Path:
    """An adapter with random factors, saved by peft."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = get_peft_model(load(base), LoraConfig(**{"r": 2, "lora_alpha": 4, **settings}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder)
    return folder


def adapted(base: Path, folder: Path) -> Adapted:
    return Adapted(Checkpoint.open(base), AdapterFile(folder))


def tensors_of(model: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: model.read(name) for name in model.tensors}


def loaded_by_peft(base: Path, folder: Path):
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load(base), str(folder)).eval()


def merged_by_peft(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    return loaded_by_peft(base, folder).merge_and_unload().state_dict()


SETTINGS = {
    "plain": {"target_modules": ["q_proj", "down_proj"]},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.up_proj": 1},
        "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 9, "mlp.(up|gate)_proj": 5},
    },
    "rslora": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "rank_pattern": {"v_proj": 5}},
    "bias all": {"target_modules": ["q_proj"], "bias": "all"},
    "bias all beside modules_to_save": {
        "target_modules": ["q_proj"],
        "bias": "all",
        "modules_to_save": ["k_proj"],
    },
    "bias lora_only": {"target_modules": ["q_proj"], "bias": "lora_only"},
    "lora_bias": {"target_modules": ["q_proj"], "lora_bias": True},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "regex": {"target_modules": r".*layers\.0\..*(q|k)_proj"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_weights_are_those_of_peft(bases, tmp_path, name):
    folder = save_adapter(bases / "plain", tmp_path / "adapter", **SETTINGS[name])
    ours, theirs = tensors_of(adapted(bases / "plain", folder)), merged_by_peft(bases / "plain", folder)
    assert ours.keys() == theirs.keys()
    base = tensors_of(Checkpoint.open(bases / "plain"))
    assert any(not torch.equal(base[name], values) for name, values in ours.items())
    for name, values in ours.items():
        torch.testing.assert_close(values, theirs[name], rtol=1e-6, atol=1e-6)


def test_a_head_that_files_call_otherwise_than_transformers(tmp_path):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    tiny = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=48, **tiny)).save_pretrained(tmp_path / "base")
    folder = save_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=["lm_head"])
    ours, theirs = adapted(tmp_path / "base", folder), merged_by_peft(tmp_path / "base", folder)
    assert ours.head == "embed_out.weight"
    torch.testing.assert_close(ours.read(ours.head), theirs["lm_head.weight"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("flag", [True, False])
def test_gpt2_stores_its_weights_the_other_way_round(bases, tmp_path, flag):
    targets = ["attn.c_proj", "mlp.c_fc", "wte"]  # c_proj is square: its shape does not tell
    folder = save_adapter(bases / "gpt2", tmp_path / "adapter", target_modules=targets)
    edit(folder, fan_in_fan_out=flag)
    ours, wanted = adapted(bases / "gpt2", folder), loaded_by_peft(bases / "gpt2", folder)
    theirs = wanted.merge_and_unload().state_dict()
    for name in ours.tensors:
        if "lm_head" not in name:
            torch.testing.assert_close(ours.read(name), theirs[name], rtol=1e-6, atol=1e-6)


TIED = {
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding, trained as one": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "embedding, whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("name", TIED)
def test_where_the_base_ties_its_head_the_model_is_the_one_that_was_trained(bases, tmp_path, name):
    from transformers import LlamaForCausalLM

    folder = save_adapter(bases / "tied", tmp_path / "adapter", **TIED[name])
    model, ids = adapted(bases / "tied", folder), torch.arange(12)[None]
    assert model.tied == ("ensure_weight_tying" in TIED[name])
    config = LlamaForCausalLM.config_class.from_dict(model.config)
    ours = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=tensors_of(model)).eval()
    # not merge_and_unload: peft then changes head and embedding, though it trained one of them
    wanted = loaded_by_peft(bases / "tied", folder)(ids).logits
    torch.testing.assert_close(ours(ids).logits, wanted, rtol=1e-5, atol=1e-5)
    recipe = tmp_path / "recipe.yaml"
    keys = {"merge_method": "task_arithmetic", "base_model": str(bases / "tied")}
    recipe.write_text(json.dumps({**keys, "models": [{"model": str(folder)}]}))
    merged = load(merging.merge(recipe, tmp_path / "out", device="cpu"))
    torch.testing.assert_close(merged(ids).logits, wanted, rtol=1e-5, atol=1e-5)


def test_rows_have_the_same_bits_however_they_are_read(bases, tmp_path, monkeypatch):
    targets = ["q_proj", "embed_tokens"]
    model = adapted(bases / "half", save_adapter(bases / "half", tmp_path / "a", target_modules=targets))
    names = ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight")
    whole = {name: model.read(name) for name in names}
    with monkeypatch.context() as patch:
        patch.setattr(ops, "loops", lambda: None)
        for name in names:
            assert torch.equal(model.read(name), whole[name])
    for name, values in whole.items():
        assert values.dtype == torch.float32
        assert model.kept_as(name) == "BF16"
        assert torch.equal(torch.cat([model.read(name, row, row + 1) for row in range(len(values))]), values)
        into = torch.empty_like(values[3:9])
        model.read_into(name, 3, bytes_of(into))
        assert torch.equal(into, values[3:9])


def edit(folder: Path, **settings) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


REFUSED = {
    "DoRA": {"use_dora": True},
    "kind LOHA": {"peft_type": "LOHA"},
    "pissa": {"init_lora_weights": "pissa_niter_4"},
    "QA-LoRA": {"use_qalora": True},
    "single rows of the embedding": {"trainable_token_indices": [1, 2]},
    "target_parameters": {"target_parameters": ["mlp.experts.gate_up_proj"]},
    "lora_alpha is nan": {"lora_alpha": float("nan")},
    "no table": {"alpha_pattern": [1]},
    "regular expression": {"alpha_pattern": {"(a+)+b": 2}},
}


def test_other_adapters_are_refused_by_name(bases, tmp_path):
    plain = save_adapter(bases / "plain", tmp_path / "plain", target_modules=["q_proj"])
    for number, (words, settings) in enumerate(REFUSED.items()):
        folder = shutil.copytree(plain, tmp_path / str(number))
        edit(folder, **settings)
        with pytest.raises(CheckpointError, match=words):
            AdapterFile(folder)
    edit(plain, use_novelty=True, base_model_name_or_path="org/another")
    said = " ".join(adapted(bases / "plain", plain).remarks)
    assert "use_novelty is unknown" in said
    assert "was trained on org/another" in said
    (plain / "adapter_model.safetensors").rename(plain / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        AdapterFile(plain)


def test_an_adapter_for_another_base_says_all_that_does_not_fit(bases, tmp_path, family):
    folder = save_adapter(bases / "plain", tmp_path / "adapter", target_modules=["q_proj"], bias="all")
    with pytest.raises(CheckpointError, match=r"lacks and .*q_proj.weight' \[16, 16\] against \[32, 32\]"):
        adapted(family / "base", folder)
    recipe = tmp_path / "recipe.yaml"
    models = [{"model": str(folder)}, {"model": f"{family / 'base'}+{tmp_path / 'nowhere'}"}]
    keys = {"merge_method": "linear", "base_model": str(family / "base"), "models": models}
    recipe.write_text(json.dumps(keys))
    with pytest.raises(PlanError) as said:
        merging.check(recipe)
    assert "It was trained on" in str(said.value)
    assert "nowhere: there is no such folder" in str(said.value)


def test_more_tokens_than_the_base_has_are_said(bases, tmp_path):
    folder = save_adapter(
        bases / "plain",
        tmp_path / "a",
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
    )
    tensors = load_file(folder / "adapter_model.safetensors")
    for name in [name for name in tensors if "lora" not in name]:
        tensors[name] = torch.cat([tensors[name], torch.ones(2, 16)])
    save_file(tensors, folder / "adapter_model.safetensors")
    model = adapted(bases / "plain", folder)
    assert model.config["vocab_size"] == 50
    assert model.tensors["lm_head.weight"].shape == (50, 16)
    problems, warnings = compare(Checkpoint.open(bases / "plain"), model, "adapter")
    assert "50" in " ".join([*problems, *warnings])


def test_a_recipe_merges_adapters_over_their_base(bases, tmp_path):
    one = save_adapter(bases / "half", tmp_path / "one", target_modules=["q_proj"])
    two = save_adapter(bases / "half", tmp_path / "two", target_modules=["down_proj"], lora_alpha=1)
    recipe = tmp_path / "recipe.yaml"
    models = [{"model": f"{bases / 'half'}+{one}"}, {"model": str(two)}]
    keys = {"merge_method": "task_arithmetic", "parameters": {"weight": 0.5}}
    recipe.write_text(json.dumps({**keys, "base_model": str(bases / "half"), "models": models}))
    out = merging.merge(recipe, tmp_path / "out", device="cpu")
    base, found = (load_file(folder / "model.safetensors") for folder in (bases / "half", out))
    changes = {f"model.layers.{block}.self_attn.q_proj.weight": one for block in (0, 1)}
    changes |= {f"model.layers.{block}.mlp.down_proj.weight": two for block in (0, 1)}
    factors = {folder: load_file(folder / "adapter_model.safetensors") for folder in (one, two)}
    for name, values in base.items():
        expected = values.float()
        if folder := changes.get(name):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            a, b = (factors[folder][f"{module}.lora_{letter}.weight"] for letter in "AB")
            expected = expected + 0.5 * (4 if folder == one else 1) / 2 * b @ a
        assert found[name].dtype == torch.bfloat16, name  # though an adapted tensor is read as float32
        torch.testing.assert_close(found[name].float(), expected, rtol=2**-8, atol=1e-6)
