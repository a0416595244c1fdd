import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import merging
from merging import MergingError, PlanError
from tests.conftest import edit_config, save_llama, tune


def problems(recipe, out=None):
    with pytest.raises(PlanError) as caught:
        merging.check(recipe, out)
    return caught.value.problems


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def pair(family, tmp_path):
    """A copy of base and one expert that a test may damage."""
    for name in ("base", "one"):
        shutil.copytree(family / name, tmp_path / "pair" / name)
    return tmp_path / "pair"


def test_three_mistakes_in_one_run_without_a_weight(pair, write_recipe, monkeypatch):
    monkeypatch.setattr("merging.checkpoint.read_at", lambda *_: pytest.fail("a weight was read"))
    rewrite(pair / "one", lambda t: t.pop("model.norm.weight"))
    models = [{"model": "one", "parameters": {"weight": 1, "densty": 0.5}}, "nowhere"]
    found = problems(write_recipe(pair, "ties", models, colour="red", parameters={"lambda": "much"}))
    text = "\n".join(found)
    for part in ("densty", "Did you mean 'density'", "nowhere", "model.norm.weight", "colour", "lambda"):
        assert part in text
    assert len(found) == 5


def test_missing_and_extra_tensors(pair, write_recipe):
    rewrite(pair / "one", lambda t: t.update(strange=t.pop("model.norm.weight")))
    found = problems(write_recipe(pair, "ties", ["one"]))
    assert any("lacks 1 tensor ('model.norm.weight')" in text for text in found)
    assert any("has 1 tensor ('strange')" in text for text in found)


def test_old_buffers_do_no_harm(pair, write_recipe):
    rewrite(pair / "one", lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    merging.check(write_recipe(pair, "ties", ["one"]))


def test_shapes(pair, write_recipe):
    rewrite(pair / "one", lambda t: t.update({"model.norm.weight": torch.ones(7)}))
    assert any(
        "'model.norm.weight' [7] against [32]" in text
        for text in problems(write_recipe(pair, "ties", ["one"]))
    )


def test_unequal_vocabularies(pair, write_recipe):
    rewrite(pair / "one", lambda t: t.update({"model.embed_tokens.weight": torch.ones(50, 32)}))
    assert any(
        "50 rows (its vocabulary), the base 48" in text
        for text in problems(write_recipe(pair, "ties", ["one"]))
    )


def test_a_foreign_tokenizer(pair, write_recipe):
    file = pair / "one" / "tokenizer.json"
    letters = "abcdefghijklmnopqrstuvwxyz"
    text = file.read_text()
    for number, letter in enumerate(letters, 2):
        text = text.replace(f'"{letter}": {number}', f'"{letter}{letter}": {number}')
    file.write_text(text)
    assert any(
        "tokenizer means other tokens" in text for text in problems(write_recipe(pair, "ties", ["one"]))
    )


def test_an_added_token_is_a_warning(pair, write_recipe):
    file = pair / "one" / "tokenizer.json"
    file.write_text(file.read_text().replace('"<eos>": 1', '"<eos>": 1, "<tool>": 43', 1))
    plan = merging.check(write_recipe(pair, "ties", ["one"]))
    assert any("'<tool>'" in warning for warning in plan.warnings)


def test_tied_and_untied(pair, write_recipe):
    edit_config(pair / "one", tie_word_embeddings=True)
    plan = merging.check(write_recipe(pair, "ties", ["one"]))
    assert [*plan.tokens.heads.values()] == ["own", "tied"]


def test_another_architecture(pair, write_recipe):
    edit_config(pair / "one", architectures=["MistralForCausalLM"])
    assert "MistralForCausalLM" in problems(write_recipe(pair, "ties", ["one"]))[0]


def test_another_head_count(pair, write_recipe):
    edit_config(pair / "one", num_attention_heads=8)
    assert "num_attention_heads" in problems(write_recipe(pair, "ties", ["one"]))[0]


def test_another_rope_theta_is_a_warning(pair, write_recipe):
    edit_config(pair / "one", rms_norm_eps=0.5)
    assert "rms_norm_eps" in merging.check(write_recipe(pair, "ties", ["one"])).warnings[0]


def test_a_dtype_that_is_no_float(pair, write_recipe):
    rewrite(pair / "one", lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int32)}))
    assert any("I32 against F32" in text for text in problems(write_recipe(pair, "ties", ["one"])))


