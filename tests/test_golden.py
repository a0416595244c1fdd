"""The worked numbers of golden/methods.json for the methods that exist."""

import json
from pathlib import Path

import pytest
import torch

from merging import METHODS, merge_state_dicts

CASES = {
    case["id"]: case
    for case in json.loads((Path(__file__).parent / "golden" / "methods.json").read_text())["cases"]
}
OPTIONS = {"density", "sign", "weight", "profile", "scope", "lambda", "t"}


def tensors(value):
    content = value if isinstance(value, dict) else {"only": value}
    return {name: torch.tensor(numbers, dtype=torch.float32) for name, numbers in content.items()}


def run(case, method):
    inputs = case["inputs"]
    options = {key: value for key, value in inputs.items() if key in OPTIONS}
    if "deltas" in inputs or "delta" in inputs:
        models = [tensors(value) for value in inputs.get("deltas") or [inputs["delta"]]]
        base = {name: torch.zeros_like(value) for name, value in models[0].items()}
    else:
        models = [tensors(value) for value in inputs.get("models") or [inputs["model"]]]
        base = tensors(inputs["base"]) if "base" in inputs else None
    return merge_state_dicts(base, models, method, **options)


@pytest.mark.parametrize(
    "case", [name for name in CASES if name.startswith(("linear", "task-arithmetic", "ties", "slerp"))]
)
def test_worked_numbers(case):
    method = next(name for name in METHODS if case.startswith(name.replace("_", "-")))
    expected = CASES[case]["expected"]
    wanted = tensors(expected.get("merged") or expected.get("result") or expected["trimmed"])
    merged = run(CASES[case], method)
    for name, value in wanted.items():
        torch.testing.assert_close(merged[name], value, atol=2e-6, rtol=0)


def test_the_trim_of_the_two_expert_case():
    inputs = CASES["ties-two-experts"]
    for delta, trimmed in zip(inputs["inputs"]["deltas"], inputs["expected"]["trimmed"], strict=True):
        merged = merge_state_dicts({"a": torch.zeros(5)}, [{"a": torch.tensor(delta)}], "ties", density=0.4)
        torch.testing.assert_close(merged["a"], torch.tensor(trimmed))
