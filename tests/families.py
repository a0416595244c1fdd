"""Small random models of many families, made with transformers' own classes and saved as people save theirs."""

from __future__ import annotations

from pathlib import Path

import torch

WIDTH = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
COMMON = {**WIDTH, "num_hidden_layers": 2, "max_position_embeddings": 32}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**COMMON, **IDS, "num_key_value_heads": 2, "head_dim": 4}
MIXTURE = {**GROUPED, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
T5 = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
}
T5 |= {"decoder_start_token_id": 0}
IMAGES = {**WIDTH, "num_hidden_layers": 2, "image_size": 8, "patch_size": 4}
del IMAGES["vocab_size"]

FAMILIES = {
    "Llama": ("LlamaForCausalLM", GROUPED),
    "Mistral": ("MistralForCausalLM", GROUPED),
    "Qwen2": ("Qwen2ForCausalLM", {**GROUPED, "tie_word_embeddings": True}),
    "Qwen3": ("Qwen3ForCausalLM", GROUPED),
    "Gemma2": ("Gemma2ForCausalLM", GROUPED),
    "Gemma3": ("Gemma3ForCausalLM", GROUPED),
    "Phi3": ("Phi3ForCausalLM", GROUPED),
    "GPT2": (
        "GPT2LMHeadModel",
        {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32},
    ),
    "GPTNeoX": ("GPTNeoXForCausalLM", COMMON),
    "OPT": ("OPTForCausalLM", {**COMMON, "ffn_dim": 24, "word_embed_proj_dim": 8, "pad_token_id": 1}),
    "Mixtral": ("MixtralForCausalLM", {**GROUPED, "num_local_experts": 3}),
    "Qwen2Moe": ("Qwen2MoeForCausalLM", {**MIXTURE, "shared_expert_intermediate_size": 8}),
    "Qwen3Moe": ("Qwen3MoeForCausalLM", MIXTURE),
    "T5": ("T5ForConditionalGeneration", T5),
    "T5gated": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
    "BertMasked": ("BertForMaskedLM", COMMON),
    "BertClassifier": ("BertForSequenceClassification", COMMON),
    "ViT": ("ViTForImageClassification", IMAGES),
}


def save_family(name: str, folder: Path, *, seed: int = 0) -> Path:
    """A random model of one family in `folder`, without a tokenizer."""
    import transformers

    architecture, settings = FAMILIES[name]
    kind = getattr(transformers, architecture)
    torch.manual_seed(seed)
    kind(kind.config_class(**settings)).save_pretrained(folder)
    return folder


def load(name: str, folder: Path):
    """The model in a folder, by its own class, and what transformers says of its loading."""
    import transformers

    kind = getattr(transformers, FAMILIES[name][0])
    model, info = kind.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    return model.eval(), info


@torch.inference_mode()
def logits(name: str, model) -> torch.Tensor:
    """What the model says of a fixed input."""
    if name == "ViT":
        return model(pixel_values=torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)).logits
    ids = torch.tensor([[3, 9, 27, 5]])
    decoder = {"decoder_input_ids": torch.tensor([[0, 7, 8]])} if name.startswith("T5") else {}
    return model(input_ids=ids, **decoder).logits
