"""Models of many families: merged from their folders, loaded again, and mapped."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import merging
from merging.anatomy import blocks, heads, kinds, locate
from merging.checkpoint import Checkpoint
from tests.conftest import edit_config, tune
from tests.families import FAMILIES, load, logits, save_family
from tests.references import seed_methods as reference

FOLDERS = ("base", "one", "two")
LLAMA = [
    "attention norm",
    "mlp norm",
    "final norm",
    "q",
    "k",
    "v",
    "o",
    "gate",
    "up",
    "down",
    "embedding",
    "head",
]
TIED = LLAMA[:-1]
HEAD_NORMS = ["q norm", "k norm", *LLAMA]
SANDWICH = [*TIED[:2], "pre-mlp norm", "post-mlp norm", *TIED[2:]]
NORMS = ["attention norm", "attention norm bias", "mlp norm", "mlp norm bias"]
FINAL = ["final norm", "final norm bias"]
FUSED = ["qkv", "qkv bias", "o", "o bias", "up", "up bias", "down", "down bias", "embedding"]
APART = ["q", "q bias", "k", "k bias", "v", "v bias", "o", "o bias", "up", "up bias", "down", "down bias"]
ROUTED = ["router", "routed gate", "routed up", "routed down"]
CROSS = ["cross q", "cross k", "cross v", "cross o"]
TEXT = [*NORMS, "embedding norm", "embedding norm bias"]
KINDS = {
    "Llama": LLAMA,
    "Mistral": LLAMA,
    "Qwen2": [*TIED[:3], "q", "q bias", "k", "k bias", "v", "v bias", "o", *TIED[7:]],
    "Qwen3": HEAD_NORMS,
    "Gemma2": SANDWICH,
    "Gemma3": ["q norm", "k norm", *SANDWICH],
    "Phi3": [*LLAMA[:3], "qkv", "o", "gate+up", "down", "embedding", "head"],
    "GPT2": [*NORMS, *FINAL, *FUSED, "positions"],
    "GPTNeoX": [*NORMS, *FINAL, *FUSED, "head"],
    "OPT": [*NORMS, *FINAL, *APART, "embedding", "embedding projection", "positions", "head projection"],
    "Mixtral": [*LLAMA[:7], *ROUTED, "embedding", "head"],
    "Qwen2Moe": [
        *LLAMA[:3],
        "q",
        "q bias",
        "k",
        "k bias",
        "v",
        "v bias",
        "o",
        *ROUTED,
        "shared router",
        "shared gate",
        "shared up",
        "shared down",
        "embedding",
        "head",
    ],
    "Qwen3Moe": [*HEAD_NORMS[:9], *ROUTED, "embedding", "head"],
    "T5": [
        "attention norm",
        "cross norm",
        "mlp norm",
        "encoder norm",
        "final norm",
        *CROSS,
        "q",
        "k",
        "v",
        "o",
        "relative positions",
        "up",
        "down",
        "embedding",
    ],
    "T5gated": [
        "attention norm",
        "cross norm",
        "mlp norm",
        "encoder norm",
        "final norm",
        *CROSS,
        "q",
        "k",
        "v",
        "o",
        "relative positions",
        "gate",
        "up",
        "down",
        "embedding",
    ],
    "BertMasked": [
        *TEXT,
        "head norm",
        "head norm bias",
        *APART,
        "embedding",
        "positions",
        "token types",
        "head transform",
        "head transform bias",
        "head bias",
    ],
    "BertClassifier": [
        *TEXT,
        *APART,
        "embedding",
        "positions",
        "token types",
        "pooler",
        "pooler bias",
        "classifier",
        "classifier bias",
    ],
    "ViT": [
        *NORMS,
        *FINAL,
        *APART,
        "positions",
        "patches",
        "patches bias",
        "class token",
        "classifier",
        "classifier bias",
    ],
}
OWN_HEAD = {"Llama", "Mistral", "Qwen3", "Phi3", "GPTNeoX", "Mixtral", "Qwen2Moe", "Qwen3Moe"}
GROUPED_QUERIES = OWN_HEAD - {"GPTNeoX"} | {"Qwen2", "Gemma2", "Gemma3"}
NO_HEAD = {"BertClassifier", "ViT"}


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, tmp_path_factory):
    """The name of a family, and a folder with `base` and two models that were tuned from it."""
    root = tmp_path_factory.mktemp(request.param)
    save_family(request.param, root / "base")
    for seed, name in enumerate(FOLDERS[1:], 1):
        tune(root / "base", root / name, seed=seed, scale=0.05)
    return request.param, root


def merged(models, tmp_path, method, **parameters):
    name, root = models
    entries = [{"model": str(root / one)} for one in FOLDERS[1:]]
    recipe = merging.Recipe(
        merge_method=method,
        base_model=str(root / "base"),
        models=entries,
        parameters=parameters,
        profile="paper",
    )
    out = merging.merge(recipe, tmp_path / "out")
    model, info = load(name, out)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model


def test_a_sum_of_changes_runs_as_a_sum_of_the_loaded_models_changes(models, tmp_path):
    name, root = models
    ours = logits(name, merged(models, tmp_path, "task_arithmetic", **{"weight": 0.5, "lambda": 1.0}))
    by_hand, _ = load(name, root / "base")
    start = logits(name, by_hand)
    base, one, two = (load(name, root / other)[0].state_dict() for other in FOLDERS)
    summed = {
        key: value + 0.5 * (one[key] - value) + 0.5 * (two[key] - value)
        if value.is_floating_point()
        else value
        for key, value in base.items()
    }
    by_hand.load_state_dict(summed)
    assert torch.allclose(ours, logits(name, by_hand), atol=1e-5)
    assert not torch.allclose(ours, start, atol=1e-3)


@pytest.mark.parametrize("models", ["GPT2", "Qwen2Moe", "T5", "BertMasked", "ViT"], indirect=True)
def test_ties_runs_as_ties_of_the_files_by_hand(models, tmp_path):
    """For one family of each build; the sum above is over all."""
    name, root = models
    ours = logits(name, merged(models, tmp_path, "ties", density=0.4, scope="tensor"))
    base, *experts = (load_file(root / other / "model.safetensors") for other in FOLDERS)
    for key, value in base.items():
        deltas = [(expert[key] - value).flatten().double().numpy() for expert in experts]
        change = reference.ties(deltas, [1.0, 1.0], [0.4, 0.4])
        base[key] = (value + torch.from_numpy(change).reshape(value.shape)).float()
    hand = tmp_path / "hand"
    tune(root / "base", hand, seed=0, only=lambda _: False)
    save_file(base, hand / "model.safetensors", {"format": "pt"})
    assert torch.allclose(ours, logits(name, load(name, hand)[0]), atol=1e-5)


def test_the_map_knows_every_tensor(models):
    name, root = models
    model = Checkpoint.open(root / "base")
    assert kinds(model.tensors) == KINDS[name]
    stacks = ["encoder 0", "encoder 1", "decoder 0", "decoder 1", "decoder 2"]
    assert blocks(model.tensors) == (stacks if name.startswith("T5") else [0, 1])
    assert model.tied == (name not in OWN_HEAD | NO_HEAD)
    assert (model.head is not None) == (name in OWN_HEAD)
    for tensor in model.tensors.values():
        place = locate(tensor.name)
        assert place.role != "other", tensor.name
        if place.role == "attention" and place.kind != "o bias":
            count = 2 if name in GROUPED_QUERIES and place.kind[0] in "kv" else 4
            found = heads(place, tensor.shape, model.config)
            assert found, tensor.name
            assert found[0].count == count or place.kind.startswith("qkv")


@pytest.mark.parametrize(
    ("name", "file"), [("ViT", "preprocessor_config.json"), ("BertMasked", "modules.json")]
)
def test_files_around_a_model_are_copied_or_said_to_be_missing(name, file, tmp_path):
    folder = save_family(name, tmp_path / "base")
    (folder / file).write_text("{}")
    models = [{"model": str(tune(folder, tmp_path / "one", seed=1))}]
    recipe = merging.Recipe(merge_method="task_arithmetic", base_model=str(folder), models=models)
    said = "neither merged nor copied" in " ".join(merging.check(recipe).warnings)
    assert (merging.merge(recipe, tmp_path / "out") / file).is_file() is not said
    assert said == (name == "BertMasked")


def test_slices_of_an_encoder_and_a_decoder_are_refused(tmp_path):
    save_family("T5", tmp_path / "t5")
    source = {"model": str(tmp_path / "t5"), "layer_range": [0, 1]}
    recipe = merging.Recipe(merge_method="passthrough", slices=[{"sources": [source]}])
    with pytest.raises(merging.PlanError, match="has an encoder and a decoder, which cannot be cut"):
        merging.check(recipe)


@pytest.mark.parametrize("name", ["GPTNeoX", "OPT", "BertClassifier", "ViT"])
def test_slices_of_one_stack_make_a_model_that_loads(name, tmp_path):
    save_family(name, tmp_path / "base")
    cut = [[0, 2], [1, 2]]
    slices = [{"sources": [{"model": str(tmp_path / "base"), "layer_range": part}]} for part in cut]
    out = merging.merge(merging.Recipe(merge_method="passthrough", slices=slices), tmp_path / "out")
    model, info = load(name, out)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert logits(name, model).isfinite().all()
    assert blocks(Checkpoint.open(out).tensors) == [0, 1, 2]


@pytest.mark.parametrize("name", ["T5", "BertMasked", "OPT", "GPT2"])
def test_stored_copies_of_tied_weights_are_one_tensor(name, tmp_path):
    plain = Checkpoint.open(save_family(name, tmp_path / "plain"))
    full = {key: value.clone() for key, value in load(name, tmp_path / "plain")[0].state_dict().items()}
    tune(tmp_path / "plain", tmp_path / "full", seed=0, only=lambda _: False)
    save_file(full, tmp_path / "full" / "model.safetensors", {"format": "pt"})
    assert len(full) > len(plain.tensors)
    assert Checkpoint.open(tmp_path / "full").tensors.keys() == plain.tensors.keys()


def test_a_t5_with_a_head_of_its_own_keeps_it(tmp_path):
    """Version 1.1 as it is published; transformers itself then writes that such a model is tied, and keeps both."""
    from transformers import T5ForConditionalGeneration

    save_family("T5gated", tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(40, 16)
    save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    edit_config(tmp_path / "base", tie_word_embeddings=False)
    T5ForConditionalGeneration.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "again")
    for folder in (tmp_path / "base", tmp_path / "again"):
        assert not Checkpoint.open(folder).tied
        assert Checkpoint.open(folder).head == "lm_head.weight"
    models = [{"model": str(tmp_path / "again")}]
    recipe = merging.Recipe(merge_method="task_arithmetic", base_model=str(tmp_path / "base"), models=models)
    out = merging.merge(recipe, tmp_path / "out")
    assert torch.equal(load("T5gated", out)[0].lm_head.weight, tensors["lm_head.weight"])


def test_masks_and_positions_of_old_files_are_no_weights(tmp_path):
    folder = save_family("GPTNeoX", tmp_path / "base")
    before = Checkpoint.open(folder).tensors.keys()
    tensors = load_file(folder / "model.safetensors")
    at = "gpt_neox.layers.0.attention."
    tensors[at + "bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    tensors[at + "masked_bias"] = torch.tensor(-1e9)
    tensors[at + "rotary_emb.inv_freq"] = torch.ones(2)
    tensors["gpt_neox.counts"] = torch.arange(3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tune(folder, tmp_path / "one", seed=1, only=lambda name: "counts" not in name)
    assert Checkpoint.open(folder).tensors.keys() == {*before, "gpt_neox.counts"}
    recipe = merging.Recipe(
        merge_method="ties", base_model=str(folder), models=[{"model": str(tmp_path / "one")}]
    )
    merged = load_file(merging.merge(recipe, tmp_path / "out") / "model.safetensors")
    assert torch.equal(merged["gpt_neox.counts"], torch.arange(3)), "whole numbers are copied"


def test_heads_of_interleaved_queries_keys_and_values():
    from merging.anatomy import heads_along

    config = {"model_type": "gpt_neox", "num_attention_heads": 2, "hidden_size": 4}
    found = heads(locate("gpt_neox.layers.0.attention.query_key_value.weight"), (12, 4), config)
    assert [(one.part, one.offset, one.stride) for one in found] == [("q", 0, 6), ("k", 2, 6), ("v", 4, 6)]
    assert heads_along(found, [0, 2, 4]) == [0, 0, 2, 2, 4, 4, 1, 1, 3, 3, 5, 5]


PREFIXES = {"GPT2": "transformer.", "Qwen2": "model.", "BertClassifier": "bert."}


@pytest.mark.parametrize(
    ("name", "bare"), [("GPT2", "base"), ("GPT2", "one"), ("Qwen2", "base"), ("BertClassifier", "one")]
)
def test_names_with_and_without_a_prefix_are_the_same_tensors(name, bare, tmp_path):
    save_family(name, tmp_path / "base")
    tune(tmp_path / "base", tmp_path / "one", seed=1)
    expected, _ = load(name, tmp_path / "one")
    file = tmp_path / bare / "model.safetensors"
    named = {key.removeprefix(PREFIXES[name]): value for key, value in load_file(file).items()}
    save_file(named, file, {"format": "pt"})
    models = [{"model": str(tmp_path / "one")}]
    recipe = merging.Recipe(merge_method="task_arithmetic", base_model=str(tmp_path / "base"), models=models)
    assert "taken to be the same" in " ".join(merging.check(recipe).warnings)
    out = merging.merge(recipe, tmp_path / "out")
    model, info = load(name, out)
    assert not info["missing_keys"]
    assert torch.allclose(logits(name, model), logits(name, expected), atol=1e-5)
    kept = Checkpoint.open(tmp_path / "base").tensors
    assert Checkpoint.open(out).tensors.keys() == kept.keys()
    assert kinds(kept) == KINDS[name]


REFUSED = {
    "vision": ({"vision_config": {}, "text_config": {"model_type": "llama"}}, "vision_config, text_config"),
    "two text models": (
        {"encoder": {"model_type": "bert"}, "decoder": {"model_type": "gpt2"}},
        "encoder, decoder",
    ),
    "a tower": ({"mm_vision_tower": "openai/clip"}, "mm_vision_tower"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, "quantised (gptq)"),
    "own code": ({"auto_map": {"AutoConfig": "a.B"}, "model_type": "nobodys"}, "auto_map in config.json"),
}


@pytest.mark.parametrize(("config", "named"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_one_plain_model_is_refused_by_name(family, tmp_path, config, named):
    tune(family / "base", tmp_path / "model", seed=0)
    edit_config(tmp_path / "model", **config)
    with pytest.raises(merging.CheckpointError) as refused:
        Checkpoint.open(tmp_path / "model")
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_diffusers_pipeline_is_refused_by_name(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(merging.CheckpointError, match="diffusers pipeline"):
        Checkpoint.open(tmp_path)


def test_code_that_transformers_does_without_is_no_reason_to_refuse(family, tmp_path):
    tune(family / "base", tmp_path / "model", seed=0)
    edit_config(tmp_path / "model", auto_map={"AutoConfig": "configuration.LlamaConfig"})
    models = [{"model": str(family / "one")}]
    recipe = merging.Recipe(merge_method="task_arithmetic", base_model=str(tmp_path / "model"), models=models)
    assert "auto_map" not in Checkpoint.open(merging.merge(recipe, tmp_path / "out")).config


def with_tokenizer(folder):
    """A folder that has the tokenizer of the other tests' Llama as well."""
    from tests.conftest import save_llama

    other = save_llama(folder.parent / "llama")
    for file in other.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_an_encoder_decoder_answers_and_is_scored(tmp_path):
    import transformers

    from merging.answering.batched import greedy_replies, log_probabilities
    from merging.answering.put_back import PutBack
    from merging.answering.reply_logits import reply_logits
    from merging.inference import LoadedModel, stream

    save = transformers.T5ForConditionalGeneration
    torch.manual_seed(0)
    save(
        transformers.T5Config(
            **FAMILIES["T5"][1] | {"vocab_size": 48, "eos_token_id": 1, "num_decoder_layers": 2}
        )
    ).save_pretrained(tmp_path / "t5")
    model = LoadedModel.load(with_tokenizer(tmp_path / "t5"))
    ask = [[{"role": "user", "content": text}] for text in ("abc", "a longer one")]
    prompts = [model.prompt_ids(one) for one in ask]
    replies = greedy_replies(model, prompts, 6)
    for prompt, reply in zip(prompts, replies, strict=True):
        assert reply_logits(model, prompt, reply).argmax(-1).tolist() == reply
    found = dict(log_probabilities(model, [(prompts[0] + replies[0], len(prompts[0]))], 2))
    expected = reply_logits(model, prompts[0], replies[0]).log_softmax(-1).amax(-1)
    assert torch.allclose(found[0], expected)
    assert "".join(stream(model, ask[0])) is not None
    other = LoadedModel.load(tune(tmp_path / "t5", tmp_path / "other", seed=1, scale=0.1))
    put_back = list(PutBack(other, model, prompts[0], replies[0]).run())
    assert [one.part for one in put_back[2:6]] == [
        f"{stack} block {n}" for stack in ("encoder", "decoder") for n in (0, 1)
    ]
    assert put_back[-1].log_likelihood == pytest.approx(float(found[0].sum()), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "says"), [("BertMasked", "fills gaps in a text"), ("ViT", "classifies images")]
)
def test_models_that_do_not_write_say_so_and_are_healthy(name, says, tmp_path):
    from merging.answering.health import check_health
    from merging.inference import LoadedModel

    folder = with_tokenizer(save_family(name, tmp_path / "model"))
    with pytest.raises(merging.CheckpointError, match=f"{says} and does not write"):
        LoadedModel.load(folder)
    health = check_health(folder)
    assert health.ok
    assert says in health.checks[-1].sentence
