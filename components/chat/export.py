"""Everything that was asked on a page as one zip file: for programs (JSON) and for people (Markdown)."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

from components.chat.log import Log, Said, Turn
from components.chat.sampling import NUMBERS
from merging import MergingError, __version__

NAME = "mergescope-chat"

_made: dict[str, Path] = {}
"""The folder of each page's file."""


def zip_chat(log: Log, page: str) -> Path:
    """The zip of a log, in the folder the server may send files from; an earlier one of the page makes room for it.

    Raises:
        MergingError: nothing was asked yet, or there is no room for the file.
    """
    if not log:
        raise MergingError("Nothing was asked yet. Ask something first.")
    folder = Path(get_upload_folder()) / f"{NAME}-{secrets.token_hex(16)}"
    forget_chat(page)
    try:
        folder.mkdir(parents=True)
        file = folder / f"{NAME}.zip"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{NAME}/chat.json", json.dumps(as_json(log), ensure_ascii=False, indent=1))
            archive.writestr(f"{NAME}/chat.md", as_markdown(log))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise MergingError(f"The file cannot be written ({error.strerror}). Free some disk space.") from None
    _made[page] = folder
    return file


def forget_chat(page: str) -> None:
    """Remove the file of a page, where there is one."""
    if (folder := _made.pop(page, None)) is not None:
        shutil.rmtree(folder, ignore_errors=True)


def as_json(log: Log) -> dict[str, Any]:
    """The log as plain values; `recipe` of a reply is the place of its recipe in `recipes`, counted from 1."""
    recipes = _recipes(log)
    return {
        "mergescope": __version__,
        "turns": [
            {
                "asked": _when(turn),
                "question": turn.question,
                "system_prompt": turn.system,
                "sampling": asdict(turn.sampling),
                "replies": [_reply(said, recipes) for said in turn.replies],
            }
            for turn in log
        ],
        "recipes": recipes,
    }


def _reply(said: Said, recipes: Sequence[str]) -> dict[str, Any]:
    return {
        "column": said.column + 1,
        "model": said.model,
        "recipe": recipes.index(said.recipe) + 1 if said.recipe else None,
        "reply": said.text,
        "tokens": said.tokens,
        "tokens_per_second": round(said.rate, 1) if said.rate is not None else None,
        "notes": list(said.notes),
        "error": said.error or None,
    }


def as_markdown(log: Log) -> str:
    """The log to be read; what people and models wrote stands in fences that it cannot close."""
    recipes = _recipes(log)
    lines = ["# Conversation", "", f"Mergescope {__version__}", ""]
    for number, turn in enumerate(log, 1):
        lines += [f"## Question {number}", "", f"{_when(turn)} · {_drawn(turn)}", ""]
        if turn.system:
            lines += ["System prompt:", "", *_fenced(turn.system), ""]
        lines += [*_fenced(turn.question), ""]
        for said in turn.replies:
            lines += [f"### Column {said.column + 1}: {_one_line(said.model)}", ""]
            lines += [_one_line(said.error)] if said.error else _fenced(said.text)
            noted = [*said.notes, *([f"recipe {recipes.index(said.recipe) + 1}"] if said.recipe else [])]
            lines += ["", _one_line(" · ".join(noted)), ""]
    for number, recipe in enumerate(recipes, 1):
        lines += [f"## Recipe {number}", "", *_fenced(recipe, "yaml"), ""]
    return "\n".join(lines)


def _recipes(log: Log) -> list[str]:
    """Every recipe of the log once, in the order they were asked."""
    return list(dict.fromkeys(said.recipe for turn in log for said in turn.replies if said.recipe))


def _when(turn: Turn) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(turn.when))


def _drawn(turn: Turn) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {getattr(turn.sampling, name):.16g}" for name in NUMBERS)


def _fenced(text: str, language: str = "") -> list[str]:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language or 'text'}", text.rstrip("\n"), fence]


def _one_line(text: str) -> str:
    """Text outside a fence: on one line, and with nothing that Markdown or HTML would take for more than text."""
    return re.sub(r"([\\`*_\[\]<>#|&])", r"\\\1", " ".join(text.split()))
