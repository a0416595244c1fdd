"""A model that can be run: its weights in memory, its tokenizer and the device they are on; and its replies."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from merging.answering.abilities import why_silent
from merging.answering.drawing import Draw, Sampling
from merging.checkpoint import Checkpoint
from merging.errors import CheckpointError, MergingError
from merging.tokenizing.prompts import Message, Prompt, TokenIds, prompt_of
from merging.tokenizing.templates import prepare
from merging.tokenizing.tokenizer_check import require_sound_tokenizer

SAFE_LOADING = {"trust_remote_code": False, "local_files_only": True}

GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    **dict.fromkeys(("temperature", "top_p", "top_k", "repetition_penalty", "no_repeat_ngram_size")),
    **dict.fromkeys(("min_length", "min_new_tokens", "exponential_decay_length_penalty", "sequence_bias")),
    **dict.fromkeys(
        ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "stop_strings", "max_time")
    ),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "force_words_ids", "dola_layers")),
    **dict.fromkeys(("guidance_scale", "encoder_repetition_penalty", "prompt_lookup_num_tokens")),
    **dict.fromkeys(("assistant_early_exit", "assistant_confidence_threshold")),
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "token_healing": False,
}
"""The likeliest token at every step. A model's own generation settings may ask for something else; with them two models
would not be asked alike."""

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "*.tiktoken", "*.model")

LOADING = threading.Lock()
"""transformers' lazy imports and its loading change global state, so one thread loads at a time."""

Ending = Literal["end", "length", "context", "stopped"]
"""Why a reply is over: the model ended it, it is as long as it may be, the model reads no further, or it was stopped."""


