"""Deterministic methods: the weights of every recipe are mergekit's, but for float32 rounding."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from oracle.compare import Inputs, Tally
from oracle.conftest import tensors_of
from oracle.recipes import DETERMINISTIC, IN_BFLOAT16
from oracle.undecided import Undecided, kept_count

by_name = pytest.mark.parametrize("case", DETERMINISTIC, ids=lambda case: case.name)


def method_of(case) -> str:
    return yaml.safe_load(case.text)["merge_method"]


@by_name
def test_weights_agree(oracle, case):
    ours, theirs = tensors_of(oracle.ours(case)), tensors_of(oracle.theirs(case))
    exact = tensors_of(oracle.ours(case, out_dtype="float32")) if "out_dtype" in case.text else ours
    resolved = oracle.resolved(case)
    assert set(ours) == set(theirs) == set(resolved)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, exact[name].to(value.dtype)), name
    tally = Tally.of(ours, theirs, resolved, method_of(case), oracle.tensor, exact)
    print(f"\n{case.name}: {tally}")
    assert not tally.beyond, "\n".join(tally.beyond)
    assert tally.tied + tally.drawn < tally.elements / 2, "too little is left to compare"


@by_name
def test_configs_agree(oracle, case):
    ours, theirs = (
        json.loads((folder / "config.json").read_text())
        for folder in (oracle.ours(case), oracle.theirs(case))
    )
    for key in ("architectures", "num_hidden_layers", "dtype", "tie_word_embeddings", "vocab_size"):
        assert ours.get(key) == theirs.get(key), key


def test_tied_magnitudes_are_kept_in_equal_number(oracle):
    """Which of the equal |δ| at the threshold stay is undefined in mergekit; how many, and of what size, is not."""
    case = next(case for case in DETERMINISTIC if case.name == "ties-coarse-alone")
    ours, theirs = tensors_of(oracle.ours(case)), tensors_of(oracle.theirs(case))
    tied = 0
    for name, resolved in oracle.resolved(case).items():
        inputs = Inputs.of(resolved, "ties", oracle.tensor)
        tied += int(Undecided.of(inputs, "ties").tied.sum())
        sizes = [
            (merged - inputs.base).abs().flatten().sort().values for merged in (ours[name], theirs[name])
        ]
        assert torch.equal(*sizes), name
        wanted = kept_count(inputs.own[0]["density"], inputs.base.numel())
        nonzero = int((inputs.deltas != 0).sum())
        assert int((sizes[0] > 0).sum()) == min(wanted, nonzero), name
    assert tied > 100, "the family has too few ties to test them"


@pytest.mark.parametrize("case", IN_BFLOAT16, ids=lambda case: case.name)
def test_bfloat16_arithmetic_is_only_reported(oracle, case):
    """With dtype bfloat16 mergekit computes in bfloat16, ours in float32: no equality is promised."""
    ours, theirs = tensors_of(oracle.ours(case)), tensors_of(oracle.theirs(case))
    base = tensors_of(oracle.families[case.family]["base"])
    difference = change = 0.0
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype == torch.bfloat16
        difference += float((ours[name].double() - value.double()).square().sum())
        change += float((value.double() - base[name].double()).square().sum())
    share = (difference / change) ** 0.5
    print(f"\n{case.name}: the difference is {share:.2%} of the change")
    assert torch.isfinite(torch.tensor(share))
