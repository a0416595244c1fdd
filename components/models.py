"""From what a visitor typed to models that are checked: facts from headers, fit with the base, and the family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import merging
from components.family import DEMO_EXPERTS, Family
from components.settings import Settings
from components.stages import RUN, run_folder
from merging import Checkpoint, MergingError, Plan
from merging.anatomy import blocks, locate
from merging.compatibility import compare
from merging.errors import PlanError
from merging.header import DTYPE_WORDS

DEMO = "demo:"
LONG_EXPERT = "math-long"
MOST_EXPERTS = 8
LONGEST = 1000
"""Letters of what is typed for one model."""
_README_BYTES = 64 << 10


@dataclass(frozen=True)
class Facts:
    """What a card shows of a model; `licence` is None where its folder names none."""

    parameters: int
    blocks: int
    width: int | None
    dtypes: tuple[str, ...]
    vocabulary: int | None
    tied: bool
    licence: str | None
    nbytes: int


@dataclass(frozen=True)
class Card:
    """One row of the Models tab. Without facts the model could not be opened; `problems` keep it out of the family."""

    name: str
    facts: Facts | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.name


@dataclass(frozen=True)
class Choice:
    """What the rows amount to: a card a row, and the family of those that fit."""

    base: Card
    experts: tuple[Card, ...]
    family: Family


def demo_rows(settings: Settings) -> tuple[str, list[str]]:
    """The base and the experts of the demo family as a visitor would type them."""
    return DEMO + "base", [DEMO + name for name in DEMO_EXPERTS]


def remembered(base: str, experts: Sequence[str]) -> dict[str, Any]:
    """What a browser keeps of the rows."""
    return {"base": base, "experts": list(experts)}


def kept_rows(stored: object) -> tuple[str, list[str]] | None:
    """The base and the experts that a browser kept; None where it kept nothing, or what is no list of models."""
    if not isinstance(stored, dict):
        return None
    base, experts = stored.get("base"), stored.get("experts")
    if (
        not isinstance(experts, list)
        or len(experts) > MOST_EXPERTS
        or not all(map(_is_text, (base, *experts)))
    ):
        return None
    return base, experts


def _is_text(value: object) -> bool:
    """Whether a value can have been typed for a model; half a character cannot be sent back to the browser."""
    return (
        isinstance(value, str) and len(value) <= LONGEST and value.encode(errors="ignore").decode() == value
    )


def has_long_expert(settings: Settings) -> bool:
    return (settings.demo / LONG_EXPERT).is_dir()


def resolve(typed: str, settings: Settings, owner: str = "") -> str:
    """The folder that a text means: `demo:NAME`, `run:ID` of a finished merge of the owner's, or a folder of this machine
    where those are allowed.

    Raises:
        MergingError: no such demo model or merge, or folders are not allowed here.
    """
    if typed.startswith(RUN):
        return run_folder(settings, owner, typed.removeprefix(RUN).strip())
    if typed.startswith(DEMO):
        name = typed.removeprefix(DEMO).strip()
        known = sorted(path.name for path in settings.demo.glob("*/") if (path / "config.json").is_file())
        if name not in known:
            offer = ", ".join(DEMO + other for other in known) or "none; run examples/demo/train.py"
            raise MergingError(f"There is no demo model '{name}'. Those that exist: {offer}.")
        return str(settings.demo / name)
    if not settings.local_folders:
        raise MergingError(
            "This server opens only the demo models (demo:NAME) and merges made here, not folders; run Mergescope on "
            "your own machine to merge models of yours."
        )
    try:
        return str(Path(typed).expanduser())
    except RuntimeError:
        raise MergingError(f"{typed}: there is no such user on this machine. Give the whole path.") from None


def choose(settings: Settings, base: str, experts: Sequence[str], owner: str = "") -> Choice:
    """Open what was typed, by headers only, and judge each expert against the base. Merges of the owner's can be named."""
    base_card, base_model, base_path = _open(base.strip(), settings, owner)
    cards: list[Card] = []
    paths: list[str] = []
    for typed in list(experts)[:MOST_EXPERTS]:
        card, model, path = _open(typed.strip(), settings, owner)
        if model is not None:
            repeated = _repeated(path, base_path if base_model is not None else None, paths)
            problems, warnings = ([repeated], []) if repeated else ([], [])
            if base_model is None:
                problems = ["Cannot be compared before the base can be read."]
            elif not repeated:
                problems, warnings = _fit(base_model, model, card.name)
            card = Card(card.name, card.facts, tuple(problems), tuple(warnings))
            if not problems:
                paths.append(path)
        cards.append(card)
    family = Family(base_path, tuple(paths)) if base_model is not None else Family("", ())
    return Choice(base_card, tuple(cards), family)


