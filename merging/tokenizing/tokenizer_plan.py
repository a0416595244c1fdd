"""The output's vocabulary: whose tokenizer it has, the rows of its embedding and head, and what its special tokens are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from merging.tokenizing.heads import with_tie
from merging.tokenizing.row_maps import RowCounts
from merging.tokenizing.special_tokens import CHOSEN, GENERATION, OLD_SETTINGS, SETTINGS, Difference, Special

TEMPLATE = "chat_template.jinja"
TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER,
    SETTINGS,
    OLD_SETTINGS,
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "*.model",
    "*.tiktoken",
    TEMPLATE,
)
"""What a tokenizer's files are called, as globs: T5's is `spiece.model`."""
STAYS = (SETTINGS, OLD_SETTINGS, TEMPLATE)
"""The files of a tokenizer that stay right when its tokens change."""


@dataclass(frozen=True, eq=False)
class TokenizerPlan:
    """What becomes of the vocabulary; plain facts for pages and reports, and the output's files.

    `source`: base, union or a model, as the recipe says; None where it says nothing and every row stays at its place.
    `vocabulary`: token to id in the output; None where no model has a tokenizer that can be read. `rows`: of the output's
    embedding; None without one. `counts`: per model, where rows are rearranged. `added`: tokens that the model which gives
    the tokenizer lacks.
    """

    reference: Special
    giver: Special
    special: Special
    source: str | None = None
    vocabulary: Mapping[str, int] | None = None
    rows: int | None = None
    counts: tuple[RowCounts, ...] = ()
    added: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    heads: Mapping[str, str] = field(default_factory=dict)
    """Model -> "own", "tied", or "missing"."""
    content: Mapping[str, Any] | None = None
    """A tokenizer.json that none of the models has."""
    template: str | None = None
    """A chat template that takes the place of the tokenizer's own."""

    @property
    def tokens(self) -> int:
        return len(self.vocabulary or ())

    @cached_property
    def changes_files(self) -> bool:
        """Whether the output has other tokens, or other ids of special tokens, than the reference's files say."""
        same = self.special is self.reference and self.giver is self.reference
        return not same or self.reference.vocabulary != self.vocabulary

    def config(self, config: Mapping[str, Any], head: bool) -> dict[str, Any]:
        """The reference's config for the output's rows, ids and head."""
        made = with_tie(config, self.reference.source, head)
        if self.vocabulary is None:
            return made
        made = self.reference.remapped(made, self.vocabulary)
        if self.special is not self.reference:
            made |= self._chosen_ids(self.special.source.config)
        if self.counts and self.rows is not None:
            text = made.get("text_config")
            if isinstance(text, Mapping) and "vocab_size" in text:
                made["text_config"] = {**text, "vocab_size": self.rows}
            else:
                made["vocab_size"] = self.rows
        return {key: value for key, value in made.items() if value is not None or config.get(key) is None}

    def _chosen_ids(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The ids of end, beginning and padding that a config of the model with the special tokens names."""
        assert self.vocabulary is not None
        named = {f"{key}_id": content.get(f"{key}_id") for key in CHOSEN}
        found = self.special.remapped(named, self.vocabulary)
        return {key: value for key, value in found.items() if value is not None}

    def files(self) -> dict[str, str | Path]:
        """The output's tokenizer and generation settings: a text, or a file to copy, by name."""
        found: dict[str, str | Path] = {}
        folder = self.giver.source.tokenizer_folder
        for file in (file for name in TOKENIZER_FILES for file in sorted(folder.glob(name))):
            if file.is_file() and (self.content is None or file.name in STAYS):
                found[file.name] = file
        if self.content is not None:
            found[TOKENIZER] = json.dumps(self.content, ensure_ascii=False)
        for name in (SETTINGS, OLD_SETTINGS):
            if name in found and (changed := self._settings(name)) is not None:
                found[name] = _text(changed)
        if self.template is not None:
            found[TEMPLATE] = self.template
        if (generation := self._generation()) is not None:
            found[GENERATION] = generation
        return found

    def _settings(self, name: str) -> dict[str, Any] | None:
        """The tokenizer's settings with the chosen special tokens and template; None where nothing changes."""
        own = made = self.giver.table(name)
        if self.special is not self.giver:
            chosen = {key: self.special.settings[key] for key in CHOSEN if key in self.special.settings}
            made = {**made, **{key: value for key, value in chosen.items() if value is not None}}
        if self.template is not None:
            made = {key: value for key, value in made.items() if key != "chat_template"}
        if self.content is not None and isinstance(made.get("added_tokens_decoder"), Mapping):
            entries = {str(one["id"]): {**one} for one in self.content.get("added_tokens") or []}
            for entry in entries.values():
                del entry["id"]
            made = {**made, "added_tokens_decoder": {**entries}}
        return None if made == own else made

    def _generation(self) -> str | Path | None:
        """Generation settings: those of the model with the special tokens, else the reference's."""
        for one in (self.special, self.reference):
            if one.generation:
                if self.vocabulary is None or not self.changes_files:
                    return one.source.folder / GENERATION
                made = one.remapped(one.generation, self.vocabulary)
                if one is not self.special:
                    made |= self._chosen_ids(self.special.source.config)
                return _text({key: value for key, value in made.items() if value is not None})
        return None

    def as_json(self) -> dict[str, Any]:
        """The report for machines."""
        return {
            "source": self.source,
            "tokens": self.tokens,
            "rows": self.rows,
            "new_tokens": len(self.added),
            "models": [asdict(one) for one in self.counts],
            "differences": [asdict(one) for one in self.differences if one.differs],
            "heads": dict(self.heads),
        }

    def lines(self) -> Iterator[str]:
        """The report: what becomes of rows, special tokens, chat templates and heads, a sentence each."""
        if self.source is not None and self.rows is not None:
            whose = {"base": "the base's", "union": "the union of all"}.get(self.source, f"{self.source}'s")
            yield f"tokenizer: {whose}, {self.tokens:,} tokens in {self.rows:,} rows" + (
                f", {len(self.added):,} of them new to it" if self.added else ""
            )
        for one in self.counts:
            kinds = {
                "copied from another model": one.copied,
                "the mean of others": one.averaged,
                "zeros": one.zeroed,
            }
            rest = [f"{number:,} {kind}" for kind, number in kinds.items() if number]
            yield f"rows of {one.name}: " + ", ".join([f"{one.own:,} its own", *rest])
        for difference in self.differences:
            if difference.differs:
                values = "; ".join(f"{name} {value}" for name, value in difference.values.items())
                yield f"{difference.what}: {difference.taken} ({difference.key}); {values}"
        if len(set(self.heads.values())) > 1:
            yield "output heads: " + ", ".join(f"{name} {kind}" for name, kind in self.heads.items())


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
