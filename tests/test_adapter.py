"""LoRA adapters as models: what peft makes of the same folder over the same base, weight by weight."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import merging
from merging import Checkpoint
from merging.adapter import Adapted
from merging.adapter_file import AdapterFile
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
