"""Tiny models with tokenizers of the kinds in use: byte-level BPE, Unigram and WordPiece, each with tokens of its own."""

from __future__ import annotations

from pathlib import Path

import torch

TEXT = [
    "the cat sat on the mat and the dog ran",
    "a red fox jumps over the lazy dog",
    "one two three four five",
]
TINY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def train(kind: str, size: int, text: list[str] = TEXT):
    """A tokenizer of so many ordinary tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if kind == "bpe":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, special_tokens=["<|end|>"])
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=size, show_progress=False, special_tokens=["<|end|>", "<unk>"], unk_token="<unk>"
        )
    else:
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, show_progress=False, special_tokens=["<|end|>", "<unk>"]
        )
    made.train_from_iterator(text, trainer)
    return made


def save_model(
    folder: Path,
    tokenizer,
    *,
    added: tuple[str, ...] = (),
    end: str = "<|end|>",
    template: str | None = None,
    rows: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **config,
) -> Path:
    """A random Llama over a tokenizer with `added` special tokens; `rows` more than its tokens are padding."""
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    own = Tokenizer.from_str(tokenizer.to_str())
    own.add_special_tokens(list(added))
    fast = PreTrainedTokenizerFast(tokenizer_object=own, eos_token=end, pad_token=end)
    if template is not None:
        fast.chat_template = template
    number = own.token_to_id(end)
    torch.manual_seed(seed)
    made = LlamaConfig(
        **{
            **TINY,
            "vocab_size": rows or own.get_vocab_size(),
            "eos_token_id": number,
            "bos_token_id": None,
            **config,
        }
    )
    model = LlamaForCausalLM(made)
    model.generation_config.eos_token_id = number
    model.to(dtype).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
