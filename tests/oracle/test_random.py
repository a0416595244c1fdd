"""Random methods: masks differ, but their law, the norms and the expected merge are mergekit's."""

from __future__ import annotations

import pytest
import torch
import yaml

from oracle.compare import UNIT, Inputs
from oracle.conftest import tensors_of
from oracle.law import allowed, chances, draw, share_below
from oracle.recipes import ALONE, RANDOM

FOR_MEAN, FOR_LAW = 20, 60
DEVIATIONS = 6
LARGE = 512
"""Elements from which on a tensor's own sums are near enough to normal to be judged alone."""
WHO = pytest.mark.parametrize("who", ["ours", "theirs"])


def runs(oracle, case, who):
    """The merge of every seed as tensors."""
    merged = oracle.ours if who == "ours" else oracle.theirs
    return [tensors_of(merged(case, seed)) for seed in range(case.seeds)]


def inputs_of(oracle, case):
    method = yaml.safe_load(case.text)["merge_method"]
    resolved = oracle.resolved(case)
    return method, {name: Inputs.of(entry, method, oracle.tensor) for name, entry in resolved.items()}


@WHO
@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.name)
def test_one_expert_is_dropped_by_the_law(oracle, case, who):
    """How many stay, how many of the large ones stay, and that another seed is another draw."""
    method, inputs = inputs_of(oracle, case)
    merged = runs(oracle, case, who)
    total = {"kept": [0.0, 0.0], "by rank": [0.0, 0.0], "seeds together": [0.0, 0.0]}
    for name, given in inputs.items():
        keep = chances(given, method)[0]
        masks = [(tensors[name] != given.base).double() for tensors in merged]
        rank = share_below(given.deltas[0]) - 0.5
        both = keep**2
        for what, found, expected, variance, largest in (
            ("kept", masks[0].sum(), keep.sum(), (keep * (1 - keep)).sum(), 1.0),
            (
                "by rank",
                (masks[0] * rank).sum(),
                (keep * rank).sum(),
                (keep * (1 - keep) * rank**2).sum(),
                0.5,
            ),
            ("seeds together", (masks[0] * masks[1]).sum(), both.sum(), (both * (1 - both)).sum(), 1.0),
        ):
            miss = float(found - expected)
            assert abs(miss) <= allowed(float(variance), largest), f"{name}: {what} misses by {miss:.1f}"
            total[what][0] += miss
            total[what][1] += float(variance)
    for what, (miss, variance) in total.items():
        print(f"\n{case.name} {who}: {what} misses by {miss / variance**0.5:.2f} standard deviations")
        assert abs(miss) <= allowed(variance, 1.0), what


@WHO
@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.name)
def test_rescaling_keeps_the_sum_of_magnitudes(oracle, case, who):
    """Rescaled, Σ|change| of a tensor is Σ|δ|; not rescaled, what stays is δ itself. Both but for float32 rounding."""
    _, inputs = inputs_of(oracle, case)
    for tensors in runs(oracle, case, who):
        for name, given in inputs.items():
            change = tensors[name].double() - given.base.double()
            delta = given.deltas[0].double()
            rounding = UNIT * (tensors[name].abs() + 2 * change.abs())
            if given.shared["rescale"]:
                before = float(delta.abs().sum())
                bound = float(rounding.sum()) + 2 * UNIT * delta.numel() * before
                assert abs(float(change.abs().sum()) - before) <= bound, name
            else:
                kept = change != 0
                assert bool(((change - delta).abs() <= rounding)[kept].all()), name


def summary(merges, mean, names):
    """Of every merge, over the named tensors: projection of the change on the mean change, Σ|·|, Σ(·)²: [merges, 3]."""
    rows = []
    for changes in merges:
        change = torch.cat([changes[name].flatten() for name in names])
        along = torch.cat([mean[name].flatten() for name in names])
        square = along.square().sum()
        rows.append(
            [
                (change * along).sum() / square,
                change.abs().sum() / along.abs().sum(),
                change.square().sum() / square,
            ]
        )
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("case", RANDOM, ids=lambda case: case.name)
def test_expected_merge(oracle, case):
    """The mean over seeds is that of the law, for the projection on it and for the first and second moment."""
    method, inputs = inputs_of(oracle, case)
    generator = torch.Generator().manual_seed(1)
    keep = {name: chances(given, method) for name, given in inputs.items()}
    drawn = [
        {name: draw(given, keep[name], method, generator) for name, given in inputs.items()}
        for _ in range(FOR_MEAN + FOR_LAW)
    ]
    mean = {name: sum(changes[name] for changes in drawn[:FOR_MEAN]) / FOR_MEAN for name in inputs}
    large = [name for name, given in inputs.items() if given.base.numel() >= LARGE]
    parts = {"the model": list(inputs), "small tensors": [name for name in inputs if name not in large]}
    parts |= {name: [name] for name in large}
    law = {part: summary(drawn[FOR_MEAN:], mean, names) for part, names in parts.items()}
    for who in ("ours", "theirs"):
        found = [
            {name: tensors[name].double() - inputs[name].base.double() for name in inputs}
            for tensors in runs(oracle, case, who)
        ]
        for part, names in parts.items():
            seen = summary(found, mean, names)
            miss = seen.mean(0) - law[part].mean(0)
            miss /= law[part].std(0) * (1 / len(seen) + 1 / FOR_LAW) ** 0.5
            assert bool((miss.abs() <= DEVIATIONS).all()), f"{who}, {part}: {miss.tolist()} deviations"
            if part == "the model":
                print(f"\n{case.name} {who}: {[f'{value:.4f}' for value in seen.mean(0).tolist()]}", end="")
                print(f", off the law by {[f'{value:.1f}' for value in miss.tolist()]} standard deviations")
