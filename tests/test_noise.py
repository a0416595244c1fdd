"""The counter-based noise: its definition in plain integers, what masks may depend on, and that it looks random."""

from __future__ import annotations

import re
from itertools import pairwise
from math import sqrt

import pytest
import torch
from references import noise as reference

import merging.noise
import merging.tensor_plan
from merging import merge_state_dicts
from merging.noise import CHUNK, ONE, threshold, uniform

N = 1 << 18
UNLIKELY = 1e-9
"""A χ² farther out than this fails; seeds are fixed, so a test passes always or never."""


def expected(seed, expert, tensor, indices):
    own = reference.key(seed, expert, tensor)
    return [reference.word(i, own) >> 8 for i in indices]


def unit(values):
    """u as float64 of mean 0 and variance 1."""
    return ((values.double() + 0.5) / ONE - 0.5) * sqrt(12)


def correlation(one, other):
    return float((unit(one) * unit(other)).mean())


def tail(statistic, freedom):
    """The chance of a χ² at least as far out, on its own side."""
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(min(torch.special.gammainc(*half), torch.special.gammaincc(*half)))


def of_counts(counts):
    """χ² of counts that should be equal."""
    mean = counts.double().mean()
    return tail(float(((counts - mean) ** 2 / mean).sum()), len(counts) - 1)


def bound(n):
    """Of a mean of n products of variance 1: 6.5 standard deviations, passed with a chance of 1e-10."""
    return 6.5 / sqrt(n)


def test_the_tail_of_a_chi_squared():
    assert tail(3.841458820694124, 1) == pytest.approx(0.05)
    assert tail(293.2478350807012, 255) == pytest.approx(0.05)
    assert tail(219.0, 255) == pytest.approx(0.049, abs=0.002)


@pytest.mark.parametrize("start", [0, 7, 2**32 - 3, 5 * 2**32 + CHUNK - 1])
def test_a_device_draws_what_the_cpu_draws(start):
    words = merging.noise.key(3, 1, "w")
    count = CHUNK + 5
    one, other = (
        draw(*words, start, count, torch.device("cpu"))
        for draw in (merging.noise._on_cpu, merging.noise._on_device)
    )
    assert one.dtype == other.dtype == torch.int32
    assert torch.equal(one, other)


def test_the_test_vectors_of_the_docstring():
    text = merging.noise.__doc__
    numbers = [int(word) for word in re.search(r"is ([\d, ]+)\.", text)[1].split(", ")]
    assert len(numbers) >= 4
    assert expected(0, 0, "w", range(len(numbers))) == numbers
    assert uniform(0, 0, "w", 0, len(numbers)).tolist() == numbers


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
@pytest.mark.parametrize("expert", [0, 1, 11])
@pytest.mark.parametrize("tensor", ["w", "model.layers.0.mlp.up_proj.weight", "größe/雪"])
@pytest.mark.parametrize("start", [0, 5, CHUNK - 3, 2**31 - 4, 2**32 - 4, 2**32, 3 * 2**32 - 2, 2**40 + 17])
def test_every_word_is_what_plain_integers_give(seed, expert, tensor, start):
    got = uniform(seed, expert, tensor, start, 9).tolist()
    assert got == expected(seed, expert, tensor, range(start, start + 9))


def test_a_stream_does_not_depend_on_how_it_is_cut():
    whole = uniform(3, 1, "w", 0, 3 * CHUNK + 11)
    for cuts in ([1, 2, CHUNK], [CHUNK - 1, CHUNK + 1], [7, 2 * CHUNK, 3 * CHUNK]):
        edges = [0, *cuts, len(whole)]
        parts = [uniform(3, 1, "w", a, b - a) for a, b in pairwise(edges)]
        assert torch.equal(torch.cat(parts), whole)
    assert uniform(3, 1, "w", 5, 0).shape == (0,)


def test_beyond_32_bits_elements_are_new():
    assert not torch.equal(uniform(0, 0, "w", 2**32, 1000), uniform(0, 0, "w", 0, 1000))
    across = uniform(0, 0, "w", 2**32 - 500, 1000)
    assert torch.equal(across[500:], uniform(0, 0, "w", 2**32, 500))


def test_u_has_24_bits():
    values = uniform(1, 2, "w", 0, N)
    assert values.dtype == torch.int32
    assert 0 <= int(values.min()) < 100
    assert ONE - 100 < int(values.max()) < ONE


