"""From what a visitor typed to models that are checked: facts from headers, fit with the base, and the family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from components.family import DEMO_EXPERTS, Family
from components.hub.sources import DEMO, NotAsked, Opened, name_of, open_typed
from components.models.choice import Choice, planned, unequal
from components.models.facts import Card, card_of, plain
from components.models.words import KEYS, TOKENIZER
from components.server.settings import Settings
from merging import MergingError
from merging.errors import PlanError
from merging.references import Reference
from merging.sources import open_model

LONG_EXPERT = "math-long"
MOST_EXPERTS = 8
LONGEST = 1000
"""Letters of what is typed for one model."""


def demo_rows(settings: Settings) -> tuple[str, list[str]]:
    """The base and the experts of the demo family as a visitor would type them."""
    return DEMO + "base", [DEMO + name for name in DEMO_EXPERTS]


def remembered(base: str, experts: Sequence[str], words: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a browser keeps of the rows and of what was decided."""
    return {"base": base, "experts": list(experts), **({"words": dict(words)} if words else {})}


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


def kept_words(stored: object) -> dict[str, str]:
    """What was decided, as a browser kept it, or as it sent it; nothing where that is something odd."""
    words = stored.get("words") if isinstance(stored, dict) else None
    if not isinstance(words, dict):
        return {}
    return {key: words[key] for key in KEYS if _is_text(words.get(key))}


def has_long_expert(settings: Settings) -> bool:
    return (settings.demo / LONG_EXPERT).is_dir()


def choose(
    settings: Settings,
    base: str,
    experts: Sequence[str],
    owner: str = "",
    words: Mapping[str, str] | None = None,
) -> Choice:
    """Open what was typed, by headers only, and judge each expert against the base."""
    opening = _Opening(settings, owner)
    base_card, base_model = opening.open(base.strip())
    cards: list[Card] = []
    members: list[Opened] = []
    for typed in list(experts)[:MOST_EXPERTS]:
        card, opened = opening.open(typed.strip(), base_model)
        if opened is not None:
            problems, warnings = _judged(opened, base_model, members)
            card = replace(card, problems=tuple(problems), warnings=(*card.warnings, *warnings))
            if not problems:
                members.append(opened)
        cards.append(card)
    return Choice(base_card, tuple(cards), base_model, tuple(members), tuple(opening.to_ask), words or {})


@dataclass
class _Opening:
    """Opens what was typed, and notes what the Hub has to be asked for."""

    settings: Settings
    owner: str
    to_ask: list[Reference] = field(default_factory=list)

    def open(self, typed: str, base: Opened | None = None) -> tuple[Card, Opened | None]:
        if not typed:
            return Card(""), None
        if len(typed) > LONGEST:
            said = f"This has {len(typed):,} letters, and a name has at most {LONGEST:,}. Type a shorter one."
            return Card(typed[:40] + "…", problems=(said,)), None
        name = name_of(typed)
        try:
            opened = open_typed(self.settings, self.owner, typed, base.reference if base is not None else "")
            return card_of(opened), opened
        except NotAsked as waiting:
            self.to_ask.append(waiting.reference)
            return Card(name, problems=(str(waiting),), waits=True), None
        except MergingError as error:
            return Card(name, problems=(str(error),)), None
        except (OSError, ValueError):
            return Card(
                name, problems=("This folder cannot be read; check its name and its permissions.",)
            ), None


def _judged(opened: Opened, base: Opened | None, earlier: Sequence[Opened]) -> tuple[list[str], list[str]]:
    """Problems and warnings of an expert beside the base and the experts above it."""
    if base is None:
        return ["Cannot be compared before the base can be read."], []
    if _same(opened, base):
        return ["This is the base itself, so it changes nothing. Name a model that was tuned from it."], []
    if any(_same(opened, other) for other in earlier):
        return ["Already listed above. Remove one of the two."], []
    if opened.model is None or base.model is None:
        return [], []
    return _fit(base, opened)


def _same(one: Opened, other: Opened) -> bool:
    if one.model is None or other.model is None:
        return one.reference == other.reference
    return one.model.path.resolve() == other.model.path.resolve()


def _fit(base: Opened, model: Opened) -> tuple[list[str], list[str]]:
    """What is in the way of a merge of the two, and what is to be said of it; what can be decided is said in short."""
    try:
        differs = ["vocabulary"] if unequal(base, model) else []
    except MergingError as error:
        return [str(error)], []
    plan, problems = planned(base, [model], {TOKENIZER: "base"} if differs else {})
    if plan is None:
        return [plain(problem, model) for problem in problems], []
    decidable = [one for one in (plan.tokens.differences if plan.tokens else ()) if one.warnings]
    said = {sentence for one in decidable for sentence in one.warnings}
    differs += [one.what for one in decidable]
    notes = [f"Differs from the base: {', '.join(differs)}. Decide below."] if differs else []
    own = [text for text in plan.warnings if text.startswith(f"{model.reference}: ") and text not in said]
    return [], [*notes, *(plain(text, model) for text in own)]


def unreadable(family: Family) -> list[str]:
    """A sentence for each model of a family that cannot be opened: which one, why, and what to do."""
    models = [("base", family.base_name, family.base)]
    models += [("expert", name, folder) for name, folder in zip(family.names, family.experts, strict=True)]
    sentences = []
    for role, name, folder in models:
        try:
            open_model(folder)
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
