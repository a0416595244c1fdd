"""mergekit-yaml's flags on our `merge`: what they do here, or one line about what replaces them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import typer
from typer.core import TyperCommand

from merging.errors import MergingError, ParameterError
from merging.output import USUAL, Files
from merging.recipe import Recipe

SWITCHES = {
    "allow-crimes": "changes nothing; models whose tensors do not fit are refused, whatever their architectures are called",
    "unsafe-truncate-embeddings": "changes nothing; write tokenizer_source into the recipe, which goes by tokens",
    "low-cpu-memory": "changes nothing; models are read by rows, and --memory bounds what they take",
    "lazy-unpickle": "not needed; pickles are never opened, and safetensors are read by rows",
    "clone-tensors": "not needed; every tensor is written once for each place it has",
    "trust-remote-code": "changes nothing; code that comes with a model is never run",
    "read-to-gpu": "not needed; pieces go to the device as they are worked on",
    "multi-gpu": "changes nothing; one GPU is used, and --device cuda:N says which",
    "async-write": "not needed; writing goes on beside the merge",
}
"""Flags without a value that change nothing here, and why. Their `--no-` forms are what we do anyway."""
VALUES = {
    "transformers-cache": "changes nothing; the variable HF_HUB_CACHE says where Hub models lie",
    "lora-merge-cache": "not needed; an adapter is added as its base is read, and no merged copy is kept",
    "lora-merge-dtype": "changes nothing; adapters are added in float32",
    "num-threads": "changes nothing; there is a worker for every core this process may use (taskset limits them)",
    "write-threads": "changes nothing; there is a worker for every core this process may use",
}
"""Flags with a value that change nothing here, and why."""
DOES = frozenset({"cuda", "copy-tokenizer", "write-model-card", "safe-serialization", "quiet"})
"""Flags without a value that do here what they do there."""
DOES_WITH = frozenset({"out-shard-size", "random-seed"})
"""Flags with a value that do here what they do there."""
SIZES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


@dataclass(frozen=True)
class Flags:
    """What mergekit-yaml's flags ask of a merge; `notes` is what to tell of those that do nothing here."""

    device: str | None = None
    seed: int | None = None
    quiet: bool = False
    files: Files = USUAL
    notes: tuple[str, ...] = field(default=())

    def seeded(self, recipe: Recipe) -> Recipe:
        """The recipe with the seed that was asked for."""
        return recipe if self.seed is None else recipe.model_copy(update={"seed": self.seed})


class MergeCommand(TyperCommand):
    """`merge` with its own options and mergekit-yaml's flags, which wait in `ctx.obj` as `Flags`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            ctx.obj, rest = take(args)
        except ParameterError as error:
            raise typer.BadParameter(str(error), ctx) from None
        return super().parse_args(ctx, rest)


def take(arguments: Sequence[str]) -> tuple[Flags, list[str]]:
    """mergekit-yaml's flags among the words of a command line, and the words that are left.

    Raises:
        ParameterError: a flag lacks its value, or has one that it cannot have.
    """
    flags, rest, words = Flags(), list[str](), iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
            break
        name, equals, value = _spelled(word).partition("=")
        plain = name.removeprefix("--")
        if not name.startswith("--"):
            rest.append(word)
        elif plain in VALUES or plain in DOES_WITH:
            given = value if equals else next(words, None)
            if given is None:
                raise ParameterError(f"{name} needs a value after it.")
            flags = _with_value(flags, plain, given)
        elif (changed := None if equals else _switched(flags, plain)) is not None:
            flags = changed
        else:
            rest.append(word)
    return flags, rest


def _spelled(word: str) -> str:
    """A short flag as its long one, with the value that may be joined to it."""
    if re.fullmatch(r"-v+", word):
        return "--verbose"
    if word.startswith("-j"):
        return f"--num-threads={word[2:]}" if len(word) > 2 else "--num-threads"
    return word


def _switched(flags: Flags, name: str) -> Flags | None:
    """The flags with a switch set; None where mergekit has none of that name."""
    plain, on = name.removeprefix("no-"), not name.startswith("no-")
    if plain in SWITCHES:
        return _noted(flags, f"--{plain}: {SWITCHES[plain]}.") if on else flags
    if name == "verbose":
        return _noted(flags, "-v: changes nothing; --json prints all that is known of the merge.")
    if name == "gpu-rich":
        return _noted(
            replace(flags, device="cuda"), "--gpu-rich: one GPU is used; --device cuda:N says which."
        )
    if plain not in DOES:
        return None
    changes: dict[str, Any] = {
        "cuda": {"device": "cuda" if on else "cpu"},
        "quiet": {"quiet": on},
        "copy-tokenizer": {"files": replace(flags.files, tokenizer=on)},
        "write-model-card": {"files": replace(flags.files, card=on)},
        "safe-serialization": {},
    }
    if plain == "safe-serialization" and not on:
        raise MergingError("--no-safe-serialization: only safetensors are written; leave it out.")
    return replace(flags, **changes[plain])


def _with_value(flags: Flags, name: str, value: str) -> Flags:
    if name in VALUES:
        return _noted(flags, f"--{name}: {VALUES[name]}.")
    if name == "random-seed":
        if not re.fullmatch(r"[0-9]{1,18}", value):
            raise ParameterError(f"--random-seed: {value[:40]!r} is no seed; give a whole number, 0 or more.")
        return replace(flags, seed=int(value))
    return replace(flags, files=replace(flags.files, shard_bytes=shard_bytes(value)))


def shard_bytes(text: str) -> int:
    """The bytes of a file of weights as mergekit writes them: `5B`, `500M`, `20K` or a plain number; 0 is one file.

    Raises:
        ParameterError: it is none.
    """
    found = re.fullmatch(r"([0-9]{1,15})([kmb]?)", text.strip().lower())
    if found is None:
        raise ParameterError(
            f"--out-shard-size: {text[:40]!r} is no size; write for example 5B or 500M (thousands of millions, millions "
            "of bytes)."
        )
    return int(found[1]) * SIZES[found[2]] or 1 << 62


def _noted(flags: Flags, note: str) -> Flags:
    return replace(flags, notes=(*flags.notes, note))


def known() -> Iterable[str]:
    """The names of all flags, without dashes."""
    return [*SWITCHES, *VALUES, *sorted(DOES), *sorted(DOES_WITH), "gpu-rich", "verbose"]
