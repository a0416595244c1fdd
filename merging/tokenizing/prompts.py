"""A conversation as token ids: written by the model's own chat template, or as plain text where it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merging.errors import MergingError
from merging.tokenizing.templates import TemplateError, render

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """A conversation that awaits its next reply.

    `templated`: whether a chat template wrote it. `system_left_out`: whether it has a system prompt that these ids do not
    hold, for the template takes none, or there is no template.
    """

    ids: list[int]
    templated: bool
    system_left_out: bool


@dataclass(eq=False)
class TokenIds:
    """The exact tokens of a prompt and of the reply to it as far as it has come: its text alone does not tell them."""

    prompt: list[int] = field(default_factory=list)
    reply: list[int] = field(default_factory=list)


def prompt_of(tokenizer: Any, messages: Sequence[Message]) -> Prompt:
    """The prompt of a conversation; without a chat template the messages stand one per line.

    Raises:
        MergingError: the template fails on the conversation, or nothing of it can be written in the model's tokens.
    """
    every = [{"role": message["role"], "content": message["content"]} for message in messages]
    others = [message for message in every if message["role"] != "system"]
    has_system = len(others) < len(every)
    if not tokenizer.chat_template:
        ids = _ids(tokenizer, "\n".join(message["content"] for message in others))
        return Prompt(ids, templated=False, system_left_out=has_system)
    if not has_system:
        return Prompt(_written(tokenizer, every), templated=True, system_left_out=False)
    without = _written(tokenizer, others)
    try:
        ids = _written(tokenizer, every)
    except MergingError:
        ids = without
    return Prompt(ids, templated=True, system_left_out=ids == without)


def _written(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int]:
    try:
        text = render(tokenizer.get_chat_template(), messages, tokenizer.special_tokens_map)
    except (TemplateError, ValueError) as cause:  # the latter where none of its templates is the default
        raise MergingError(
            f"The model's chat template fails on this conversation ({cause}). Mend its chat_template.jinja."
        ) from cause
    return _ids(tokenizer, text, add_special_tokens=False)


def _ids(tokenizer: Any, text: str, **options: bool) -> list[int]:
    try:
        ids = tokenizer(text, **options)["input_ids"]
    except BaseException as cause:
        if type(cause).__name__ != "PanicException":  # how compiled code fails; it is no Exception
            raise
        raise MergingError(
            f"The model's tokenizer fails on this conversation ({str(cause)[:100]}). Give it the one that belongs to it."
        ) from cause
    if not ids:
        raise MergingError("The model's tokenizer makes no token of this conversation. Ask something else.")
    return ids