@dataclass(frozen=True)
class LoadedModel:
    """A model that writes text, ready to answer, with the tokenizer that belongs to it: one that continues its prompt, or
    an encoder-decoder that reads the prompt and writes the reply."""

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
        folder = Path(path)
        if not folder.is_dir():
            raise CheckpointError(f"There is no model folder at {folder}.")
        model = Checkpoint.open(folder)  # its config and headers are of a sort that transformers survives
        model.close()
        _require_text(model.config)
        return cls._loaded(folder, device, f"The model in {folder}", _from_folder)

    @classmethod
    def of_checkpoint(cls, model: Checkpoint, device: str = "cpu") -> LoadedModel:
        """An open model: its folder as `load` does, or the values that are computed of it, such as an adapter on its base.

        Raises:
            CheckpointError: as `load`.
        """
        model = model.origin
        if not model.made_of:
            return cls.load(model.folder, device)
        tensors = {name: model.read(name) for name in model.tensors}
        return cls.of(tensors, model.config, model.folder, tokenizer=model.tokenizer_folder, device=device)

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, torch.Tensor],
        config: Mapping[str, Any],
        folder: Path,
        *,
        tokenizer: Path | None = None,
        device: str = "cpu",
    ) -> LoadedModel:
        """A model of tensors in memory, as `load` makes it of a folder that holds them. No weight is read or written.

        Args:
            config: the content of its config.json.
            folder: a model of the same kind, which gives tokenizer and generation settings.
            tokenizer: the folder of the tokenizer, where it is another.

        Raises:
            CheckpointError: transformers cannot make such a model of them, or the folder has no tokenizer.
        """

        _require_text(config)

        def make(folder: Path, dtype: str) -> tuple[Any, Any]:
            return _from_memory(tensors, config, folder, dtype)

        return cls._loaded(folder, device, "The merged model", make, tokenizer)

    @classmethod
    def _loaded(
        cls, folder: Path, device: str, name: str, make: _Make, words: Path | None = None
    ) -> LoadedModel:
        words = words or folder
        if not any(next(words.glob(name), None) for name in TOKENIZER_FILES):
            raise CheckpointError(f"The model in {words} has no tokenizer: add its tokenizer.json.")
        require_sound_tokenizer(words)
        try:
            with LOADING:
                from transformers import AutoTokenizer
                from transformers.utils import logging

                logging.disable_progress_bar()  # a search loads hundreds of models, and has a line of its own
                tokenizer = AutoTokenizer.from_pretrained(words, **SAFE_LOADING)
                model, info = make(folder, "float32" if device == "cpu" else "auto")
                model = model.to(device).eval()
        except (torch.OutOfMemoryError, MemoryError) as cause:
            raise CheckpointError(f"{name} does not fit into the memory of {device}.") from cause
        except Exception as cause:  # files of strangers: anything may be raised over them
            raise CheckpointError(f"{name} cannot be loaded: {_reason(cause)}") from cause
        if missing := sorted(info["missing_keys"]):
            raise CheckpointError(
                f"{name} cannot be loaded: config.json asks for weights that are not there "
                f"({len(missing)}, such as {missing[0]})."
            )
        if tokenizer.chat_template:
            prepare()
        return cls(model, tokenizer, folder, device)

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """A conversation that awaits its next reply, as this model reads it; see `prompt_of`."""
        return prompt_of(self.tokenizer, messages)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of `prompt`."""
        return self.prompt(messages).ids

    def require_known(self, ids: Iterable[int]) -> None:
        """Nothing where every token has an embedding; on a GPU one that has none would end the work of all visitors.

        Raises:
            MergingError: one has none.
        """
        rows = self.model.get_input_embeddings().weight.shape[0]
        if (largest := max(ids, default=0)) >= rows:
            raise MergingError(
                f"{self.path.name}: its tokenizer makes token {largest} of this, and the model knows {rows:,}. Give it the "
                "tokenizer that belongs to it."
            )

    @property
    def end_ids(self) -> list[int]:
        """Ids of the tokens that end a reply, as the model's generation settings name them."""
        end = self.model.generation_config.eos_token_id
        if end is None:
            end = self.tokenizer.eos_token_id
        if end is None:
            return []
        ends = list(end) if isinstance(end, Sequence) else [end]
        return [one for one in ends if type(one) is int and one >= 0]

    @property
    def pad_id(self) -> int:
        """Id that fills the short rows of a batch; an end token, or 0, where the tokenizer names none."""
        if self.tokenizer.pad_token_id is not None:
            return self.tokenizer.pad_token_id
        return self.end_ids[0] if self.end_ids else 0

    @property
    def nbytes(self) -> int:
        """Bytes its weights take in memory."""
        return sum(tensor.nbytes for tensor in self.model.parameters())

    @property
    def reads_apart(self) -> bool:
        """Whether an encoder reads the prompt, and a decoder writes the reply from its own start token."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def context(self) -> int | None:
        """How many tokens a conversation may have; None where the config does not say."""
        known = getattr(self.model.config, "max_position_embeddings", None)
        return known if isinstance(known, int) and known > 0 else None


_Make = Callable[[Path, str], tuple[Any, Any]]
"""A folder and a dtype to a model, and what transformers says of its loading."""


def _require_text(config: Mapping[str, Any]) -> None:
    if reason := why_silent(config):
        raise CheckpointError(reason)


def _writer(config: Any) -> Any:
    """The transformers class that makes a model which writes."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _from_folder(folder: Path, dtype: str) -> tuple[Any, Any]:
    from transformers import AutoConfig

    kind = _writer(AutoConfig.from_pretrained(folder, **SAFE_LOADING))
    loaded: Any = kind.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **SAFE_LOADING
    )
    return loaded


def _from_memory(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], folder: Path, dtype: str
) -> tuple[Any, Any]:
    from transformers import AutoConfig, GenerationConfig

    kind = type(AutoConfig.from_pretrained(folder, **SAFE_LOADING))
    made = kind.from_dict(dict(config))
    with torch.device("meta"):  # only to learn its class: AutoModel itself takes no tensors
        hollow = _writer(made).from_config(made, trust_remote_code=False)
    model, info = type(hollow).from_pretrained(
        None,
        config=hollow.config,
        state_dict=dict(tensors),
        dtype=dtype,
        output_loading_info=True,
        **SAFE_LOADING,
    )
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model, info


