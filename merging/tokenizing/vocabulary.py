"""What the rows of an embedding stand for: token texts from the tokenizer's files, read without running any of them.

The files come from strangers: they are bounded in size, a malformed one costs the texts and never more, and texts are
made readable, so that no control or direction character reaches a page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from merging.checkpoint import Checkpoint
from merging.errors import CheckpointError
from merging.folders.small_files import read_json, read_text
from merging.plan import Plan

MOST_TEMPLATE = 256 << 10
"""Characters of a chat template that are searched; real ones have less than 20 thousand."""
MOST_ADDED = 10_000
"""Added tokens that are looked for in it; real tokenizers have up to about 6,500."""
LARGEST_ID = 1 << 24
LONGEST_TEXT = 48
"""Characters of a token that are shown."""
LEAST_TEXT = 3
"""An added token shorter than this is no mark of a chat template: a line break, a space."""
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
LISTED = ("additional_special_tokens", "extra_special_tokens")
VISIBLE = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}
_MARK = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,30}\]")
"""What a chat template writes of marks, such as <|im_start|> and [INST]."""


@dataclass(frozen=True, slots=True)
class Token:
    """One row of a vocabulary: its text as it can be shown, and what is particular about it.

    `mark`: "special", "chat template", both with a comma between them, "padding row" behind the last token, "unused row"
    between tokens, or nothing.
    """

    id: int
    text: str
    mark: str = ""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of a model by id; without texts, every token is called by its id.

    `texts` are as the files write them: ordinary tokens in the byte alphabet of GPT-2 if `byte_level`, `added` ones
    plainly. `special`: declared so by the tokenizer. `template`: written by a chat template. `problem`: why something is
    missing, in a sentence or two.
    """

    texts: Mapping[int, str] = field(default_factory=dict)
    added: frozenset[int] = frozenset()
    byte_level: bool = False
    special: frozenset[int] = frozenset()
    template: frozenset[int] = frozenset()
    problem: str | None = None
    size: int = field(init=False)
    """Rows up to the last token."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", max(self.texts, default=-1) + 1)

    @property
    def marked(self) -> list[int]:
        """Ids of all special and chat-template tokens, ascending."""
        return sorted(self.special | self.template)

    def token(self, number: int) -> Token:
        """The token of a row."""
        if number not in self.texts:
            unknown = "unused row" if number < self.size else "padding row"
            return Token(number, f"#{number}", unknown if self.texts else "")
        kinds = {"special": self.special, "chat template": self.template}
        byte_level = self.byte_level and number not in self.added
        return Token(
            number,
            readable(self.texts[number], byte_level=byte_level),
            ", ".join(kind for kind, ids in kinds.items() if number in ids),
        )


def plan_vocabulary(plan: Plan) -> Vocabulary:
    """The vocabulary of a plan's output, with the chat templates of all models: a base often has none of its own."""
    sources = [source for source in (plan.reference, *plan.experts) if isinstance(source, Checkpoint)]
    if not sources or sources[0] is not plan.reference:
        return Vocabulary(problem="Tensors in memory have no tokenizer, so tokens are called by their ids.")
    folders = [source.tokenizer_folder for source in sources]
    if plan.tokens is None:
        return read_vocabulary(folders[0], folders[1:])
    return read_vocabulary(plan.tokens.giver.source.tokenizer_folder, folders, plan.tokens.content)


def read_vocabulary(
    folder: Path, others: Sequence[Path] = (), content: Mapping[str, Any] | None = None
) -> Vocabulary:
    """The vocabulary of a model folder; `others` add their chat templates and the names of their special tokens, `content`
    takes the place of its tokenizer.json.

    Never raises: a folder without a tokenizer, or with a broken one, gives ids and a `problem`.
    """
    problems: list[str] = []
    stored, added, byte_level = _tokens(folder, problems, content)
    if not stored and not added and not problems:
        problems.append(f"{folder.name}: has neither tokenizer.json nor vocab.json.")
    if problems and not stored and not added:
        problems.append("Tokens are called by their ids.")
    texts = stored | {number: text for number, (text, _) in added.items()}
    ids = {text: number for number, text in texts.items()}
    special = {number for number, (_, declared) in added.items() if declared}
    template: set[int] = set()
    for one in dict.fromkeys((folder, *others)):
        declared, named, written = _settings(one, problems)
        special |= {ids[text] for text in (*declared, *named.values()) if text in ids}
        marks = {*_MARK.findall(written), *(text for name, text in named.items() if name in written)}
        marks |= {
            text
            for text, _ in islice(added.values(), MOST_ADDED)
            if len(text.strip()) >= LEAST_TEXT and text in written
        }
        template |= {ids[text] for text in marks if text in ids}
    return Vocabulary(
        texts=texts,
        added=frozenset(added),
        byte_level=byte_level,
        special=frozenset(special),
        template=frozenset(template),
        problem=" ".join(dict.fromkeys(problems)) or None,
    )


