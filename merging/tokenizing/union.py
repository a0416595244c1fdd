"""One tokenizer of several: the base's `tokenizer.json` with the tokens of others behind its own.

Every token of the base keeps its id, and every text that only holds tokens of the base is cut as the base cuts it, until
a merge rule of another model applies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
Content = dict[str, Any]
"""What a `tokenizer.json` holds."""


def tokens_of(content: Mapping[str, Any]) -> dict[str, int]:
    """Token to id, added tokens included.

    Raises:
        TypeError, ValueError, KeyError, AttributeError: the content is malformed.
    """
    stored = (content.get("model") or {}).get("vocab") or {}
    if isinstance(stored, list):  # Unigram: pairs of token and score, the id is the position
        stored = {token: number for number, (token, _) in enumerate(stored)}
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    return {str(token): int(number) for token, number in {**stored, **added}.items()}


def union(base: Content, others: Sequence[Content], more: Sequence[str] = ()) -> Content:
    """The base's tokenizer with the tokens of all others, and those of `more` as added ones.

    New tokens follow in the order of the models and of their ids there. A token that is an added one anywhere is
    one in the union. Merge rules of others that make a token of the union come after the base's.
    """
    made = {**base, "model": {**base["model"]}}
    known = tokens_of(base)
    added = {entry["content"]: entry for entry in made.get("added_tokens") or []}
    numbers = count(max(known.values(), default=-1) + 1)
    for other in others:
        theirs = {entry["content"]: entry for entry in other.get("added_tokens") or []}
        for token, _ in sorted(tokens_of(other).items(), key=lambda item: item[1]):
            if token not in known:
                known[token] = next(numbers)
            if token in theirs:
                added.setdefault(token, {**theirs[token], "id": known[token]})
    for token in more:
        if token not in known:
            known[token] = next(numbers)
        added.setdefault(token, {"id": known[token], "content": token, **PLAIN})
    made["added_tokens"] = sorted(added.values(), key=lambda entry: entry["id"])
    model = made["model"]
    model["vocab"] = _vocabulary(model, known, others)
    if model.get("merges") is not None:
        model["merges"] = [*model["merges"], *_new_merges(model["merges"], known, others)]
    return made


def union_problem(base: Content, other: Content) -> str | None:
    """Why two tokenizers have no union; None where they have one."""
    kinds = [_kind(one) for one in (base, other)]
    if kinds[0] not in KINDS or kinds[1] not in KINDS:
        return f"its tokenizer is of the kind {kinds[kinds[0] in KINDS]}, and only {', '.join(KINDS)} can be united"
    if kinds[0] == "Unigram" and sorted(ids := tokens_of(base).values()) != list(range(len(ids))):
        return "the base's tokenizer leaves ids out, which a Unigram union cannot"
    if kinds[0] != kinds[1]:
        return (
            f"its tokenizer is {kinds[1]}, the base's {kinds[0]}; their pieces cannot be cut by one tokenizer"
        )
    if _byte_level(base) != _byte_level(other) and set(_ordinary(other)) - set(_ordinary(base)):
        return (
            "one of both tokenizers writes its tokens as bytes, the other as letters; their pieces do not mix"
        )
    return None


def _kind(content: Mapping[str, Any]) -> str:
    return str((content.get("model") or {}).get("type") or "unknown")


def _ordinary(content: Mapping[str, Any]) -> Iterator[str]:
    stored = (content.get("model") or {}).get("vocab") or {}
    yield from (entry[0] for entry in stored) if isinstance(stored, list) else stored


def _byte_level(part: Any, depth: int = 5) -> bool:
    """Whether a pre-tokenizer or decoder, or one inside it, is ByteLevel."""
    if not isinstance(part, dict) or not depth:
        return False
    if part.get("type") == "ByteLevel":
        return True
    inner = [part[key] for key in ("decoder", "pre_tokenizer") if key in part]
    inner += [one for key in ("pretokenizers", "decoders") for one in part.get(key) or ()]
    return any(_byte_level(one, depth - 1) for one in inner)


def _vocabulary(model: Mapping[str, Any], known: Mapping[str, int], others: Sequence[Content]) -> Any:
    """The model's own vocabulary with every token in it, added ones too: those outside it would be numbered anew."""
    stored = model.get("vocab") or {}
    if not isinstance(stored, list):
        return dict(sorted(known.items(), key=lambda item: item[1]))
    scores: dict[str, float] = {}
    for other in (*reversed(others), {"model": model}):
        scores |= {entry[0]: entry[1] for entry in (other.get("model") or {}).get("vocab") or ()}
    least = min(scores.values(), default=0.0)
    return [[token, scores.get(token, least)] for token in sorted(known, key=known.__getitem__)]


def _new_merges(merges: Sequence[Any], known: Mapping[str, int], others: Sequence[Content]) -> Iterator[Any]:
    """The merge rules of others that the base lacks, as the base writes its own."""
    as_text = bool(merges) and isinstance(merges[0], str)
    theirs = [rules for other in others if (rules := (other.get("model") or {}).get("merges")) != merges]
    seen = {_pair(rule) for rule in merges} if theirs else set()
    for rules in theirs:
        for rule in rules or ():
            first, second = pair = _pair(rule)
            if pair not in seen and first in known and second in known and first + second in known:
                seen.add(pair)
                yield f"{first} {second}" if as_text else [first, second]


def _pair(rule: Any) -> tuple[str, str]:
    first, second = rule.split(" ", 1) if isinstance(rule, str) else rule
    return first, second
