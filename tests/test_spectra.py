"""Singular values and ranks of a change against torch's own decomposition."""

from __future__ import annotations

import threading
import time

import pytest
import torch

import merging
from merging.checkpoint import StateDict
from merging.errors import MergingError
from merging.heartbeats import Stopped
from merging.inspecting import spectra
from merging.inspecting.spectra import spectrum
from merging.plan import plan_sources
from merging.recipe import ModelEntry, Recipe

NAME = "model.layers.0.mlp.up_proj.weight"
SHAPES = [(60, 40), (40, 60), (50, 50), (1, 30), (30, 1)]


def plan_of(*changes, base=None):
    """Experts with these changes from a base of zeros."""
    base = torch.zeros_like(changes[0]) if base is None else base
    sources = [StateDict({NAME: base + change}, f"e{number}") for number, change in enumerate(changes)]
    entries = [ModelEntry(model=source.label) for source in sources]
    recipe = Recipe(merge_method="task_arithmetic", base_model="base", models=tuple(entries), profile="paper")
    return plan_sources(recipe, StateDict({NAME: base}, "base"), list(zip(entries, sources, strict=True)))


def with_values(rows, columns, values, seed=0):
    """A float32 matrix with about these singular values."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, len(values), generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, len(values), generator=generator, dtype=torch.float64)).Q
    return ((left * torch.tensor(values, dtype=torch.float64)) @ right.T).float()


def noise(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of rows, several buffers of columns, several steps in each."""
    monkeypatch.setattr(spectra, "BLOCK", 130)
    monkeypatch.setattr(spectra, "BUFFER", 25 * 40)
    monkeypatch.setattr(spectra, "STEP", 7)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_are_those_of_the_decomposition(shape, small_blocks):
    changes = [noise(*shape, seed) for seed in range(3)]
    plan = plan_of(*changes, base=torch.zeros(shape))
    for expert, change in enumerate(changes):
        found = spectrum(plan, NAME, expert)
        true = torch.linalg.svdvals(change.double())
        torch.testing.assert_close(found.values, true, rtol=1e-10, atol=0)
        assert found.energy == pytest.approx(float(change.double().square().sum()), rel=1e-12)
        assert found.complete
        assert found.accuracy == 0


def test_ranks_follow_from_the_values():
    change = noise(60, 40)
    found = spectrum(plan_of(change), NAME, 0)
    true = torch.linalg.svdvals(change.double())
    assert found.stable_rank == pytest.approx(float(true.square().sum() / true[0] ** 2), rel=1e-10)
    shares = true / true.sum()
    assert found.effective_rank == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-10)
    held = true.square().cumsum(0) / true.square().sum()
    assert found.rank_of(0.9) == int((held < 0.9).sum()) + 1
    assert found.rank_of(1.0) == 40


def test_ranks_of_known_spectra():
    four = spectrum(plan_of(with_values(30, 20, [2.0, 2.0, 2.0, 2.0])), NAME, 0)
    assert four.stable_rank == pytest.approx(4, rel=1e-6)
    assert four.effective_rank == pytest.approx(4, rel=1e-5)
    assert four.rank_of(0.9) == 4
    one = spectrum(plan_of(torch.outer(noise(30, 1)[:, 0], noise(20, 1)[:, 0])), NAME, 0)
    assert (one.stable_rank, one.effective_rank) == (pytest.approx(1, rel=1e-6), pytest.approx(1, rel=1e-5))
    assert one.rank_of(0.9) == 1


def test_values_near_rounding_are_zero_and_never_noise():
    change = (noise(200, 4) @ noise(4, 150, 1)).float()
    found = spectrum(plan_of(change), NAME, 0)
    true = torch.linalg.svdvals(change.double())
    assert int((found.values > 0).sum()) == 4
    assert (found.values >= 0).all()
    # what is set to 0 really lies below the floor that the note names
    assert float(true[4:].max()) < found.floor < 1e-6 * float(true[0])
    torch.testing.assert_close(found.values[:4], true[:4], rtol=1e-12, atol=0)


def test_small_values_are_right_down_to_about_a_millionth():
    wanted = [10.0**-power for power in range(7)]
    change = with_values(80, 40, wanted)
    found = spectrum(plan_of(change), NAME, 0)
    true = torch.linalg.svdvals(change.double())[:7]
    torch.testing.assert_close(found.values[:7], true, rtol=1e-3, atol=0)


def test_bfloat16_and_a_base_that_is_not_zero(bf16_family, write_recipe):
    plan = merging.check(write_recipe(bf16_family, "task_arithmetic", ("one", "two")))
    name = "model.layers.1.self_attn.k_proj.weight"
    base, one = (source.read(name).float() for source in (plan.reference, plan.experts[1]))
    true = torch.linalg.svdvals((one - base).double())
    torch.testing.assert_close(spectrum(plan, name, 1).values, true, rtol=1e-8, atol=1e-12)


def test_an_unchanged_matrix_has_no_rank():
    found = spectrum(plan_of(torch.zeros(8, 6)), NAME, 0)
    assert found.values.tolist() == [0.0] * 6
    assert (found.stable_rank, found.effective_rank, found.rank_of(0.9)) == (None, None, None)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)], ids=str)