@pytest.mark.parametrize(
    ("method", "keys", "says"),
    [
        ("tise", {}, "Did you mean 'ties'"),
        ("ties", {"base_model": None}, "base_model: missing"),
        ("slerp", {}, "exactly 1 other model, not 2"),
        ("slerp", {"parameters": {"densty": 0.5}}, "no parameter 'densty'"),
        ("slerp", {"profile": "paper", "parameters": {"density": 0.5}}, "no parameter 'density'"),
        ("pcb", {"parameters": {"density": 0.5}}, "no parameter 'density'"),
        ("ties", {"parameters": {"density": 1.5}}, "density"),
        ("ties", {"parameters": {"density": [0.5, 1.5]}}, "density"),
        ("ties", {"scope": "model", "parameters": {"density": [0.1, 0.5]}}, "ranked together"),
        ("linear", {"scope": "tensor"}, "has no scope"),
        ("linear", {"parameters": {"weight": 0}, "base_model": None}, "add up to 0"),
        ("linear", {}, "counts it as one more model"),
        ("task_arithmetic", {"exclude": ["nothing.*"]}, "'nothing.*' matches no tensor"),
        (
            "task_arithmetic",
            {"overrides": [{"tensors": "no", "parameters": {"weight": 1}}]},
            "'no' matches no tensor",
        ),
        (
            "task_arithmetic",
            {"overrides": [{"tensors": "*", "model": "who", "parameters": {"weight": 1}}]},
            "'who' is none",
        ),
        ("task_arithmetic", {"models": []}, "models: missing"),
    ],
)
def test_recipe_and_method_mistakes(family, write_recipe, method, keys, says):
    assert any(says in text for text in problems(write_recipe(family, method, **keys)))


def test_a_parameter_of_another_method_is_left_alone_as_mergekit_does(family, write_recipe):
    models = [{"model": "one", "parameters": {"weight": 0.5}}, "two"]
    plan = merging.check(
        write_recipe(family, "sce", models, parameters={"normalize": True, "select_topk": 0.5})
    )
    assert sum("weight does nothing in sce" in warning for warning in plan.warnings) == 1
    assert sum("normalize does nothing in sce" in warning for warning in plan.warnings) == 1
    assert {tensor.method.select_topk for tensor in plan.tensors if tensor.method} == {0.5}


def test_a_shared_parameter_under_a_model(family, write_recipe):
    models = [{"model": "one", "parameters": {"lambda": 1}}, "two"]
    assert any("one value for the merge" in text for text in problems(write_recipe(family, "ties", models)))


def test_cancelling_weights(family, write_recipe):
    models = [{"model": "one", "parameters": {"weight": 1}}, {"model": "two", "parameters": {"weight": -1}}]
    assert any("cancel" in text for text in problems(write_recipe(family, "ties", models, profile="paper")))


def test_output_over_an_input(family, write_recipe, tmp_path):
    recipe = write_recipe(family, "ties")
    for out in (family / "one", family / "one" / "inside", family):
        assert any("would overwrite or enclose" in text for text in problems(recipe, out))


