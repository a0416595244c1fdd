"""Whether a tokenizer of strangers can be loaded here: what its file says, and a trial in a process of its own."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from merging.errors import CheckpointError
from merging.folders.small_files import read_json
from merging.tokenizing.templates import KEPT

FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
SECONDS = 20
"""Of processor time for a trial; the largest tokenizers take two."""
MOST_BYTES = 4 << 30
MOST_GROWTH = 256
"""How many times longer all its replacements together may make a text."""
MOST_PIECES = 64
"""Parts of a template that puts special tokens around a text, and tokens of one of them."""
LONGEST_PIECE = 100
"""Letters that one may become, or that are put before a text."""
DEEPEST = 64

_sound: set[tuple[str, int, int]] = set()


def require_sound_tokenizer(folder: Path) -> None:
    """Nothing where the folder's tokenizer can be loaded and used without harm to this process.

    Raises:
        CheckpointError: its files are too large or malformed, it writes texts without end, or it fails in a trial.
    """
    for name in FILES:
        if (folder / name).is_file():
            read_json(folder / name)
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    status = file.stat()
    key = (str(file.resolve()), status.st_mtime_ns, status.st_size)
    if key in _sound:
        return
    if reason := _grows(read_json(file)) or _fails(file):
        raise CheckpointError(f"{file}: cannot be used ({reason}). Download it again, or take the base's.")
    _sound.add(key)


def _grows(content: Mapping[str, Any]) -> str:
    """Why a tokenizer may make very much of a short text; empty where it does not."""
    growth = 1.0
    for part in _parts(content, DEEPEST):
        if part.get("type") == "Replace" and isinstance(written := part.get("content"), str):
            pattern = part.get("pattern")
            plain = pattern.get("String") if isinstance(pattern, Mapping) else None
            # an expression may fit between any two letters
            growth *= max(1.0, len(written) / len(plain)) if plain else len(written) + 1
        elif part.get("type") == "Prepend" and len(str(part.get("prepend"))) > LONGEST_PIECE:
            return f"it puts more than {LONGEST_PIECE} letters before every text"
        elif part.get("type") == "Precompiled" and _longest(part.get("precompiled_charsmap")) > LONGEST_PIECE:
            return f"it writes more than {LONGEST_PIECE} bytes for a letter"
        elif part.get("type") == "TemplateProcessing" and _pieces(part) > MOST_PIECES:
            return f"it puts more than {MOST_PIECES} tokens around a text"
    return f"it makes a text {growth:.3g} times as long" if growth > MOST_GROWTH else ""


def _parts(content: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    """The tables of a normalizer, pre-tokenizer, post-processor or decoder; a vocabulary is passed over."""
    if isinstance(content, list):
        for one in content if depth else ():
            yield from _parts(one, depth - 1)
    elif isinstance(content, Mapping):
        yield content
        for name, value in content.items() if depth else ():
            if name not in {"model", "added_tokens"} and isinstance(value, Mapping | list):
                yield from _parts(value, depth - 1)


def _longest(charsmap: Any) -> int:
    """Bytes of the longest text in a map of letters. Source: sentencepiece, normalizer.cc: the size of a trie, the trie,
    texts that end with 0."""
    try:
        content = base64.b64decode(charsmap)
    except (TypeError, ValueError):
        return 0  # the trial says what is wrong with it
    return max(map(len, content[4 + int.from_bytes(content[:4], "little") :].split(b"\0")))


def _pieces(part: Mapping[str, Any]) -> int:
    special = part.get("special_tokens")
    listed = (
        [one.get("ids") for one in special.values() if isinstance(one, Mapping)]
        if isinstance(special, Mapping)
        else []
    )
    return max(
        (len(one) for one in (part.get("single"), part.get("pair"), *listed) if isinstance(one, list)),
        default=0,
    )


def _fails(file: Path) -> str:
    """How a trial of a tokenizer ends in a process of its own; empty where it ends well."""
    worker = Path(__file__).with_name("tokenizer_worker.py")
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(worker), str(file), str(SECONDS), str(MOST_BYTES)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            env={name: os.environ[name] for name in KEPT if name in os.environ},
            check=False,
        )
    except OSError as error:
        return f"no process to try it in can be started: {error.strerror}"
    if done.returncode == 0:
        return ""
    said = done.stdout.decode(errors="replace").strip().splitlines()
    if done.returncode > 0 and said:
        return said[-1].rstrip(".")
    return "in a trial it used up the memory or the time, or crashed"