def _open(typed: str, settings: Settings, owner: str) -> tuple[Card, Checkpoint | None, str]:
    if not typed:
        return Card(""), None, ""
    name = typed.removeprefix(DEMO) if typed.startswith(DEMO) else Path(typed).name or typed
    try:
        path = resolve(typed, settings, owner)
        model = Checkpoint.open(path)
        if typed.startswith(RUN):
            name = model.label
        return Card(name, read_facts(model)), model, path
    except MergingError as error:
        return Card(name, problems=(str(error),)), None, ""
    except (OSError, ValueError):
        return (
            Card(name, problems=("This folder cannot be read; check its name and its permissions.",)),
            None,
            "",
        )


def _repeated(path: str, base: str | None, listed: Sequence[str]) -> str | None:
    real = Path(path).resolve()
    if base is not None and real == Path(base).resolve():
        return "This is the base itself, so it changes nothing. Name a model that was tuned from it."
    if any(real == Path(other).resolve() for other in listed):
        return "Already listed above. Remove one of the two."
    return None


def _fit(base: Checkpoint, model: Checkpoint, name: str) -> tuple[list[str], list[str]]:
    try:
        problems, warnings = compare(base, model, name)
    except MergingError as error:
        problems, warnings = [str(error)], []

    def plain(sentence: str) -> str:
        sentence = sentence.removeprefix(f"{name}: ")
        return sentence[:1].upper() + sentence[1:]

    return [plain(problem) for problem in problems], [plain(warning) for warning in warnings]


def read_facts(model: Checkpoint) -> Facts:
    """The facts of a card, from headers, config and the front matter of the README."""
    config = {**model.config, **(model.config.get("text_config") or {})}
    embedding = next((t for n, t in model.tensors.items() if locate(n).role == "embedding"), None)
    width = config.get("hidden_size") or config.get("n_embd")
    if width is None and embedding is not None and len(embedding.shape) == 2:
        width = embedding.shape[1]
    dtypes = dict.fromkeys(DTYPE_WORDS.get(t.dtype, t.dtype.lower()) for t in model.tensors.values())
    return Facts(
        parameters=model.parameters,
        blocks=len(blocks(model.tensors)),
        width=width if isinstance(width, int) else None,
        dtypes=tuple(sorted(dtypes)),
        vocabulary=embedding.rows if embedding is not None else None,
        tied=model.tied,
        licence=_licence(model.folder),
        nbytes=model.nbytes,
    )


def _licence(folder: Path) -> str | None:
    try:
        with (folder / "README.md").open(encoding="utf-8") as file:
            start = file.read(_README_BYTES)
        if not start.startswith("---\n"):
            return None
        found = yaml.safe_load(start[4:].split("\n---", 1)[0])
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    licence = found.get("license") if isinstance(found, dict) else None
    return licence[:60] if isinstance(licence, str) else None


def plan_family(family: Family) -> Plan:
    """The plan of a plain merge of the family, for sizes.

    Raises:
        MergingError: the family cannot be merged.
    """
    return merging.check(family.recipe())


def unreadable(family: Family) -> list[str]:
    """A sentence for each model of a family that cannot be opened: which one, why, and what to do."""
    models = [("base", family.base_name, family.base)]
    models += [("expert", name, folder) for name, folder in zip(family.names, family.experts, strict=True)]
    sentences = []
    for role, name, folder in models:
        try:
            Checkpoint.open(folder)
        except (MergingError, OSError) as error:
            reason = (
                str(error) if isinstance(error, MergingError) else f"{folder}: {error.strerror or error}."
            )
            sentences.append(
                f"The {role} {name} cannot be read. {reason} Put it back, or choose another {role} on the Models tab."
            )
    return sentences


def explained(family: Family, error: MergingError | OSError) -> str:
    """What to tell who only looks at a family, without a recipe, and something went wrong."""
    if gone := unreadable(family):
        return " ".join(gone)
    if isinstance(error, PlanError):
        return f"These models cannot be read together. {' '.join(error.problems)} The Models tab shows what does not fit."
    if isinstance(error, OSError):
        return f"{error.filename or 'A file of these models'} could not be read: {error.strerror or error}. Try again."
    return str(error)
