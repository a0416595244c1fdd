"""What a model can be asked to do, judged by the transformers class that its config names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WRITES = ("CausalLM", "LMHeadModel", "ConditionalGeneration", "Seq2SeqLM")
"""Words in the names of classes that write text."""
TASKS = {
    "MaskedLM": "fills gaps in a text",
    "PreTraining": "fills gaps in a text",
    "ImageClassification": "classifies images",
    "SequenceClassification": "classifies texts",
    "TokenClassification": "classifies words",
    "QuestionAnswering": "finds answers in a text",
    "MultipleChoice": "chooses among answers",
}
"""What classes do that write none."""


def why_silent(config: Mapping[str, Any]) -> str:
    """Why a model of this config cannot be asked anything, and what can be done with it; empty where it writes text, or
    the config names no class."""
    listed = config.get("architectures")
    name = str(listed[0])[:80] if isinstance(listed, list) and listed else ""
    if not name or any(word in name for word in WRITES):
        return ""
    task = next((what for word, what in TASKS.items() if word in name), "turns its input into vectors")
    return (
        f"A {name} {task} and does not write, so it cannot be asked or scored here. It can be inspected, merged and saved, "
        "and the health check looks at its weights."
    )
