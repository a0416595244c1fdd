"""What goes home of a merge beside its weights: the card with all that is known by now, the maps as pictures, and the
recipe without the paths of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock

from merging.cards.front_matter import README
from merging.cards.model_card import ATTAINED, FOLDER, LIES_IN
from merging.cards.pictures import FOLDER as PICTURES
from merging.cards.pictures import Picture, card_pictures
from merging.cards.scores import CardScore, score_lines
from merging.checkpoint import Checkpoint
from merging.errors import MergingError
from merging.events import Progress
from merging.hub.pinning import names_elsewhere, public_recipe
from merging.judging.subjects import SUBJECT, subject_of_plan
from merging.plan import Plan, make_plan
from merging.recipe import Recipe
from merging.references import is_hub_id
from merging.reports.full import report_of
from merging.reports.report import Report
from merging.tensor_plan import TensorPlan
from merging.writer import MARKER

MOST_ELEMENTS = 400_000_000
"""Weights of parents that the pictures look at; of more, a sample of about so many."""
MOST_KEPT = 16
"""Merges whose pictures are kept, a third of a megabyte each: the card is read, then downloaded, then pushed."""
SETTINGS = "tokenizer_config.json"
OWN_PLACES = ("name_or_path", "tokenizer_file", "special_tokens_map_file")
"""Where a tokenizer's settings say it was loaded from; earlier versions of transformers wrote the files' paths, too."""
GONE = "There are no maps here: the parents are no longer where the merge was made, so nothing could be measured."
CHANGED = "There are no maps here: the parents have changed since they were merged, so they would show another merge."
NO_BASE = "There are no maps here: they show changes from a base, and this merge has none that all of its parts share."

_pictures: dict[tuple[str, tuple[str, ...]], list[Picture]] = {}
_drawing = Lock()


def parcel(
    folder: str | Path,
    *,
    scores: Sequence[CardScore] | None = None,
    name: str = "",
    beside: str | Path | None = None,
) -> dict[str, bytes]:
    """Files by name that lie over a merge's own, or beside them, when it leaves this machine.

    Args:
        scores: what the merge and its parents scored, see `merging.cards.scores`; the card then has a table of them.
        name: where the merge goes, `org/name`, for the lines that say how to use it.
        beside: where relative paths of its recipe are looked up too, after the working folder.

    Raises:
        MergingError: its weights tell of this machine.
    """
    for found in packing(folder, scores=scores, name=name, beside=beside):
        if isinstance(found, dict):
            return found
    raise AssertionError("packing ends with the files")


def packing(
    folder: str | Path,
    *,
    scores: Sequence[CardScore] | None = None,
    name: str = "",
    beside: str | Path | None = None,
) -> Iterator[Progress | dict[str, bytes]]:
    """`parcel` step by step: progress while the parents are looked at for the pictures, then the files."""
    folder = Path(folder)
    try:
        recipe = Recipe.load(folder / MARKER)
    except MergingError:  # not made here, so nothing is known of it
        yield {}
        return
    recipe._folder = Path(beside) if beside is not None else folder
    known = _metadata(folder)
    if _tells_of_here(known, recipe):
        raise MergingError(
            f"{folder.name}: its weights name folders of this machine, as an early version of Mergescope wrote them. Merge "
            "again; the same recipe gives the same weights."
        )
    plan, subject = _planned(recipe), known.get(SUBJECT, "")
    files = {MARKER: _recipe(folder, plan, recipe), **_settings(folder)}
    card = _text(folder / README)
    if not card:
        yield files
        return
    pictures: list[Picture] = []
    said = GONE
    if plan is not None:
        said = CHANGED
        if subject == subject_of_plan(plan):
            said = NO_BASE
            for step in _drawn(plan, subject):
                if isinstance(step, Progress):
                    yield step
                else:
                    pictures = step
    parts = [*score_lines(scores or ()), "", *_maps(pictures, said)]
    files[README] = _card(card, parts, name).encode()
    yield files | {f"{PICTURES}/{one.name}": one.png for one in pictures}


def _planned(recipe: Recipe) -> Plan | None:
    try:
        return make_plan(recipe)
    except MergingError:
        return None


def _metadata(folder: Path) -> Mapping[str, str]:
    """What the weights say of themselves."""
    try:
        return Checkpoint.open(folder).metadata
    except MergingError:
        return {}


def _tells_of_here(metadata: Mapping[str, str], recipe: Recipe) -> bool:
    """Whether a path of the recipe as it was run stands in the weights."""
    places = [name for name in names_elsewhere(recipe, {}) if name.startswith(("/", "~"))]
    return any(place in value for place in places for value in metadata.values())


def _drawn(plan: Plan, subject: str) -> Iterator[Progress | list[Picture]]:
    """Progress, then the pictures, from those that were drawn before; none of a merge whose changes cannot be measured."""
    names = tuple(plan.elsewhere.get(one, one) for one in plan.names)
    with _drawing:
        kept = _pictures.get((subject, names))
    if kept is not None:
        yield kept
        return
    elements = sum(map(_inputs, plan.tensors))
    sample = MOST_ELEMENTS / elements if elements > MOST_ELEMENTS else None
    made: list[Picture] = []
    try:
        for event in report_of(plan, device="cpu", sample=sample):
            if isinstance(event, Report):
                made = card_pictures(event, names)
            else:
                yield replace(event, stage="measuring the parents for the card's maps")
    except MergingError:
        yield []
        return
    with _drawing:
        _pictures[subject, names] = made
        while len(_pictures) > MOST_KEPT:
            del _pictures[next(iter(_pictures))]
    yield made


def _inputs(tensor: TensorPlan) -> int:
    return sum(one.info.elements for one in tensor.inputs if one.info is not None) if tensor.method else 0


def _maps(pictures: Sequence[Picture], said: str) -> list[str]:
    lines = ["## Maps", ""]
    if not pictures:
        return [*lines, said, ""]
    for one in pictures:
        alt = one.alt.replace("[", "(").replace("]", ")").replace("\n", " ")
        lines += [f"### {one.title}", "", f"![{alt}]({PICTURES}/{one.name})", "", one.note, ""]
    return lines


def _card(card: str, parts: Sequence[str], name: str) -> str:
    """The card that the merge wrote, with what was measured since before what it says was attained, or at its end."""
    before, heading, after = card.partition(f"{ATTAINED}\n")
    text = "\n".join(parts).lstrip("\n")
    made = f"{before}{text}\n{heading}{after}" if heading else f"{card.rstrip()}\n\n{text}"
    if not name:
        return made
    return made.replace(f"{LIES_IN}\n\n", "").replace(f'"{FOLDER}"', json.dumps(name))


def _recipe(folder: Path, plan: Plan | None, recipe: Recipe) -> bytes:
    """The recipe with the names that its models have elsewhere, under the line that the merge wrote."""
    first = _text(folder / MARKER).splitlines()[:1]
    comment = [line for line in first if line.startswith("#")]
    public = plan.public if plan is not None else public_recipe(recipe, {})
    return "\n".join([*comment, public.to_yaml()]).encode()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _settings(folder: Path) -> dict[str, bytes]:
    """The tokenizer's settings without the paths that it was loaded from."""
    try:
        known = json.loads(_text(folder / SETTINGS))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(known, dict):
        return {}
    kept = {key: value for key, value in known.items() if key not in OWN_PLACES or is_hub_id(str(value))}
    if kept == known:
        return {}
    return {SETTINGS: (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()}
