"""A model that can be run: its weights in memory, its tokenizer and the device they are on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merging.errors import CheckpointError

SAFE_LOADING = {"trust_remote_code": False, "local_files_only": True}

Message = Mapping[str, str]


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model ready to answer, with the tokenizer that belongs to it."""

    model: Any
    tokenizer: Any
    path: Path
    device: str = "cpu"

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> LoadedModel:
        """Load the folder `path` onto `device`: float32 on the CPU, the stored type elsewhere.

        Raises:
            CheckpointError: the folder is missing, or transformers cannot load it.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = Path(path)
        if not folder.is_dir():
            raise CheckpointError(f"There is no model folder at {folder}.")
        dtype = "float32" if device == "cpu" else "auto"
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **SAFE_LOADING)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, **SAFE_LOADING
            )
        except (OSError, ValueError, KeyError, ImportError) as cause:
            raise CheckpointError(f"The model in {folder} cannot be loaded: {cause}") from cause
        return cls(model.to(device).eval(), tokenizer, folder, device)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation that awaits its next reply.

        A tokenizer without a chat template gets the plain text of the messages, one per line.
        """
        if self.tokenizer.chat_template:
            return self.tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        return self.tokenizer("\n".join(message["content"] for message in messages))["input_ids"]

    @property
    def end_ids(self) -> list[int]:
        """Ids of the tokens that end a reply, as the model's generation settings name them."""
        end = self.model.generation_config.eos_token_id
        if end is None:
            end = self.tokenizer.eos_token_id
        if end is None:
            return []
        return list(end) if isinstance(end, Sequence) else [end]

    @property
    def pad_id(self) -> int:
        """Id that fills the short rows of a batch; an end token, or 0, where the tokenizer names none."""
        if self.tokenizer.pad_token_id is not None:
            return self.tokenizer.pad_token_id
        return self.end_ids[0] if self.end_ids else 0
