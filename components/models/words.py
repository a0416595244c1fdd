"""Where models differ in tokens, special tokens, chat templates and heads: what a visitor can decide, and what becomes of it."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from merging import Plan
from merging.tokenizing.special_tokens import CHOSEN, Difference
from merging.tokenizing.tokenizer_plan import TokenizerPlan

AS_TOKENIZER = ""
"""The choice that leaves something to the model whose tokenizer the result gets."""
TOKENIZER, SPECIAL, TEMPLATE = KEYS = ("tokenizer_source", "special_tokens", "chat_template")
"""The recipe's keys, in the order in which they are decided."""
LABELS = {
    TOKENIZER: "Tokens of the result",
    SPECIAL: "End and other special tokens",
    TEMPLATE: "Chat template",
}
HEADS = {
    "own": "its own",
    "tied": "tied to the embedding",
    "missing": "not in its files: the embedding serves",
}
LONGEST_VALUE = 60
"""Letters of a token that a choice shows."""

Named = Sequence[tuple[str, str, str]]
"""Models in the order of the rows, the base first: what was typed, the short name, and the name in the recipe."""


@dataclass(frozen=True)
class Decision:
    """One thing to decide: the recipe's key, the choices (label, value), and the value now. A value is `base`, `union`,
    `AS_TOKENIZER`, or what was typed for a model."""

    key: str
    choices: tuple[tuple[str, str], ...]
    value: str


def decided(words: Mapping[str, str], named: Named, *, unequal: bool) -> dict[str, str]:
    """The recipe's keys for what was decided; `unequal`: whether vocabularies differ, so that the recipe has to say whose
    tokens the result gets."""
    references = {typed: reference for typed, _, reference in named}
    found = {}
    for key in KEYS:
        value = words.get(key, AS_TOKENIZER)
        if key == TOKENIZER:
            if unequal:
                found[key] = value if value == "union" else references.get(value, "base")
        elif value in references:
            found[key] = references[value]
    if named and found.get(TOKENIZER) == named[0][2]:
        found[TOKENIZER] = "base"
    return found


def decisions(
    words: Mapping[str, str], named: Named, *, own: Collection[str], plan: TokenizerPlan | None
) -> list[Decision]:
    """What there is to decide over these models; nothing where they agree. `own`: the names in the recipe of models whose
    vocabulary is not the base's."""
    found = []
    if own:
        theirs = [(f"{name}'s", typed) for typed, name, reference in named if reference in own]
        choices = (("the base's", "base"), ("all tokens of all models", "union"), *theirs)
        found.append(_decision(TOKENIZER, words, choices, "base"))
    for key in (SPECIAL, TEMPLATE):
        differing = [one for one in (plan.differences if plan else ()) if one.key == key and one.differs]
        if differing:
            choices = (("as in the result's tokenizer", AS_TOKENIZER), *_said(differing, named))
            found.append(_decision(key, words, choices, AS_TOKENIZER))
    return found


def _said(differing: Sequence[Difference], named: Named) -> list[tuple[str, str]]:
    """A choice for all models that say the same; none for those that say nothing."""
    groups: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for typed, name, reference in named:
        said = tuple(one.values.get(reference, "none") for one in differing)
        groups.setdefault(said, []).append((name, typed))
    return [
        (f"{' · '.join(map(_short, said))} ({', '.join(name for name, _ in models)})", models[0][1])
        for said, models in groups.items()
        if said[0] != "none"
    ]


def _decision(
    key: str, words: Mapping[str, str], choices: tuple[tuple[str, str], ...], default: str
) -> Decision:
    value = words.get(key, default)
    return Decision(key, choices, value if value in {one for _, one in choices} else default)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def heads_differ(plan: TokenizerPlan) -> bool:
    return len(set(plan.heads.values())) > 1


def words_html(plan: Plan | None, named: Named, problems: Sequence[str] = ()) -> str:
    """What becomes of tokens, rows and heads, a line a model and one for the result."""
    parts = [f'<p class="problem" role="alert">{html.escape(problem)}</p>' for problem in problems]
    tokens = plan.tokens if plan is not None else None
    if tokens is not None:
        parts.append(_table(tokens, named))
    return "".join(parts)


def _table(plan: TokenizerPlan, named: Named) -> str:
    differing = [one for one in plan.differences if one.differs]
    counts = {one.name: one for one in plan.counts}
    heads = heads_differ(plan)
    titles = ["model", *(["rows of its embedding and head"] if counts else []), *map(_title, differing)]
    titles += ["output head"] if heads else []
    lines = []
    for _, name, reference in named:
        cells = [_rows(counts[reference]) if reference in counts else "as they are"] if counts else []
        cells += [_short(one.values.get(reference, "none")) for one in differing]
        cells += [HEADS.get(plan.heads.get(reference, ""), "none")] if heads else []
        lines.append(_line(name, cells))
    result = []
    if counts:
        added = f", {len(plan.added):,} of them new to its tokenizer" if plan.added else ""
        result.append(f"{plan.tokens:,} tokens in {plan.rows or 0:,} rows{added}")
    result += [_short(one.taken) for one in differing]
    result += [HEADS["own" if "own" in plan.heads.values() else "tied"]] if heads else []
    lines.append(_line("the result", result, "words-result"))
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles)
    return (
        '<div class="figures words" tabindex="0" role="region" aria-label="Tokens, templates and heads"><table>'
        "<caption>What the models say, and what the result takes</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _title(difference: Difference) -> str:
    return difference.what if difference.what in CHOSEN.values() else "chat template"


def _line(name: str, cells: Sequence[str], css: str = "") -> str:
    body = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f'<tr class="{css}"><th scope="row">{html.escape(name)}</th>{body}</tr>'


def _rows(counts: object) -> str:
    kinds = (
        ("own", "its own"),
        ("copied", "of another model"),
        ("averaged", "a mean of others"),
        ("zeroed", "zeros"),
    )
    found = [(getattr(counts, kind), words) for kind, words in kinds]
    return " · ".join(f"{number:,} {words}" for number, words in found if number)
