"""The special tokens of models: which they are, and the ids that config files name them by, in another vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from merging.checkpoint import Checkpoint, read_json

GENERATION = "generation_config.json"
SETTINGS = "tokenizer_config.json"
OLD_SETTINGS = "special_tokens_map.json"
CHOSEN = {"eos_token": "end token", "bos_token": "beginning token", "pad_token": "padding token"}
"""What a user may take from another model, by its key in a tokenizer's settings."""
TEMPLATE = "chat template"
ID_KEYS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")
"""Entries of configs that name tokens by their ids, beside those that end in `_token_id`."""


@dataclass(frozen=True, eq=False)
class Special:
    """A model's special tokens; `name` in the recipe, `vocabulary` of token to id (None: unknown)."""

    name: str
    source: Checkpoint
    vocabulary: Mapping[str, int] | None

    @cached_property
    def texts(self) -> dict[int, str]:
        return {number: token for token, number in (self.vocabulary or {}).items()}

    @cached_property
    def generation(self) -> dict[str, Any]:
        """Its `generation_config.json`; empty where it has none."""
        return _table(self.source.folder / GENERATION)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Its tokenizer's settings."""
        return {**self.table(OLD_SETTINGS), **self.table(SETTINGS)}

    def table(self, name: str) -> dict[str, Any]:
        """One of its tokenizer's files."""
        return _table(self.source.tokenizer_folder / name)

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """The tokens that end a reply, as generation and config name them, else as its tokenizer does."""
        for content in (self.generation, self.source.config):
            value = content.get("eos_token_id")
            if value is not None:
                return tuple(self._text(number) for number in (value if isinstance(value, list) else [value]))
        named = self.named("eos_token")
        return () if named is None else (named,)

    def _text(self, number: Any) -> str:
        return self.texts.get(number, f"#{number}") if isinstance(number, int) else str(number)

    def named(self, key: str) -> str | None:
        """What its tokenizer names as `eos_token` and the like."""
        value = self.settings.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else None

    def said(self, key: str) -> str:
        """One of `CHOSEN` as a page shows it."""
        found = self.ends if key == "eos_token" else tuple(filter(None, [self.named(key)]))
        return ", ".join(found) or "none"

    def remapped(self, content: Mapping[str, Any], tokens: Mapping[str, int]) -> dict[str, Any]:
        """A config of this model whose ids are those of another vocabulary; a token that is not there is left out."""
        if self.vocabulary is None or self.vocabulary == tokens:
            return dict(content)
        made: dict[str, Any] = {}
        for key, value in content.items():
            if isinstance(value, Mapping) and key.endswith("config"):
                made[key] = self.remapped(value, tokens)
            elif key in ID_KEYS or key.endswith("_token_id"):
                made[key] = self._number(value, tokens)
            else:
                made[key] = value
        return made

    def _number(self, value: Any, tokens: Mapping[str, int]) -> Any:
        if isinstance(value, list):
            found = [self._number(one, tokens) for one in value]
            return [one for one in found if one is not None] or None
        if type(value) is int and value in self.texts:
            return tokens.get(self.texts[value])
        return value

    def missing(self, tokens: Mapping[str, int]) -> list[str]:
        """Its chosen special tokens that another vocabulary lacks."""
        wanted = dict.fromkeys([*self.ends, *filter(None, map(self.named, CHOSEN))])
        return [token for token in wanted if token not in tokens and not token.startswith("#")]


def _table(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


@dataclass(frozen=True)
class Difference:
    """What the models say of one thing, by their names, and what the output takes. `key`: of the recipe, to decide it.
    `chosen`: the model that it is taken from; None: the recipe's own text."""

    what: str
    key: str
    values: Mapping[str, str]
    taken: str
    chosen: str | None

    @property
    def differs(self) -> bool:
        return any(value != self.taken for value in self.values.values())

    @property
    def warnings(self) -> list[str]:
        """A sentence for each model whose replies the output ends elsewhere, or asks for in another form."""
        decide = "set {key}: {name} to take its, or {key}: base."
        said = {
            CHOSEN["eos_token"]: "{name}: its end token is {value}, the result's {taken}; ",
            TEMPLATE: "{name}: its chat template differs from the result's; ",
        }.get(self.what)
        return [
            (said + decide).format(name=name, value=value, taken=self.taken, key=self.key)
            for name, value in self.values.items()
            if said is not None and value not in {self.taken, "none"}
        ]


def differences(
    models: Sequence[Special], special: Special, template: Special | None
) -> tuple[Difference, ...]:
    """What differs between models: special tokens, taken from `special`, and the chat template, taken from `template`
    (None: from none of them)."""
    found = [
        Difference(
            what,
            "special_tokens",
            {one.name: one.said(key) for one in models},
            special.said(key),
            special.name,
        )
        for key, what in CHOSEN.items()
    ]
    written = dict.fromkeys(text for one in models if (text := one.source.chat_template) is not None)
    letters = {text: f"template {chr(ord('A') + number % 26)}" for number, text in enumerate(written)}

    def letter(one: Special) -> str:
        text = one.source.chat_template
        return "none" if text is None else letters.get(text, "another template")

    values = {one.name: letter(one) for one in models}
    taken = "the recipe's own" if template is None else letter(template)
    found.append(Difference(TEMPLATE, "chat_template", values, taken, template.name if template else None))
    return tuple(found)


def lost_marks(template: Special, tokens: Mapping[str, int] | None) -> str | None:
    """A token that a model's chat template writes and another vocabulary lacks."""
    text = template.source.chat_template or ""
    lacking = (token for token in template.vocabulary or () if token not in (tokens or {}))
    return next((token for token in lacking if len(token) > 3 and token[0] in "<[" and token in text), None)
