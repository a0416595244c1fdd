"""The folder that a merge leaves behind."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

import merging
from merging import Checkpoint, Recipe


@pytest.fixture
def merged(family, write_recipe, tmp_path):
    return merging.merge(
        write_recipe(family, "ties", ["one", "two"], profile="paper", out_dtype="bfloat16"), tmp_path / "out"
    )


def test_transformers_loads_and_answers(merged):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        merged, local_files_only=True, use_safetensors=True, dtype="auto"
    )
    tokenizer = AutoTokenizer.from_pretrained(merged, local_files_only=True)
    assert model.dtype == torch.bfloat16
    state = model.state_dict()
    assert all(
        torch.equal(state[name], value) for name, value in load_file(merged / "model.safetensors").items()
    )
    reply = model.generate(
        **tokenizer("abc", return_tensors="pt", return_token_type_ids=False),
        max_new_tokens=4,
        do_sample=False,
    )
    assert reply.shape[1] >= 4


def test_a_tied_model_stays_tied(bf16_family, write_recipe, tmp_path):
    from transformers import AutoModelForCausalLM

    out = merging.merge(write_recipe(bf16_family, "ties"), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert torch.equal(
        model.lm_head.weight.bfloat16(), load_file(out / "model.safetensors")["model.embed_tokens.weight"]
    )


def test_gpt2_goes_the_same_way(tmp_path, write_recipe):
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    from tests.conftest import tune

    GPT2LMHeadModel(
        GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    ).save_pretrained(tmp_path / "m/base")
    tune(tmp_path / "m/base", tmp_path / "m/one", seed=1)
    out = merging.merge(write_recipe(tmp_path / "m", "task_arithmetic", ["one"]), tmp_path / "out")
    ids = torch.tensor([[1, 2, 3]])
    ours = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)(ids).logits
    expert = AutoModelForCausalLM.from_pretrained(tmp_path / "m/one", local_files_only=True)(ids).logits
    torch.testing.assert_close(ours, expert, rtol=1e-4, atol=1e-5)


def test_recipe_and_metadata_travel_with_it(merged, family):
    recipe = Recipe.load(merged / "mergescope.yaml")
    assert recipe.merge_method == "ties"
    assert [entry.model for entry in recipe.models] == [str(family / "one"), str(family / "two")]
    metadata = Checkpoint.open(merged).metadata
    assert metadata["format"] == "pt"
    assert yaml.safe_load(metadata["recipe"])["profile"] == "paper"
    assert json.loads((merged / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_the_card_tells_what_was_attained(merged):
    card = (merged / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    for part in ("TIES", "(the base)", "density attained", "0.2000", "rounds back", "merge_method: ties"):
        assert part in card


def test_a_result_can_be_merged_again(merged, family, write_recipe, tmp_path):
    recipe = tmp_path / "next.yaml"
    recipe.write_text(
        f"merge_method: slerp\nbase_model: {family}/base\nmodels: [{{model: {merged}}}]\nparameters: {{t: 0.3}}"
    )
    assert (merging.merge(recipe, tmp_path / "again") / "model.safetensors").is_file()


def test_replacing_an_earlier_result(merged, family, write_recipe):
    before = (merged / "model.safetensors").read_bytes()
    merging.merge(write_recipe(family, "linear", ["one"], base_model=None), merged)
    assert (merged / "model.safetensors").read_bytes() != before


def test_a_chat_template_can_be_set(family, write_recipe, tmp_path):
    out = merging.merge(
        write_recipe(family, "ties", chat_template="{{ messages[0].content }}"), tmp_path / "out"
    )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
