"""YAML text to plain values and back, safely: no tags that run code, no alias that expands without end, no key twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

MOST_VALUES = 20_000
MOST_DIGITS = 100
"""Of a whole number; Python does not write one of more than 4300 digits in an error."""


def load_yaml(text: str) -> tuple[Any, str | None]:
    """The content of a YAML text, or None and a sentence on why it cannot be read."""
    try:
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError, KeyError, AttributeError, TypeError) as error:
        return None, _yaml_problem(error)
    if _too_large(content):
        return (
            None,
            f"it holds, or its aliases expand to, more than {MOST_VALUES:,} values; write it plainly.",
        )
    return content, None


def dump_yaml(content: Any) -> str:
    """Plain values as YAML in their own order; a list of numbers or words stays on one line."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


class _Dumper(yaml.SafeDumper):
    """Writes lists of scalars as [0, 8]."""


def _write_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    plain = not any(isinstance(value, list | dict) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)


_Dumper.add_representer(list, _write_list)


class _Loader(yaml.SafeLoader):
    """YAML in which a key cannot be repeated (one would silently win) and 1e-3 is a number, as in YAML 1.2."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"'{key_node.value}' appears twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > MOST_DIGITS:
            problem = f"a whole number of more than {MOST_DIGITS} digits"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return int(super().construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _too_large(content: Any) -> bool:
    """Whether walking the content meets too many values; aliases count wherever they are used."""
    count, waiting = 0, [content]
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            return True
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    reason = (
        "nested too deeply"
        if isinstance(error, RecursionError)
        else "a value or character that is not allowed"
    )
    told = getattr(error, "problem", None) or reason
    if told.startswith("but "):  # half a sentence, whose other half is the context
        told = f"{getattr(error, 'context', None)}, {told}"
    return f"not valid YAML{where}: {told}."
