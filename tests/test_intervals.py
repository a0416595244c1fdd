"""Intervals and tests of significance against published values, exact sums and brute force."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merging.errors import MergingError
from merging.evaluation import ItemResult, SuiteResult
from merging.judging.intervals import (
    Interval,
    bootstrap,
    compare,
    mcnemar,
    paired_bootstrap,
    retention,
    wilson,
)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(correct, n, low, high):
    found = wilson(correct, n)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_wilson_at_the_ends():
    assert wilson(0, 0) == Interval(0.0, 1.0)
    assert wilson(0, 5).low == 0.0
    assert wilson(5, 5).high == 1.0
    assert wilson(5, 10, level=0.99).low < wilson(5, 10).low


@given(st.integers(0, 200), st.integers(1, 200))
def test_wilson_solves_its_equation(correct, n):
    correct = min(correct, n)
    found = wilson(correct, n)
    share, z = correct / n, 1.959963984540054
    for bound in (found.low, found.high):
        if 0 < bound < 1:
            assert (share - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / n, abs=1e-12)
    assert 0 <= found.low <= share <= found.high <= 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_sum(gained, lost):
    n = gained + lost
    exact = 2 * sum(Fraction(math.comb(n, k), 2**n) for k in range(min(gained, lost) + 1))
    assert mcnemar(gained, lost) == pytest.approx(float(min(1, exact)), rel=1e-12)


def test_mcnemar_of_large_counts():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(100_000, 100_000) == 1.0
    assert mcnemar(20_000, 0) == 0.0
    z = (10_300 - 10_000 - 0.5) / math.sqrt(5_000)
    assert mcnemar(10_300, 9_700) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def test_the_bootstrap_has_the_law_of_all_resamples():
    values = [0.0, 1.0, 1.0, -1.0]
    means = [sum(chosen) / 4 for chosen in product(values, repeat=4)]
    expected = np.quantile(means, [0.025, 0.975])
    found = bootstrap(values, draws=100_000)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)


def test_both_ways_to_draw_agree(monkeypatch):
    generator = np.random.default_rng(0)
    values = generator.integers(-1, 2, 500).tolist()
    counted = bootstrap(values)
    monkeypatch.setattr("merging.judging.intervals.FEW", 0)
    drawn = bootstrap(values)
    assert (drawn.low, drawn.high) == pytest.approx((counted.low, counted.high), abs=0.006)
    half = 1.96 * np.std(values) / math.sqrt(500)
    assert (counted.low, counted.high) == pytest.approx(
        (np.mean(values) - half, np.mean(values) + half), abs=0.006
    )
    assert bootstrap(values) == drawn, "the same seed gives the same interval"


def test_pairs_are_drawn_together():
    before, after = [0, 1] * 50, [1, 0] * 50
    assert paired_bootstrap(before, before) == Interval(0.0, 0.0)
    assert paired_bootstrap([0] * 9, [1] * 9) == Interval(1.0, 1.0)
    both = paired_bootstrap(before, after)
    assert both.low == pytest.approx(-both.high, abs=0.021)
    for wrong in (([], []), ([1], [1, 0])):
        with pytest.raises(MergingError):
            paired_bootstrap(*wrong)


def result(bits: str, scoring: str = "exact", suite: str = "s") -> SuiteResult:
    items = tuple(ItemResult(f"{suite}{n}", "a", "r", bit == "1") for n, bit in enumerate(bits))
    return SuiteResult(suite, items, scoring)


def test_a_comparison_lists_what_was_gained_and_lost():
    found = compare(result("0011010000"), result("1111000000"))
    assert found.difference == pytest.approx(0.1)
    assert [item.prompt for item in found.gained] == ["s0", "s1"]
    assert [item.prompt for item in found.lost] == ["s5"]
    assert found.p == 1.0
    assert found.interval.low < 0.1 < found.interval.high


@pytest.mark.parametrize("other", [result("11"), result("111", "choice"), result("111", suite="t")])
def test_results_on_other_items_are_not_compared(other):
    with pytest.raises(MergingError, match="cannot be compared"):
        compare(result("111"), other)


def test_retention():
    assert retention(0.4, 0.8) == 0.5
    assert retention(0.9, 0.6) == pytest.approx(1.5)
    assert retention(0.3, 0.0) is None
