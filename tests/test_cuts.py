"""Exact cuts by a sample's brackets: right brackets hold, and wrong ones change nothing but the time."""

from __future__ import annotations

import pytest
import torch
from test_methods_contract import small_family

from merging import cuts, merge_state_dicts
from merging.cuts import EVERYTHING, NOTHING, bracket
from merging.statistics import Accumulator

METHODS = {
    "ties": {"density": 0.3},
    "breadcrumbs": {"density": 0.3, "gamma": 0.1, "scope": "model"},
    "pcb": {"ratio": 0.2},
    "dppa": {},
}


def keys_of(values: torch.Tensor) -> torch.Tensor:
    return values.abs().view(torch.int32)


@pytest.mark.parametrize("share", [1e-4, 0.01, 0.2, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("kind", ["normal", "tied", "rows", "zero"])
def test_a_bracket_holds_the_threshold_and_little_else(kind, share):
    whole = torch.randn(1 << 21, generator=torch.Generator().manual_seed(1))
    if kind == "tied":
        whole = (whole * 20).round() / 20
    elif kind == "rows":  # rows of very different size
        whole = (
            whole.view(-1, 512)
            * torch.logspace(-2, 0, 4096)[torch.randperm(4096, generator=torch.Generator().manual_seed(2))][
                :, None
            ]
        ).flatten()
    elif kind == "zero":
        whole *= torch.arange(1 << 21) % 10 == 0
    sample = keys_of(whole[::33].contiguous())
    low, high = bracket(sample, share)
    keys = keys_of(whole).sort(descending=True).values
    assert low <= int(keys[max(0, round(share * len(keys)) - 1)]) <= high
    strictly = ((keys > low) & (keys < high)).float().mean()
    assert strictly < 0.12


def test_brackets_of_the_very_first_and_last_have_no_end():
    sample = keys_of(torch.rand(100_000, generator=torch.Generator().manual_seed(1)))
    assert bracket(sample, 1e-7)[1] == NOTHING
    assert bracket(sample, 1.0)[0] == EVERYTHING


@pytest.mark.parametrize("wrong", [(NOTHING, NOTHING), (EVERYTHING, EVERYTHING), (0x3F000000, 0x3F000001)])
@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_bracket_costs_a_scan_and_changes_no_bit(monkeypatch, method, wrong):
    monkeypatch.setattr("merging.cuts.SMALL_SCOPE", 0)
    monkeypatch.setattr("merging.reading.KEEP_BYTES", 0)
    base, models = small_family(3, shape=(64, 6))
    scans: list[Accumulator] = []
    result = cuts.LargestCut.result
    monkeypatch.setattr(cuts.LargestCut, "result", lambda self: scans.append(result(self)) or scans[-1])
    right = merge_state_dicts(base, models, method, **METHODS[method])
    hits = len(scans)
    monkeypatch.setattr("merging.cuts.bracket", lambda sample, share: wrong)
    found = merge_state_dicts(base, models, method, **METHODS[method])
    assert None in scans[hits:]
    assert len(scans) > 2 * hits or None in scans[:hits]
    for name, values in right.items():
        assert torch.equal(values.view(torch.uint8), found[name].view(torch.uint8)), name


def test_brackets_that_hold_too_much_give_way_to_the_histogram(monkeypatch):
    monkeypatch.setattr("merging.cuts.SMALL_SCOPE", 0)
    ranking, values = cuts.Ranking((0,)), torch.rand(1, 100_000, generator=torch.Generator().manual_seed(1))
    for most, asked in ((1 << 24, cuts.LargestCut), (100, cuts.KeyHistogram)):
        monkeypatch.setattr("merging.cuts.MOST_INSIDE", most)
        scans = cuts.largest_cut([20_000], 100_000, keys=ranking.keys)
        assert isinstance(next(scans), cuts.KeySample)
        assert isinstance(scans.send(keys_of(values[:, ::3].contiguous())), asked)
    equal = torch.full((1, 1000), 0.5)  # many elements, and one key to collect
    scans = cuts.largest_cut([1 << 29], 1 << 30, keys=ranking.keys)
    next(scans)
    monkeypatch.setattr("merging.cuts.MOST_INSIDE", 1 << 24)
    assert isinstance(scans.send(keys_of(equal)), cuts.LargestCut)