def test_the_disk_is_too_small(family, write_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    assert any("MB free" in text for text in problems(write_recipe(family, "ties"), tmp_path / "out"))


def test_the_memory_is_too_small(family, write_recipe, monkeypatch):
    monkeypatch.setattr("merging.plan.SCRATCH", 10**12)
    assert any("GB of memory" in text for text in problems(write_recipe(family, "ties")))


def test_the_estimate_holds_the_largest_piece_of_every_core(family, write_recipe, monkeypatch):
    plan = merging.check(write_recipe(family, "ties"))
    largest = 3 * 4 * max(tensor.info.elements for tensor in plan.tensors)
    assert plan.memory > largest
    monkeypatch.setattr("merging.plan.workers_here", lambda: 1)
    alone = plan.memory
    monkeypatch.setattr("merging.plan.workers_here", lambda: 8)
    assert plan.memory - alone == 7 * merging.plan.SCRATCH * largest, "every core works on a piece"


@pytest.mark.parametrize("source", ["union", "one"])
def test_a_tokenizer_source_that_changes_rows(pair, write_recipe, source):
    file = pair / "one" / "tokenizer.json"
    source = str(pair / "one") if source == "one" else source
    before = merging.check(write_recipe(pair, "ties", ["one"], tokenizer_source=source)).tokens
    file.write_text(file.read_text().replace('"<eos>": 1', '"<eos>": 1, "<tool>": 43', 1))
    after = merging.check(write_recipe(pair, "ties", ["one"], tokenizer_source=source)).tokens
    assert "<tool>" in after.vocabulary
    assert "<tool>" not in before.vocabulary
    base = merging.check(write_recipe(pair, "ties", ["one"], tokenizer_source="base")).tokens
    assert "<tool>" not in base.vocabulary


def test_an_unknown_chat_template_is_refused(family, write_recipe):
    assert any(
        "'chatml' is no model" in text
        for text in problems(write_recipe(family, "ties", chat_template="chatml"))
    )


def test_another_chat_template_is_a_warning(pair, write_recipe):
    (pair / "one" / "chat_template.jinja").write_text("{{ messages }}")
    assert any(
        "chat template differs" in text
        for text in merging.check(write_recipe(pair, "ties", ["one"])).warnings
    )


def test_a_hub_name_gets_the_download_command(write_recipe, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("merge_method: linear\nmodels: [{model: org/name@main}]")
    assert any("python -m merging download org/name@main" in text for text in problems(recipe))


def test_numbers_of_a_plan(family, write_recipe):
    plan = merging.check(write_recipe(family, "ties"))
    size = sum(t.nbytes for t in load_file(family / "base" / "model.safetensors").values())
    assert plan.bytes_to_write == size
    assert plan.bytes_to_read == 3 * size
    assert plan.names == (str(family / "one"), str(family / "two"))


def test_groups_follow_the_scope(family, write_recipe):
    def groups(scope):
        return set(merging.check(write_recipe(family, "ties", scope=scope)).groups)

    outside = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    assert groups("model") == {("model", "")}
    assert groups("layer") == {
        *(("layer", str(b)) for b in range(3)),
        *(("tensor", name) for name in outside),
    }
    assert len(groups("tensor")) == 30


def test_gradients_filters_and_overrides_reach_the_tensors(family, write_recipe):
    models = [{"model": "one", "parameters": {"weight": [0.0, 1.0]}}, "two"]
    override = {"tensors": "*.2.*", "model": str(family / "one"), "parameters": {"weight": 7}}
    keys = {
        "parameters": {"lambda": [{"filter": "mlp", "value": 0.5}, {"value": 2}]},
        "overrides": [override],
    }
    plan = merging.check(write_recipe(family, "task_arithmetic", models, **keys))
    methods = {tensor.info.name: tensor.method for tensor in plan.tensors}
    assert methods["model.layers.1.mlp.up_proj.weight"].weight == (0.5, 1.0)
    assert methods["model.layers.1.mlp.up_proj.weight"].lambda_ == 0.5
    assert methods["model.layers.2.self_attn.q_proj.weight"].weight == (7.0, 1.0)
    assert methods["model.embed_tokens.weight"].weight == (0.0, 1.0)
    assert methods["lm_head.weight"].lambda_ == 2.0


def test_profiles_set_the_defaults(family, write_recipe):
    def method(profile):
        return merging.check(write_recipe(family, "ties", profile=profile)).tensors[0].method

    assert (method("paper").density, method("paper").scope, method("paper").elect_on) == (
        0.2,
        "model",
        "delta",
    )
    assert (method("mergekit").density, method("mergekit").scope, method("mergekit").count) == (
        1.0,
        "tensor",
        "floor",
    )


def test_dtypes_of_the_output(family, bf16_family, write_recipe):
    def dtype(**keys):
        return merging.check(write_recipe(bf16_family, "ties", **keys)).tensors[0].info.dtype

    assert dtype() == "BF16"
    assert dtype(dtype="float32") == "F32"
    assert dtype(dtype="float32", out_dtype="float16") == "F16"


def test_a_python_recipe_is_checked_too(family):
    recipe = merging.Recipe(merge_method="ties", models=({"model": str(family / "one")},))
    with pytest.raises(MergingError, match="base_model: missing"):
        merging.check(recipe)


def test_a_model_listed_twice(family, write_recipe):
    assert any("listed twice" in text for text in problems(write_recipe(family, "ties", ["one", "one"])))


def test_the_base_and_gpt2(tmp_path, write_recipe):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(
        GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    ).save_pretrained(tmp_path / "m/base")
    tune(tmp_path / "m/base", tmp_path / "m/one", seed=1)
    plan = merging.check(write_recipe(tmp_path / "m", "ties", ["base", "one"]))
    assert len(plan.experts) == 1


def test_a_layout_with_a_single_block(tmp_path, write_recipe):
    save_llama(tmp_path / "m/base", num_hidden_layers=1)
    tune(tmp_path / "m/base", tmp_path / "m/one", seed=1)
    plan = merging.check(
        write_recipe(tmp_path / "m", "task_arithmetic", ["one"], parameters={"weight": [0.2, 0.8]})
    )
    weights = {tensor.info.name: tensor.method.weight for tensor in plan.tensors}
    assert weights["model.layers.0.mlp.up_proj.weight"] == (0.8,)
    assert weights["model.norm.weight"] == (0.2,)


def test_filters_that_miss_or_catch_too_much(tmp_path, write_recipe):
    save_llama(tmp_path / "m/base", num_hidden_layers=12)
    tune(tmp_path / "m/base", tmp_path / "m/one", seed=1)

    def warnings(*filters):
        values = [{"filter": text, "value": 0.5} for text in filters] + [{"value": 1}]
        recipe = write_recipe(tmp_path / "m", "ties", ["one"], parameters={"weight": values})
        return [warning for warning in merging.check(recipe).warnings if "filter" in warning]

    assert warnings("mlp", "layers.1.", "layers.11", "*") == []
    (text,) = warnings("self_atn")
    assert text == "filter 'self_atn': is part of no tensor's name, so its value is never used."
    (text,) = warnings("layers.1")
    assert "(model.layers.10.input_layernorm.weight and 17 more)" in text
    assert "'layers.1.'" in text


def test_inputs_that_are_rounded_before_the_merge(family, bf16_family, write_recipe):
    def warnings(models, **keys):
        plan = merging.check(write_recipe(models, "ties", ["one"], **keys))
        return [warning for warning in plan.warnings if "rounds its" in warning]

    assert len(warnings(family, dtype="bfloat16")) == 2
    assert "dtype: float32 and out_dtype: bfloat16" in warnings(family, dtype="bfloat16")[0]
    assert warnings(family, dtype="bfloat16", profile="paper") == []
    assert warnings(family, dtype="float32", out_dtype="bfloat16") == []
    assert warnings(bf16_family, dtype="bfloat16") == []