def _reason(error: Exception) -> str:
    """Why a model cannot be loaded: one sentence, or the first line of what transformers says."""
    text = str(error).strip()
    if isinstance(error, RuntimeError) and "mismatch" in text:
        return "the shapes of its weights are not those that config.json names."
    return text.splitlines()[0][:300] if text else type(error).__name__


def stream(
    model: LoadedModel,
    messages: Sequence[Message],
    sampling: Sampling | None = None,
    stop: threading.Event | None = None,
    ids: TokenIds | None = None,
) -> Generator[str, None, Ending]:
    """The reply to a conversation, one piece of text a token; a piece is empty while a letter is incomplete.

    Setting `stop`, or closing the generator, ends the generation at its next token. What it returns is why the reply is
    over.

    Args:
        ids: is told the tokens of prompt and reply.

    Raises:
        MergingError: the conversation is longer than the model can read, or cannot be written in tokens that it knows.
    """
    sampling = sampling or Sampling()
    prompt = model.prompt_ids(messages)
    model.require_known(prompt)
    room = sampling.max_new_tokens
    if model.context is not None:
        room = min(room, model.context - len(prompt))
    if room < 1:
        raise MergingError(
            f"The conversation has {len(prompt)} tokens and this model reads at most {model.context}. Clear the chat, or "
            "ask something shorter."
        )
    ids = ids if ids is not None else TokenIds()
    ids.prompt, ids.reply = prompt, []
    reply = _Reply(model, ids, sampling, stop)
    try:
        reply.begin(room)
        yield from reply
        if ids.reply and ids.reply[-1] in model.end_ids:
            return "end"
        if len(ids.reply) < room:
            return "stopped"
        return "length" if room == sampling.max_new_tokens else "context"
    finally:
        reply.end_now()


class _Reply:
    """A generation on its own thread, and the queue it fills with token ids."""

    def __init__(self, model: LoadedModel, ids: TokenIds, sampling: Sampling, stop: threading.Event | None):
        self.model, self.ids, self.sampling = model, ids, sampling
        self.stops = [threading.Event(), *([stop] if stop is not None else [])]
        self.tokens: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()
        self.seen_prompt = False
        self.thread: threading.Thread | None = None

    def begin(self, room: int) -> None:
        self.thread = threading.Thread(target=self._generate, args=(room,), name="reply", daemon=True)
        self.thread.start()

    def end_now(self) -> None:
        self.stops[0].set()
        if self.thread is not None:
            self.thread.join(5)

    def __iter__(self) -> Iterator[str]:
        shown = ""
        while (token := self.tokens.get()) is not None:
            if isinstance(token, Exception):
                raise token
            self.ids.reply.append(token)
            text = self.model.tokenizer.decode(self.ids.reply, skip_special_tokens=True)
            if text.endswith("\ufffd"):
                yield ""
            else:
                yield text[len(shown) :]
                shown = text

    def _generate(self, room: int) -> None:
        ids = torch.tensor([self.ids.prompt], device=self.model.device)
        try:
            with torch.inference_mode():
                self.model.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=room,
                    **GREEDY,
                    eos_token_id=self.model.end_ids or None,
                    pad_token_id=self.model.pad_id,
                    logits_processor=[Draw(self.sampling)],
                    stopping_criteria=[self._stopped],
                    streamer=self,
                )
        except Exception as error:
            self.tokens.put(error)
        self.tokens.put(None)

    def put(self, ids: torch.Tensor) -> None:
        """A streamer's half of transformers' protocol: first the prompt, then every new token."""
        if self.seen_prompt:
            for token in ids.flatten().tolist():
                self.tokens.put(token)
        self.seen_prompt = True

    def end(self) -> None:
        """The other half; the generating thread says itself when it is done."""

    def _stopped(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        stopped = any(stop.is_set() for stop in self.stops)
        return torch.full((ids.shape[0],), stopped, dtype=torch.bool, device=ids.device)
