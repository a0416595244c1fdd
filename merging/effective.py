"""What every tensor really gets: the values that gradients, filters, slices and overrides come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merging.anatomy import Block, after_number, block_order, block_words, kinds, locate
from merging.tensor_plan import TensorPlan


@dataclass(frozen=True)
class Effective:
    """The values one tensor of the output is merged with."""

    tensor: str
    models: tuple[str, ...]
    """The models that are merged into it, as the recipe names them."""
    inputs: tuple[str, ...]
    """The tensor's name in each of them."""
    copied: bool
    """Whether it is the base's own tensor, without any merge."""
    values: dict[str, Any]
    """Parameter -> value; a tuple with one value for each model where models have their own. By YAML names."""

    def as_json(self) -> dict[str, Any]:
        """For machines: per-model values as a table from model to value."""
        values = {
            name: dict(zip(self.models, value, strict=True)) if isinstance(value, tuple) else value
            for name, value in self.values.items()
        }
        inputs = dict(zip(self.models, self.inputs, strict=True))
        return {"tensor": self.tensor, "copied": self.copied, "inputs": inputs, "values": values}


def effective(tensors: Iterable[TensorPlan]) -> list[Effective]:
    """The values of every tensor, in plan order."""
    return [
        Effective(
            tensor=tensor.info.name,
            models=tensor.models,
            inputs=tuple(one.name for one in tensor.experts),
            copied=tensor.method is None,
            values=_values(tensor),
        )
        for tensor in tensors
    ]


def _values(tensor: TensorPlan) -> dict[str, Any]:
    method = tensor.method
    if method is None:
        return {}
    dumped = method.model_dump(by_alias=True)
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in dumped.items()}
    for name in method.per_model():
        attribute = next(
            key for key, field in type(method).model_fields.items() if name in (field.alias, key)
        )
        values[name] = method.for_experts(attribute, len(tensor.experts))
    return values


def summary(found: Sequence[Effective]) -> list[str]:
    """The values in few lines: what holds for all merged tensors, then a line for each group of tensors that differ."""
    merged = [one for one in found if not one.copied]
    copied = [one.tensor for one in found if one.copied]
    common = _common(merged)
    short = short_names(model for one in found for model in one.models)
    lines = ["everywhere: " + _text(merged[0], common, short)] if common else []
    groups: dict[Hashable, list[Effective]] = {}
    for one in merged:
        rest = tuple((name, repr(value)) for name, value in one.values.items() if name not in common)
        groups.setdefault((one.models, rest), []).append(one)
    whole = Names(one.tensor for one in found)
    for group in groups.values():
        own = [name for name in group[0].values if name not in common]
        several = len({one.models for one in merged}) > 1
        who = f" ({', '.join(short[model] for model in group[0].models)})" if several else ""
        if own or who:
            lines.append(
                f"{whole.pattern([one.tensor for one in group])}{who}: {_text(group[0], own, short)}".rstrip(
                    ": "
                )
            )
    if copied:
        lines.append(f"{whole.pattern(copied)}: copied")
    return lines


def _common(found: Sequence[Effective]) -> list[str]:
    """Parameters with one value in all tensors."""
    if not found:
        return []
    first = found[0]
    same_models = all(one.models == first.models for one in found)
    return [
        name
        for name, value in first.values.items()
        if all(one.values[name] == value for one in found) and (same_models or not isinstance(value, tuple))
    ]


def _text(one: Effective, names: Iterable[str], short: dict[str, str]) -> str:
    parts = []
    for name in names:
        value = one.values[name]
        if isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, tuple):
            pairs = zip(one.models, value, strict=True)
            parts.append(f"{name} " + " ".join(f"{short[model]}={_number(own)}" for model, own in pairs))
        else:
            parts.append(f"{name} {_number(value)}")
    return ", ".join(parts)


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Model -> the last part of its path, or all of it where that does not tell them apart."""
    models = list(dict.fromkeys(models))
    names = [Path(model).name or model for model in models]
    return {
        model: name if names.count(name) == 1 else model for model, name in zip(models, names, strict=True)
    }


class Names:
    """Short words for many tensors of one model: blocks as ranges, modules by kind, or by name where a kind is many."""

    def __init__(self, tensors: Iterable[str]):
        self.words: dict[str, str] = {}
        self.blocks: dict[Block, set[str]] = {}
        tensors = list(tensors)
        self.order = kinds(tensors)
        places = [locate(name) for name in tensors]
        several = Counter((place.block, place.kind) for place in places)
        for place in places:
            if place.block is None:
                continue
            alone = several[place.block, place.kind] == 1
            word = place.kind if alone else after_number(place.name)
            self.blocks.setdefault(place.block, set()).add(word)
            self.words[place.name] = word

    def pattern(self, tensors: Iterable[str]) -> str:
        """`blocks 0-3 q, k, v; model.norm.weight`."""
        inside: dict[Block, set[str]] = {}
        outside = []
        for name in tensors:
            block = locate(name).block
            if block is None:
                outside.append(name)
            else:
                inside.setdefault(block, set()).add(self.words[name])
        by_words: dict[frozenset[str], list[Block]] = {}
        for block in sorted(inside, key=block_order):
            by_words.setdefault(frozenset(inside[block]), []).append(block)
        parts = []
        for words, numbers in by_words.items():
            every = all(words == self.blocks[number] for number in numbers)
            chosen = "" if every else " " + ", ".join(sorted(words, key=self._rank))
            parts.append(f"{block_words(numbers)}{chosen}")
        return "; ".join([*parts, *outside])

    def _rank(self, word: str) -> tuple[int, str]:
        return (self.order.index(word) if word in self.order else len(self.order), word)