def readable(text: str, *, byte_level: bool = False) -> str:
    """A token's text for a page: spaces and line breaks visible, single bytes as <0xE2>, what has no shape as <U+202E>.

    `byte_level`: the text is written in the byte alphabet of GPT-2, where Ġ is a space.
    """
    raw = [_BYTES.get(character) for character in text] if byte_level else [None]
    if None not in raw:
        plain = bytes(byte for byte in raw if byte is not None).decode("utf-8", "surrogateescape")
    else:
        plain = text.replace("▁", " ")
    shown = "".join(map(_shape, plain[:LONGEST_TEXT]))
    return (shown if len(plain) <= LONGEST_TEXT else f"{shown}…") or "(empty)"


def _shape(character: str) -> str:
    if character in VISIBLE:
        return VISIBLE[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no text by itself
        return f"<0x{code - 0xDC00:02X}>"
    return character if character.isprintable() else f"<U+{code:04X}>"


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte: printable Latin-1 stands for itself, the others for U+0100 and up. Source: GPT-2, encoder.py."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _tokens(
    folder: Path, problems: list[str], given: Mapping[str, Any] | None
) -> tuple[dict[int, str], dict[int, tuple[str, bool]], bool]:
    """Ordinary tokens, added tokens with whether they are special, and whether the ordinary ones are byte-level."""
    content = given or _table(folder / "tokenizer.json", problems)
    if content:
        model = content.get("model")
        stored = _numbered(model.get("vocab") if isinstance(model, dict) else None)
        added = dict(_added(content.get("added_tokens")))
        if not stored:
            problems.append(
                f"{folder / 'tokenizer.json'}: its vocabulary is malformed; copy it from the model again."
            )
        return stored, added, any(_byte_level(content.get(part)) for part in ("decoder", "pre_tokenizer"))
    stored = _numbered(_table(folder / "vocab.json", problems))
    added = {
        n: (text, False) for n, text in _numbered(_table(folder / "added_tokens.json", problems)).items()
    }
    decoder = _table(folder / "tokenizer_config.json", problems).get("added_tokens_decoder")
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(entry, dict) and number.isascii() and number.isdigit() and len(number) < 9:
            added |= dict(_added([{**entry, "id": int(number)}]))
    return stored, added, any(text.startswith("Ġ") for text in stored.values())


def _numbered(vocabulary: Any) -> dict[int, str]:
    """Id -> text, of a table of texts and ids, or of a list of texts and scores (Unigram); malformed entries are
    passed over."""
    if isinstance(vocabulary, dict):
        pairs: Any = vocabulary.items()
    elif isinstance(vocabulary, list):
        pairs = ((entry[0], n) for n, entry in enumerate(vocabulary) if isinstance(entry, list) and entry)
    else:
        return {}
    return {number: text for text, number in pairs if isinstance(text, str) and _is_id(number)}


def _added(listed: Any) -> Iterator[tuple[int, tuple[str, bool]]]:
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and _is_id(entry.get("id")):
            yield entry["id"], (entry["content"], entry.get("special") is True)


def _is_id(number: Any) -> bool:
    return type(number) is int and 0 <= number < LARGEST_ID


def _byte_level(part: Any, depth: int = 4) -> bool:
    """Whether a decoder or pre-tokenizer, or one inside it, is ByteLevel."""
    if isinstance(part, dict) and depth:
        inner = [one for value in part.values() if isinstance(value, list) for one in value]
        return part.get("type") == "ByteLevel" or any(_byte_level(one, depth - 1) for one in inner)
    return False


def _settings(folder: Path, problems: list[str]) -> tuple[set[str], dict[str, str], str]:
    """Texts of special tokens, those with a name by it, and all that chat templates write."""
    declared: set[str] = set()
    named: dict[str, str] = {}
    template = ""
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        content = _table(folder / file, problems)
        named |= {name: text for name in NAMED for text in _contents(content.get(name))}
        declared |= {text for name in LISTED for text in _contents(content.get(name))}
        template += "\n".join(_contents(content.get("chat_template"), "template"))
    template += _text(folder / "chat_template.jinja", problems)
    return declared, named, template[:MOST_TEMPLATE]


def _contents(value: Any, key: str = "content") -> list[str]:
    """The texts in a text, in a table with `key`, or in a list or a table of those."""
    if isinstance(value, dict) and key in value:
        value = value[key]
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    texts = (one.get(key) if isinstance(one, dict) else one for one in inner)
    return [text for text in texts if isinstance(text, str)]


def _table(file: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON table; empty, with the problem noted, where it cannot be read, and empty where there is none."""
    try:
        return read_json(file) if file.is_file() else {}
    except (CheckpointError, OSError, MemoryError) as error:
        problems.append(str(error))
        return {}


def _text(file: Path, problems: list[str]) -> str:
    try:
        return read_text(file) if file.is_file() else ""
    except (CheckpointError, OSError) as error:
        problems.append(str(error))
        return ""