@pytest.mark.parametrize(
    ("keep", "wanted"), [(0.0, 0), (1.0, 2**24), (0.8, 13421773), (2**-25, 0), (2**-24, 1), (0.5, 2**23)]
)
def test_the_threshold_is_rounded_in_float64(keep, wanted):
    assert threshold(keep) == wanted


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_masks_do_not_depend_on_blocks_or_order(method, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(90, 17, generator=generator) for name in ("b", "a")}
    models = [{name: value + 0.01 for name, value in base.items()} for _ in range(3)]
    options = {"density": 0.5, "seed": 6}
    whole = merge_state_dicts(base, models, method, **options)
    backwards = [dict(reversed(model.items())) for model in (base, *models)]
    for size in (300, 1700, 50_000):
        monkeypatch.setattr(merging.tensor_plan, "PIECE_BYTES", size)
        for first, *others in ((base, *models), backwards):
            merged = merge_state_dicts(first, others, method, **options)
            assert all(torch.equal(merged[name], whole[name]) for name in whole)


STREAMS = [(0, 0, "w"), (1, 0, "w"), (0, 1, "w"), (0, 0, "x"), (12345, 7, "model.embed_tokens.weight")]


@pytest.mark.parametrize("start", [0, 2**32 - N // 2])
@pytest.mark.parametrize("stream", STREAMS, ids=str)
def test_uniformity(stream, start):
    """χ² of the upper and lower 256 bins, and of the ones in every bit."""
    values = uniform(*stream, start, N)
    for bins in (values >> 16, (values >> 8) & 255, values & 255):
        assert of_counts(torch.bincount(bins, minlength=256)) > UNLIKELY
    for bit in range(24):
        ones = int(((values >> bit) & 1).sum())
        assert of_counts(torch.tensor([ones, N - ones])) > UNLIKELY


@pytest.mark.parametrize("stream", STREAMS, ids=str)
def test_neighbours_and_distant_elements_are_unrelated(stream):
    values = uniform(*stream, 0, N)
    for lag in (1, 2, 3, 4, 7, 8, 16, 64, 255, 256, 768, 1024, 4096, 65536):
        assert abs(correlation(values[:-lag], values[lag:])) < bound(N - lag), lag
    pairs = (values[::2] >> 20) * 16 + (values[1::2] >> 20)
    assert of_counts(torch.bincount(pairs, minlength=256)) > UNLIKELY


@pytest.mark.parametrize("start", [0, 2**32 - N // 2])
def test_experts_tensors_and_seeds_are_unrelated(start):
    streams = [(0, e, "w") for e in range(6)]
    streams += [(0, 0, f"model.layers.{layer}.mlp.up_proj.weight") for layer in range(6)]
    streams += [(seed, 0, "w") for seed in (1, 2, 3, 2**32, 2**62)]
    values = torch.stack([unit(uniform(*stream, start, N // 4)) for stream in streams])
    products = values @ values.T / (N // 4)
    products.fill_diagonal_(0)
    assert products.abs().max() < bound(N // 4)


def test_the_halves_of_a_huge_tensor_are_unrelated():
    values = [uniform(0, 0, "w", high << 32, N) for high in range(4)]
    for i, one in enumerate(values):
        for other in values[:i]:
            assert abs(correlation(one, other)) < bound(N)


@pytest.mark.parametrize("keep", [0.001, 0.1, 0.5, 0.8, 0.999])
def test_the_share_kept_is_binomial(keep):
    streams = [(seed, expert, "w") for seed in range(4) for expert in range(4)]
    shares = [float((uniform(*stream, 0, N) < threshold(keep)).double().mean()) for stream in streams]
    spread = sqrt(keep * (1 - keep) / N)
    assert max(abs(share - keep) for share in shares) < 6 * spread
    square = sum(((share - keep) / spread) ** 2 for share in shares)
    assert tail(square, 16) > UNLIKELY


def test_the_share_kept_by_a_merge():
    base = {"w": torch.zeros(1000, 500)}
    models = [{"w": torch.ones(1000, 500)}]
    for density in (0.05, 0.8):
        merged = merge_state_dicts(base, models, "dare_linear", density=density)["w"]
        share = float((merged != 0).double().mean())
        assert abs(share - density) < 6 * sqrt(density * (1 - density) / merged.numel())
        assert float(merged.double().mean()) == pytest.approx(share / density)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cpu_and_gpu_give_the_same_bits():
    for start, count in ((0, 3 * CHUNK + 5), (2**32 - 1000, 5000)):
        assert torch.equal(uniform(4, 2, "w", start, count), uniform(4, 2, "w", start, count, "cuda").cpu())
