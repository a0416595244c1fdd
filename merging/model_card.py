"""The model card: the README of a merged folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from merging.events import Finished
from merging.gguf import gguf_lines
from merging.lineage import Ancestor
from merging.methods import METHODS
from merging.plan import Plan
from merging.version import __version__


def model_card(plan: Plan, finished: Finished, lineage: Ancestor, config: Mapping[str, Any]) -> str:
    """The README of the result: parents and what those were merged of, recipe, what was attained, and how to go on.

    Args:
        config: the result's config.json; empty for weights without one.
    """
    method = METHODS[plan.recipe.merge_method]
    facts = []
    if finished.relative_change is not None:
        facts.append(f"- relative change of the merge, ‖Δ‖/‖θ0‖: {finished.relative_change:.4g}")
        facts.append(
            f"- changed weights that the output dtype rounds back to the base: {finished.lost_share:.1%}"
        )
    if finished.attained is not None:
        for name, kept, tied in zip(
            plan.names, finished.attained.nonzero, finished.attained.tied, strict=True
        ):
            share = kept / max(1, finished.attained.elements)
            facts.append(
                f"- density attained for {_code(name)}: {share:.4f} ({tied:,} elements tied at the threshold)"
            )
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [merge, mergescope]",
            "---",
            f"# A merge by {method.title}",
            "",
            f"Made with Mergescope {__version__}; method: {method.paper}",
            "",
            "## Parents",
            *_parents(lineage),
            "",
            "## What was attained",
            *(facts or ["- no base, so no change was measured"]),
            *_vocabulary(plan),
            *(
                ["", "## Warnings", *(f"- {warning}" for warning in finished.warnings)]
                if finished.warnings
                else []
            ),
            "",
            "## Recipe",
            "```yaml",
            plan.record.to_yaml().rstrip(),
            "```",
            *_llama_cpp(config),
            "",
        ]
    )


def _vocabulary(plan: Plan) -> list[str]:
    lines = [*plan.tokens.lines()] if plan.tokens else []
    return ["", "## Vocabulary", *(f"- `{line.replace('`', chr(39))}`" for line in lines)] if lines else []


def _parents(one: Ancestor, depth: int = 0) -> Iterator[str]:
    """The lineage as a nested list; names come from other people's files, so they are code, which no page interprets."""
    for parent in one.parents:
        role = " (base)" if parent.is_base else ""
        merged = f", a merge by {_code(parent.title)} of" if parent.parents else ""
        yield f"{'  ' * depth}- {_code(parent.name)}{role}{merged}"
        yield from _parents(parent, depth + 1)


def _code(name: str) -> str:
    return "`" + name.replace("`", "'") + "`"


def _llama_cpp(config: Mapping[str, Any]) -> list[str]:
    said, *command = gguf_lines("FOLDER", config) or [""]
    if not said:
        return []
    shown = ["```", *command, "```"] if command else []
    return ["", "## llama.cpp", f"{said[:1].upper()}{said[1:]}", *shown]
