"""The model card: the README of a merged folder, for people who have never heard of the merge."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from merging.answering.abilities import why_silent
from merging.cards.front_matter import as_front_matter, front_matter, words_in
from merging.cards.licences import licence_notes, licence_of_merge
from merging.cards.lineage import Ancestor, licensed, nameless_path, short
from merging.checkpoint import Checkpoint
from merging.events import Finished
from merging.folders.header import DTYPE_WORDS
from merging.gguf import gguf_lines
from merging.methods import METHODS
from merging.plan import Plan
from merging.references import COMMIT, Reference
from merging.version import __version__
from merging.writer import MARKER

FOLDER = "FOLDER"
"""What stands in a card for where the model lies, until that is known."""
LIES_IN = f"In place of `{FOLDER}` write where this model lies."
"""What the card says as long as that word stands in it."""
ATTAINED = "## What was attained"
"""The heading before which `merging.cards.parcel` puts what was measured later."""
PIPELINES = {
    "CausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "MaskedLM": "fill-mask",
    "ImageClassification": "image-classification",
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
    "QuestionAnswering": "question-answering",
}
"""What the Hub calls the task of a model, by a word in its architecture's name."""
_LANGUAGE = re.compile(r"[a-z]{2,3}|multilingual|code")
_HUB = "https://huggingface.co"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*(?:_[A-Za-z0-9.-]+)*")
_PATH = re.compile(r"(?<![\w/.:])~?/(?:[^\s/'\"`:;,]+/)+([^\s/'\"`:;,]+)")


def model_card(plan: Plan, finished: Finished, lineage: Ancestor, config: Mapping[str, Any]) -> str:
    """The README of the result: what it is, how to use it, parents and their licences, what was attained, and how it was made.

    Nothing in it tells of the machine where it was written.

    Args:
        config: the result's config.json; empty for weights without one.
    """
    parts = [
        _what_it_is(plan, lineage, config),
        ("## How to use it", _use(plan, config)),
        ("## Parents", [*_parents(lineage)]),
        ("## Licences", _licences(lineage)),
        (ATTAINED, _attained(plan, finished)),
        ("## Vocabulary", _vocabulary(plan)),
        ("## Warnings", [f"- {without_paths(one, plan)}" for one in _other_warnings(finished)]),
        ("## How it was made", _made(plan)),
        ("## llama.cpp", _llama_cpp(config)),
    ]
    sections = ["\n".join([heading, "", *lines]) for heading, lines in parts if lines]
    return as_front_matter(_facts(plan, lineage, config)) + "\n\n".join(sections) + "\n"


def without_paths(text: str, plan: Plan) -> str:
    """A sentence with the names that models have elsewhere, and no path of this machine."""
    for name in sorted(plan.elsewhere, key=len, reverse=True):
        if "/" in name:
            text = text.replace(name, plan.elsewhere[name])
    return _PATH.sub(r"\1", text)


def _facts(plan: Plan, lineage: Ancestor, config: Mapping[str, Any]) -> dict[str, Any]:
    """The front matter, in the Hub's words."""
    bases = [one.model for parent in lineage.parents if (one := _on_hub(parent.name))]
    folders = [one.folder for one in (plan.base, *plan.experts) if isinstance(one, Checkpoint)]
    languages = [word.lower() for folder in folders for word in words_in(front_matter(folder), "language")]
    return {
        **licence_of_merge(licensed(lineage)),
        "library_name": "transformers",
        "pipeline_tag": _pipeline(config),
        "language": list(dict.fromkeys(word for word in languages if _LANGUAGE.fullmatch(word))),
        "base_model": list(dict.fromkeys(bases)),
        "base_model_relation": "merge" if bases else None,
        "tags": ["merge", "mergescope", lineage.method.replace("_", "-")],
    }


def _what_it_is(plan: Plan, lineage: Ancestor, config: Mapping[str, Any]) -> tuple[str, list[str]]:
    method = METHODS[plan.recipe.merge_method]
    experts = _listed([_named(one) for one in lineage.parents if not one.is_base])
    bases = [_named(one) for one in lineage.parents if one.is_base]
    what = "language model" if config and not why_silent(config) else "model"
    named = f"{experts} (the expert{'s' if len(lineage.parents) - len(bases) > 1 else ''})"
    work = (
        f"took what sets {named} apart from {bases[0]} (the base), and put it together into one model"
        if bases
        else f"put the weights of {named} together into one model"
    )
    loads = " and loads like any other model of transformers" if config else ""
    dtypes = sorted({DTYPE_WORDS.get(one.info.dtype, one.info.dtype.lower()) for one in plan.tensors})
    return f"# {experts}, merged by {method.title}", [
        f"This {what} was made without any training: {method.title} {work}. It has {_count(plan.parameters)} parameters in "
        f"{' and '.join(dtypes)}{loads}.",
        "",
        f"What [{method.title}]({method.paper}) is for: {method.when_to_use}",
    ]


def _use(plan: Plan, config: Mapping[str, Any]) -> list[str]:
    """Three lines of Python, and what to put into them; none for weights without a config."""
    if not config:
        return []
    task = _pipeline(config)
    if task == "text-generation":
        chats = plan.tokens is not None and bool(
            plan.tokens.template or getattr(plan.reference, "chat_template", None)
        )
        asked, said = (
            ('[{"role": "user", "content": "Hello"}]', '[-1]["content"]') if chats else ('"Hello"', "")
        )
        lines = [
            "from transformers import pipeline",
            f'write = pipeline("{task}", model="{FOLDER}")',
            f'print(write({asked}, max_new_tokens=64)[0]["generated_text"]{said})',
        ]
    else:
        listed = config.get("architectures")
        kind = str(listed[0]) if isinstance(listed, list) and listed else "AutoModel"
        kind = kind if kind.isidentifier() else "AutoModel"
        lines = [
            f"from transformers import {kind}",
            f'model = {kind}.from_pretrained("{FOLDER}")',
            "print(model.config)",
        ]
    return [LIES_IN, "", "```python", *lines, "```"]


