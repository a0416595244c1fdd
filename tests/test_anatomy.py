import pytest
import torch

from merging.anatomy import blocks, heads, kinds, locate


@pytest.mark.parametrize(
    ("name", "block", "kind", "role"),
    [
        ("model.embed_tokens.weight", None, "embedding", "embedding"),
        ("model.layers.0.self_attn.q_proj.weight", 0, "q", "attention"),
        ("model.layers.11.self_attn.k_proj.bias", 11, "k bias", "attention"),
        ("model.layers.3.self_attn.o_proj.weight", 3, "o", "attention"),
        ("model.layers.3.mlp.gate_proj.weight", 3, "gate", "mlp"),
        ("model.layers.3.mlp.up_proj.weight", 3, "up", "mlp"),
        ("model.layers.3.mlp.down_proj.weight", 3, "down", "mlp"),
        ("model.layers.3.input_layernorm.weight", 3, "attention norm", "norm"),
        ("model.layers.3.post_attention_layernorm.weight", 3, "mlp norm", "norm"),
        ("model.layers.3.pre_feedforward_layernorm.weight", 3, "pre-mlp norm", "norm"),
        ("model.layers.3.self_attn.q_norm.weight", 3, "q norm", "norm"),
        ("model.layers.3.self_attn.qkv_proj.weight", 3, "qkv", "attention"),
        ("model.layers.3.mlp.gate_up_proj.weight", 3, "gate+up", "mlp"),
        ("model.norm.weight", None, "final norm", "norm"),
        ("lm_head.weight", None, "head", "head"),
        ("transformer.wte.weight", None, "embedding", "embedding"),
        ("transformer.wpe.weight", None, "positions", "embedding"),
        ("transformer.h.5.attn.c_attn.weight", 5, "qkv", "attention"),
        ("transformer.h.5.attn.c_proj.bias", 5, "o bias", "attention"),
        ("transformer.h.5.mlp.c_fc.weight", 5, "up", "mlp"),
        ("transformer.h.5.mlp.c_proj.weight", 5, "down", "mlp"),
        ("transformer.h.5.ln_1.bias", 5, "attention norm bias", "norm"),
        ("transformer.ln_f.weight", None, "final norm", "norm"),
        ("h.2.attn.c_attn.weight", 2, "qkv", "attention"),
        ("body.stage.4.mixer.weight", 4, "mixer", "other"),
        ("something", None, "something", "other"),
    ],
)
def test_names(name, block, kind, role):
    place = locate(name)
    assert (place.block, place.kind, place.role) == (block, kind, role)


def test_axes_in_reading_order():
    names = [
        f"model.layers.{i}.{m}.weight"
        for i in (10, 2)
        for m in ("mlp.up_proj", "self_attn.v_proj", "self_attn.q_proj", "odd")
    ]
    assert blocks([*names, "lm_head.weight"]) == [2, 10]
    assert kinds(names) == ["q", "v", "up", "odd"]


CONFIG = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64}


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("q_proj.weight", (64, 64), [("q", 0, 0, 8, 8)]),
        ("k_proj.weight", (16, 64), [("k", 0, 0, 2, 8)]),
        ("o_proj.weight", (64, 64), [("o", 1, 0, 8, 8)]),
        ("q_proj.bias", (64,), [("q", 0, 0, 8, 8)]),
        ("o_proj.bias", (64,), []),
        ("qkv_proj.weight", (96, 64), [("q", 0, 0, 8, 8), ("k", 0, 64, 2, 8), ("v", 0, 80, 2, 8)]),
        ("q_proj.weight", (60, 64), []),
    ],
)
def test_heads(name, shape, expected):
    place = locate(f"model.layers.0.self_attn.{name}")
    assert [(h.part, h.axis, h.offset, h.count, h.size) for h in heads(place, shape, CONFIG)] == expected


def test_heads_lie_along_columns_in_gpt2():
    config = {"model_type": "gpt2", "n_head": 4, "n_embd": 16}
    found = heads(locate("transformer.h.0.attn.c_attn.weight"), (16, 48), config)
    assert [(h.part, h.axis, h.offset) for h in found] == [("q", 1, 0), ("k", 1, 16), ("v", 1, 32)]
    assert heads(locate("transformer.h.0.attn.c_proj.weight"), (16, 16), config)[0].axis == 0


def test_explicit_head_size():
    config = {**CONFIG, "head_dim": 16}
    assert heads(locate("model.layers.0.self_attn.q_proj.weight"), (128, 64), config)[0].size == 16


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Phi3", "GPT2"])
def test_real_architectures_are_fully_known(family):
    """Every tensor of the model has a known kind, and attention weights have heads."""
    import transformers

    shape = {
        "vocab_size": 32,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    shape |= {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    if family == "GPT2":
        shape = {"vocab_size": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = getattr(transformers, f"{family}Config")(**shape)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    settings = config.to_dict()
    for name, value in model.state_dict().items():
        place = locate(name)
        assert place.role != "other", name
        if place.role == "attention" and place.kind != "o bias":
            assert heads(place, tuple(value.shape), settings), name