def test_a_matrix_without_elements(shape):
    found = spectrum(plan_of(torch.zeros(shape)), NAME, 0)
    assert found.values.numel() == 0
    assert (found.stable_rank, found.effective_rank, found.rank_of(0.9)) == (None, None, None)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300)], ids=str)
def test_the_largest_values_of_a_side_that_is_too_long(shape, monkeypatch):
    monkeypatch.setattr(spectra, "LONGEST_SIDE", 100)
    monkeypatch.setattr(spectra, "BLOCK", 20_000)
    change = noise(*shape)
    found = spectrum(plan_of(change), NAME, 0)
    true = torch.linalg.svdvals(change.double())
    assert len(found.values) == spectra.LEADING
    assert not found.complete
    error = (found.values - true[: spectra.LEADING]).abs() / true[: spectra.LEADING]
    assert float(error.max()) <= found.accuracy <= spectra.CLOSE / 2
    assert found.stable_rank == pytest.approx(float(true.square().sum() / true[0] ** 2), rel=1e-6)
    assert found.effective_rank is None
    assert found.rank_of(0.9) is None
    held = true.square().cumsum(0) / true.square().sum()
    assert found.rank_of(0.2) == int((held < 0.2).sum()) + 1
    assert "only the 32 largest values" in found.note


def test_few_directions_of_a_long_side_are_all_found(monkeypatch):
    monkeypatch.setattr(spectra, "LONGEST_SIDE", 100)
    change = (noise(250, 6) @ noise(6, 180, 1)).float()
    found = spectrum(plan_of(change), NAME, 0)
    true = torch.linalg.svdvals(change.double())[:6]
    assert found.complete
    torch.testing.assert_close(found.values[found.values > 0], true, rtol=1e-9, atol=0)
    shares = true / true.sum()
    assert found.effective_rank == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-6)


def test_an_unchanged_matrix_with_a_long_side(monkeypatch):
    monkeypatch.setattr(spectra, "LONGEST_SIDE", 100)
    found = spectrum(plan_of(torch.zeros(150, 120)), NAME, 0)
    assert (found.stable_rank, found.effective_rank, found.rank_of(0.9)) == (None, None, None)


@pytest.mark.parametrize("longest", [8192, 10], ids=["whole", "leading"])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60)], ids=str)
def test_every_block_may_be_the_last(shape, longest, monkeypatch, small_blocks):
    monkeypatch.setattr(spectra, "LONGEST_SIDE", longest)
    plan = plan_of(noise(*shape))
    asked = 0

    def count():
        nonlocal asked
        asked += 1
        return False

    spectrum(plan, NAME, 0, stop=count)
    assert asked > 20  # 40·60 elements in blocks of 130
    for last in range(1, asked, 5):
        calls = iter(range(last))
        with pytest.raises(Stopped):
            spectrum(plan, NAME, 0, stop=lambda calls=calls: next(calls, None) is None)


def test_a_wide_block_is_multiplied_in_steps_that_can_be_stopped(monkeypatch):
    asked = []
    plan = plan_of(noise(20, 300))
    spectrum(plan, NAME, 0, stop=lambda: bool(asked.append(1)))
    at_once = len(asked)
    monkeypatch.setattr(spectra, "STEP", 10)
    spectrum(plan, NAME, 0, stop=lambda: bool(asked.append(1)))
    assert len(asked) - at_once >= 30


def test_a_stop_is_heard_during_the_decomposition(monkeypatch):
    entered, let_go = threading.Event(), threading.Event()
    real = torch.linalg.eigvalsh

    def slow(gram):
        entered.set()
        let_go.wait(20)
        return real(gram)

    monkeypatch.setattr(torch.linalg, "eigvalsh", slow)
    plan = plan_of(noise(20, 10))
    began = time.monotonic()
    with pytest.raises(Stopped):
        spectrum(plan, NAME, 0, stop=entered.is_set)
    assert time.monotonic() - began < 5
    # another waits until the one that was left alone has ended, and gives up as readily
    with pytest.raises(Stopped):
        spectrum(plan, NAME, 0, stop=lambda: time.monotonic() - began > 0.5)
    let_go.set()
    assert len(spectrum(plan, NAME, 0).values) == 10


def test_a_decomposition_that_fails_says_so(monkeypatch):
    def fails(gram):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    with pytest.raises(MergingError, match=r"cannot be decomposed here \(did not converge\)"):
        spectrum(plan_of(noise(5, 5)), NAME, 0)


def test_what_has_no_spectrum_says_why():
    damaged = noise(6, 5)
    damaged[2, 2] = float("nan")
    for plan, expert, message in (
        (plan_of(torch.ones(5)), 0, "only a matrix has a spectrum"),
        (plan_of(torch.ones(2, 3, 4)), 0, "only a matrix has a spectrum"),
        (plan_of(noise(6, 5), damaged), 1, "the change of e1 is not finite"),
        (plan_of(noise(6, 5)), 1, "has no expert 1; there are 1"),
    ):
        with pytest.raises(MergingError, match=message):
            spectrum(plan, NAME, expert)
    # the intact expert beside the damaged one has one
    assert spectrum(plan_of(noise(6, 5), damaged), NAME, 0).stable_rank > 1
