"""Many prompts through one model: replies, and the likelihood of given tokens, in batches that fit the memory."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch

from merging.answering.reply_logits import reply_logits
from merging.heartbeats import Stopped
from merging.inference import GREEDY, LoadedModel

BATCH_TOKENS = 16_384
"""Tokens of one batch, padding and replies included."""
BATCH_LOGITS = 1 << 26
"""Logits that are in memory at once."""

Sequence_ = tuple[list[int], int]
"""Token ids, and the position from which on their likelihood is asked for (at least 1)."""


@contextmanager
def interruptible(model: LoadedModel, stopped: Callable[[], bool] | None) -> Iterator[None]:
    """Inside, a forward pass of this thread raises `Stopped` at its next layer once `stopped` says so."""
    if stopped is None:
        yield
        return
    asker = threading.get_ident()

    def look(*_: Any) -> None:
        if threading.get_ident() == asker and stopped():
            raise Stopped

    leaves = [part for part in model.model.modules() if next(part.children(), None) is None]
    hooks = [part.register_forward_pre_hook(look) for part in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def by_length(lengths: Sequence[int], batch_size: int, key: Sequence[int]) -> list[list[int]]:
    """Indices in batches of similar length, at most `batch_size` and `BATCH_TOKENS` padded tokens each; a batch has one
    `key`."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        last = batches[-1] if batches else []
        full = len(last) >= batch_size or (len(last) + 1) * lengths[index] > BATCH_TOKENS
        if not last or full or key[last[0]] != key[index]:
            batches.append([])
        batches[-1].append(index)
    return batches


@torch.inference_mode()
def greedy_replies(model: LoadedModel, prompts: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """The likeliest continuation of every prompt: at most `limit` tokens, the last of them an end token where it ends.

    Prompts are padded on the left, those of an encoder on the right.

    Raises:
        MergingError: the model does not know one of their tokens.
    """
    model.require_known(chain.from_iterable(prompts))
    width = max(map(len, prompts))
    padded = [[model.pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    if model.reads_apart:
        padded = [list(prompt) + [model.pad_id] * (width - len(prompt)) for prompt in prompts]
        mask = [row[::-1] for row in mask]
    output = model.model.generate(
        torch.tensor(padded, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=limit,
        **GREEDY,
        eos_token_id=model.end_ids or None,
        pad_token_id=model.pad_id,
    )
    ends = set(model.end_ids)
    return [_until_end(row, ends) for row in output[:, 1 if model.reads_apart else width :].tolist()]


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: end + 1]


def log_probabilities(
    model: LoadedModel, sequences: Sequence[Sequence_], batch_size: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """The number of each sequence with the log-probabilities of its tokens from its position on, float32 on the CPU.

    Sequences are padded on the right, so that every token has its own position.

    Raises:
        MergingError: the model does not know one of their tokens.
    """
    model.require_known(chain.from_iterable(ids for ids, _ in sequences))
    lengths = [len(ids) for ids, _ in sequences]
    for batch in by_length(lengths, batch_size, [0] * len(lengths)):
        for part in _fitting(model, [sequences[index] for index in batch]):
            found = _forward(model, [sequences[batch[place]] for place in part])
            yield from zip((batch[place] for place in part), found, strict=True)


def _fitting(model: LoadedModel, sequences: Sequence[Sequence_]) -> Iterator[range]:
    """Consecutive parts whose logits fit the memory."""
    positions = max(len(ids) for ids, _ in sequences) - min(start for _, start in sequences) + 1
    rows = max(1, BATCH_LOGITS // (positions * model.model.config.get_text_config().vocab_size))
    return (range(start, min(start + rows, len(sequences))) for start in range(0, len(sequences), rows))


@torch.inference_mode()
def _forward(model: LoadedModel, sequences: Sequence[Sequence_]) -> list[torch.Tensor]:
    if model.reads_apart:
        return [_of_reply(model, ids[:start], ids[start:]) for ids, start in sequences]
    width = max(len(ids) for ids, _ in sequences)
    first = min(start for _, start in sequences) - 1
    padded = torch.tensor([ids + [model.pad_id] * (width - len(ids)) for ids, _ in sequences])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in sequences])
    keep: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.model.forward).parameters:
        keep["logits_to_keep"] = torch.arange(first, width - 1, device=model.device)
    logits = model.model(
        input_ids=padded.to(model.device), attention_mask=mask.to(model.device), use_cache=False, **keep
    ).logits
    if not keep:
        logits = logits[:, first:-1]
    found = []
    for row, (ids, start) in zip(logits, sequences, strict=True):
        wanted = torch.tensor(ids[start:], device=model.device)
        losses = torch.nn.functional.cross_entropy(
            row[start - 1 - first : len(ids) - 1 - first].float(), wanted, reduction="none"
        )
        found.append(-losses.cpu())
    return found


def _of_reply(model: LoadedModel, prompt: Sequence[int], reply: Sequence[int]) -> torch.Tensor:
    """The log-probabilities of what a decoder writes after its encoder read the prompt."""
    if not reply:
        return torch.empty(0)
    wanted = torch.tensor(reply, device=model.device)
    logits = reply_logits(model, prompt, reply).float()
    return -torch.nn.functional.cross_entropy(logits, wanted, reduction="none").cpu()