def _parents(one: Ancestor, depth: int = 0) -> Iterator[str]:
    """The lineage as a nested list."""
    for parent in one.parents:
        role = " (the base)" if parent.is_base else ""
        licence = f"; licence {_code(', '.join(parent.licences))}" if parent.licences else ""
        licence = licence if licence or parent.parents else "; licence not stated"
        merged = f"; a merge by {_code(parent.title)} of" if parent.parents else ""
        yield f"{'  ' * depth}- {_linked(parent.name)}{role}{licence}{merged}"
        yield from _parents(parent, depth + 1)


def _licences(lineage: Ancestor) -> list[str]:
    notes = licence_notes(licensed(lineage))
    if not notes:
        return ["No parent's licence asks more of a merge than to be named. This is no legal advice."]
    said = "What their licences ask, as far as a program can tell; this is no legal advice."
    return [said, "", *(f"- {_escaped(note[:1].upper() + note[1:])}" for note in notes)]


def _attained(plan: Plan, finished: Finished) -> list[str]:
    facts = []
    if finished.relative_change is not None:
        facts.append(
            f"- relative change, ‖Δ‖/‖θ0‖: {finished.relative_change:.4g}, the length of what the merge changed beside that of "
            "the base's weights"
        )
        facts.append(
            f"- weights that the merge changed, but the output's number format rounds back to the base: {finished.lost_share:.1%}"
        )
    if finished.attained is not None:
        for name, kept, tied in zip(
            plan.names, finished.attained.nonzero, finished.attained.tied, strict=True
        ):
            share = kept / max(1, finished.attained.elements)
            known = _code(short(plan.elsewhere.get(name, name)))
            equal = f"; {tied:,} were equal at the threshold" if tied else ""
            facts.append(f"- density attained for {known}: {share:.4f} of its changes were kept{equal}")
    return facts or ["- no base, so no change was measured"]


def _other_warnings(finished: Finished) -> list[str]:
    """All but those about licences, which have a section of their own."""
    return [text for text in finished.warnings if not text.startswith(("licence of ", "licences "))]


def _vocabulary(plan: Plan) -> list[str]:
    return [f"- {_code(without_paths(line, plan))}" for line in (plan.tokens.lines() if plan.tokens else ())]


def _made(plan: Plan) -> list[str]:
    """The recipe, the command that runs it again, and with what it was run."""
    local = any(_on_hub(name) is None for name in _models(plan))
    return [
        f"This recipe is `{MARKER}` beside the weights:",
        "",
        "```yaml",
        plan.public.to_yaml().rstrip(),
        "```",
        "",
        f"To make the same files again, in the folder {FOLDER}, install Mergescope and run",
        "",
        "```bash",
        f"python -m merging merge {MARKER} {FOLDER}",
        "```",
        *(
            ["", "Parents without a link are folders: put them beside the recipe under these names."]
            if local
            else []
        ),
        "",
        f"Made with Mergescope {__version__}, torch {_version('torch')}, transformers {_version('transformers')} and "
        f"Python {platform.python_version()}.",
    ]


def _models(plan: Plan) -> list[str]:
    recipe = plan.public
    listed = [entry.model for entry in recipe.models] + [s.model for p in recipe.slices for s in p.sources]
    return [*([recipe.base_model] if recipe.base_model else []), *listed]


def _llama_cpp(config: Mapping[str, Any]) -> list[str]:
    said, *command = gguf_lines(FOLDER, config) or [""]
    if command:
        said = f"{said.removesuffix(':')}, with this model in {FOLDER}:"
    shown = ["", "```bash", *command, "```"] if command else []
    return [f"{said[:1].upper()}{said[1:]}", *shown] if said else []


def _pipeline(config: Mapping[str, Any]) -> str | None:
    listed = config.get("architectures")
    name = str(listed[0]) if isinstance(listed, list) and listed else ""
    return next((task for word, task in PIPELINES.items() if word in name), None)


def _on_hub(name: str) -> Reference | None:
    """A model of the Hub at a commit; None for anything else."""
    one = Reference.parse(name, lambda text: False)
    return one if one.looks_like_hub and COMMIT.fullmatch(one.revision or "") else None


def _linked(name: str) -> str:
    """A name as the card shows it: a model of the Hub as a link to its files, another as code."""
    one = _on_hub(name)
    if one is None:
        return _code(nameless_path(name))
    link = f"[{one.model}]({_HUB}/{one.model}/tree/{one.revision})"
    return f"{link} with the adapter {_linked(str(one.adapter))}" if one.adapter else link


def _named(one: Ancestor) -> str:
    """A name inside a sentence: the last word of a Hub id or of a path; code unless it is plain letters."""
    found = _on_hub(one.name)
    name = found.model.partition("/")[2] if found and not found.adapter else short(one.name)
    return name if _PLAIN.fullmatch(name) else _code(name)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else "one model"


def _code(name: str) -> str:
    """A name from other people's files as code, which no page interprets."""
    return "`" + name.replace("`", "'") + "`"


def _escaped(text: str) -> str:
    """A sentence in which names may be anything, without what markdown or HTML would act on."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def _count(number: int) -> str:
    for size, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return str(number)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"
