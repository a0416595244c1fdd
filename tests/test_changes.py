"""Changes and conflict of single tensors against plain NumPy in float64."""

from __future__ import annotations

import math
import random
from itertools import combinations, product

import numpy as np
import pytest
import torch

from merging import noise
from merging.inspecting.changes import ChangeWatch, TensorStatistics, bin_edges, measure
from merging.inspecting.sign_conflict import FLIP_SEED, Patterns, pairs_of, sign_conflict
from merging.inspecting.sums import total
from merging.pieces import Piece

SHAPES = {
    "matrix": (37, 29),
    "vector": (61,),
    "column": (43, 1),
    "scalar": (),
    "empty": (0, 5),
    "long": (3, 9001),
}
COUNTS = (1, 2, 3, 8, 10)


def piece_of(shape=(37, 29), experts=3, *, seed=0, dtype=torch.float32, start=0, name="w") -> Piece:
    """Random changes; in bfloat16 most of them vanish and many magnitudes are equal."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    moved = torch.randn(experts, *shape, generator=generator) * 0.004 + 0.0005
    moved = moved * (torch.rand(experts, *shape, generator=generator) < 0.7)
    models = (base + moved).to(dtype).float()
    return Piece(name, start, base.to(dtype).float(), models, torch.ones(experts))


def changes(piece: Piece) -> np.ndarray:
    """The task vectors as the merge sees them, [experts, n] float64."""
    return (piece.models - piece.base).reshape(piece.experts, -1).double().numpy()


CASES = [
    pytest.param(shape, experts, dtype, id=f"{word} {experts} {str(dtype)[6:]}")
    for (word, shape), experts, dtype in product(SHAPES.items(), COUNTS, (torch.float32, torch.bfloat16))
]


@pytest.mark.parametrize(("shape", "experts", "dtype"), CASES)
def test_sums_of_a_tensor(shape, experts, dtype):
    piece = piece_of(shape, experts, dtype=dtype)
    found, wide = measure(piece), changes(piece)
    base = piece.base.double().numpy()
    assert found.elements == base.size
    assert found.experts == experts
    assert found.base == pytest.approx((base**2).sum(), rel=1e-6)
    assert found.change == pytest.approx((wide**2).sum(1), rel=1e-6)
    assert found.total == pytest.approx(wide.sum(1), abs=1e-6 * np.abs(wide).sum(1).max())
    assert found.mass == pytest.approx(np.abs(wide).sum(1), rel=1e-6)
    assert found.nonzero == np.count_nonzero(wide, axis=1).tolist()
    assert found.largest == (np.abs(wide).max(1).tolist() if wide.size else [0.0] * experts)
    assert found.histogram == [np.histogram(np.abs(x[x != 0]), bin_edges())[0].tolist() for x in wide]
    dots = [wide[a] @ wide[b] for a, b in combinations(range(experts), 2)]
    assert found.dot == pytest.approx(dots, abs=1e-6 * (wide**2).sum(1).max())
    assert found.broken == [0] * (1 + experts)


@pytest.mark.parametrize(("shape", "experts", "dtype"), CASES)
def test_conflict_of_a_tensor(shape, experts, dtype):
    piece = piece_of(shape, experts, dtype=dtype)
    found, wide = measure(piece).signs, changes(piece)
    count = (wide != 0).sum(0)
    several = count >= 2
    rises, falls = (wide > 0).any(0), (wide < 0).any(0)
    flips = noise.coin_flips(piece, experts, FLIP_SEED).double().numpy()
    assert found.elements == wide.shape[1]
    assert found.covered == [int((count == k).sum()) for k in range(2, experts + 1)]
    assert found.split == (rises & falls).sum()
    for pair, (a, b) in enumerate(combinations(range(experts), 2)):
        both = (wide[a] != 0) & (wide[b] != 0)
        assert found.shared[pair] == both.sum()
        assert found.opposite[pair] == (both & (np.sign(wide[a]) != np.sign(wide[b]))).sum()
    among = wide[:, several]
    assert found.gross == pytest.approx(np.abs(among).sum(), rel=1e-6)
    assert found.net == pytest.approx(np.abs(among.sum(0)).sum(), rel=1e-5)
    assert found.chance == pytest.approx(np.abs((np.abs(among) * flips[:, several]).sum(0)).sum(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("experts", [2, 3, 8])
def test_shares_follow_their_definitions(experts, dtype):
    piece = piece_of(experts=experts, dtype=dtype)
    found, wide = measure(piece), changes(piece)
    signs = np.sign(wide)
    count = np.abs(signs).sum(0)
    several = count >= 2
    assert 0 < several.mean() < 1
    assert found.signs.coverage == several.mean()
    unanimous = np.abs(signs.sum(0)) == count
    assert found.signs.split_share() == pytest.approx((several & ~unanimous).sum() / several.sum())
    assert found.signs.split_chance() == pytest.approx((1 - 2.0 ** (1 - count[several])).mean())
    opposite = [((signs[a] * signs[b]) < 0).sum() for a, b in pairs_of(experts)]
    shared = [((signs[a] * signs[b]) != 0).sum() for a, b in pairs_of(experts)]
    assert found.signs.opposite_share() == sum(opposite) / sum(shared)
    assert found.signs.opposite_share(0) == opposite[0] / shared[0]
    among = wide[:, several]
    mass = 1 - np.abs(among.sum(0)).sum() / np.abs(among).sum()
    assert found.signs.mass() == pytest.approx(mass, abs=1e-6)
    base = np.linalg.norm(piece.base.double().numpy())
    for expert in range(experts):
        assert found.relative_change(expert) == pytest.approx(np.linalg.norm(wide[expert]) / base)
        assert found.changed_share(expert) == (wide[expert] != 0).mean()
    for pair, (a, b) in enumerate(pairs_of(experts)):
        cosine = wide[a] @ wide[b] / np.linalg.norm(wide[a]) / np.linalg.norm(wide[b])
        assert found.cosine(pair) == pytest.approx(cosine, abs=1e-6)
        assert found.pearson(pair) == pytest.approx(np.corrcoef(wide[a], wide[b])[0, 1], abs=1e-6)
        assert found.distance(pair) == pytest.approx(np.linalg.norm(wide[a] - wide[b]), rel=1e-6)


@pytest.mark.parametrize("experts", [2, 3, 5])
def test_the_chance_of_the_mass_conflict_is_the_mean_over_all_sign_patterns(experts):
    piece = piece_of((300, 101), experts, dtype=torch.bfloat16)
    found, wide = measure(piece), np.abs(changes(piece))
    among = wide[:, (wide != 0).sum(0) >= 2]
    nets = np.stack([np.abs(np.array(p) @ among) for p in product((-1, 1), repeat=experts)])
    mean, error = nets.mean(0).sum(), np.sqrt(nets.var(0).sum())
    assert abs(found.signs.chance - mean) < 4 * error
    assert found.signs.mass_chance() == pytest.approx(1 - mean / among.sum(), abs=4 * error / among.sum())
    assert error / among.sum() < 0.01


def test_unrelated_experts_fight_as_chance_has_it():
    generator = torch.Generator().manual_seed(1)
    deltas = torch.randn(4, 300, 400, generator=generator)
    found = measure(Piece("w", 0, torch.zeros(300, 400), deltas, torch.ones(4))).signs
    assert found.opposite_share() == pytest.approx(0.5, abs=0.005)
    assert found.split_share() == pytest.approx(found.split_chance(), abs=0.005)
    assert found.split_chance() == 1 - 2.0**-3
    assert found.mass() == pytest.approx(found.mass_chance(), abs=0.005)


def test_extremes_of_conflict():
    delta = torch.linspace(0.1, 1, 10)
    same = measure(Piece("w", 0, torch.zeros(10), torch.stack([delta, delta]), torch.ones(2)))
    assert (same.signs.opposite_share(), same.signs.mass(), same.signs.split_share()) == (0, 0, 0)
    assert (same.cosine(0), same.distance(0)) == (1, 0)
    against = measure(Piece("w", 0, torch.zeros(10), torch.stack([delta, -delta]), torch.ones(2)))
    assert (against.signs.opposite_share(), against.signs.mass(), against.signs.split_share()) == (1, 1, 1)
    assert against.cosine(0) == -1
    assert against.pearson(0) == pytest.approx(-1)
    apart = torch.stack([delta * (delta < 0.5), delta * (delta >= 0.5)])
    nothing = measure(Piece("w", 0, torch.zeros(10), apart, torch.ones(2)))
    signs = nothing.signs
    assert (signs.coverage, signs.gross, signs.net, signs.chance) == (0, 0, 0, 0)
    assert signs.opposite_share() is signs.mass() is signs.mass_chance() is signs.split_share() is None
    assert signs.split_chance() is None
    assert nothing.cosine(0) == 0


def test_one_expert_and_no_elements_have_no_conflict():
    alone = measure(piece_of(experts=1))
    assert (alone.dot, alone.signs.covered, alone.signs.shared) == ([], [], [])
    assert alone.signs.coverage == 0
    assert alone.signs.opposite_share() is alone.signs.split_chance() is alone.signs.mass() is None
    nothing = TensorStatistics.nothing(3)
    assert nothing == measure(piece_of((0, 4)))
    assert nothing.relative_change(0) is nothing.changed_share(0) is nothing.signs.coverage is None
    assert nothing.cosine(0) is nothing.pearson(0) is None
    some = measure(piece_of())
    assert total([some, nothing]) == some


def test_a_constant_change_has_no_correlation():
    deltas = torch.stack([torch.full((70_000,), 1e-3), torch.randn(70_000, generator=torch.manual_seed(0))])
    found = measure(Piece("w", 0, torch.zeros(70_000), deltas, torch.ones(2)))
    assert found.pearson(0) is None
    assert found.change[0] == pytest.approx(70_000 * float(np.float32(1e-3)) ** 2, rel=2e-6)


@pytest.mark.parametrize("experts", [2, 3, 9])
def test_row_blocks_and_order_change_no_count(experts):
    whole = piece_of((90, 50), experts, dtype=torch.bfloat16)
    parts = [
        Piece("w", start, whole.base[start:stop], whole.models[:, start:stop], whole.weight)
        for start, stop in ((0, 1), (1, 40), (40, 90))
    ]
    found = measure(whole)
    results = []
    for seed in range(4):
        watches = [ChangeWatch(), ChangeWatch()]
        random.Random(seed).shuffle(parts)
        for number, part in enumerate(parts):
            watches[number % 2].update(part)
        watches[seed % 2].combine(watches[1 - seed % 2])
        results.append(watches[seed % 2].result()["w"])
    assert all(one == results[0] for one in results)
    blocks = results[0]
    for name in ("elements", "nonzero", "histogram", "largest", "broken"):
        assert getattr(blocks, name) == getattr(found, name)
    for name in ("elements", "covered", "split", "shared", "opposite"):
        assert getattr(blocks.signs, name) == getattr(found.signs, name)
    for name in ("gross", "net", "chance"):
        assert getattr(blocks.signs, name) == pytest.approx(getattr(found.signs, name), rel=1e-6)
    for name in ("base", "change", "total", "mass", "dot"):
        assert getattr(blocks, name) == pytest.approx(getattr(found, name), rel=1e-5, abs=1e-9)


def test_many_small_tensors_do_not_share_their_flips():
    """The chance level of all of them, against its mean and spread over all signs: of ±a ± b the mean is max(a, b)."""
    found = mean = spread = 0.0
    for number in range(500):
        piece = piece_of((16, 16), 2, name=f"layers.{number}.w")
        a, b = np.abs(changes(piece))
        found += measure(piece).signs.chance
        mean += np.where(a * b > 0, np.maximum(a, b), 0).sum()
        spread += (np.minimum(a, b) ** 2).sum()
    assert abs(found - mean) < 4 * spread**0.5


def test_flips_belong_to_elements(monkeypatch):
    monkeypatch.setattr(noise, "FLIPS", 64)
    noise._flips.cache_clear()
    try:
        whole = piece_of((90, 50), 3)
        flips = noise.coin_flips(whole, 3, 0)
        other = piece_of((90, 50), 3, name="v")
        assert not torch.equal(noise.coin_flips(other, 3, 0), flips)
        part = Piece("w", 7, whole.base[7:20], whole.models[:, 7:20], whole.weight)
        assert torch.equal(noise.coin_flips(part, 3, 0), flips[:, 7 * 50 : 20 * 50])
        assert torch.equal(flips[:, 64:128], flips[:, :64])
        assert set(flips.unique().tolist()) == {-1.0, 1.0}
        assert flips.shape == (3, 4500)
    finally:
        noise._flips.cache_clear()


def test_flips_are_fair_and_independent():
    piece = Piece("w", 0, torch.zeros(200_000), torch.zeros(26, 200_000), torch.ones(26))
    flips = noise.coin_flips(piece, 26, 0)
    related = (flips @ flips.T / 200_000).fill_diagonal_(0)
    assert related.abs().max() < 0.013
    assert flips.mean(1).abs().max() < 0.01


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_broken_expert_spoils_no_other(value):
    piece = piece_of(experts=3)
    sound = measure(Piece("w", 0, piece.base, piece.models[[0, 2]], torch.ones(2)))
    piece.models[1, 3, 4:6] = value
    found = measure(piece)
    assert found.broken == [0, 0, 2, 0]
    assert all(math.isnan(numbers[1]) for numbers in (found.change, found.total, found.mass, found.largest))
    for name in ("change", "total", "mass", "nonzero", "largest", "histogram"):
        kept = [getattr(found, name)[expert] for expert in (0, 2)]
        assert kept == (getattr(sound, name) if name != "change" else pytest.approx(sound.change, rel=1e-6))
    assert found.base == sound.base
    assert [math.isnan(dot) for dot in found.dot] == [True, False, True]
    assert found.dot[1] == pytest.approx(sound.dot[0], rel=1e-6)
    assert found.relative_change(1) is found.changed_share(1) is found.cosine(0) is found.pearson(2) is None
    assert found.relative_change(0) == pytest.approx(sound.relative_change(0))
    assert found.signs.opposite_share(1) == sound.signs.opposite_share()
    assert found.signs.opposite_share(0) is found.signs.opposite_share(2) is None
    assert found.signs.mass() == pytest.approx(sound.signs.mass())


def test_a_broken_base_spoils_all_of_its_tensor():
    piece = piece_of(experts=2)
    piece.base[0, 0] = math.nan
    found = measure(piece)
    assert found.broken == [1, 0, 0]
    assert math.isnan(found.base)
    assert all(math.isnan(v) for v in (*found.change, *found.total, *found.mass, *found.largest, *found.dot))
    assert found.relative_change(0) is found.changed_share(1) is found.cosine(0) is found.distance(0) is None
    assert found.signs.opposite_share() is found.signs.mass() is None
    both = total([found, measure(piece_of(experts=2, seed=1))])
    assert both.broken == [1, 0, 0]
    assert both.relative_change(0) is None
    assert total([measure(piece_of(experts=2, seed=1)), found]).largest[0] != 0.0
    assert math.isnan(total([measure(piece_of(experts=2, seed=1)), found]).largest[0])


def test_squares_too_large_for_float32_are_no_damage():
    deltas = torch.tensor([[1e25, -1e25], [2e25, 1e25]])
    found = measure(Piece("w", 0, torch.zeros(2), deltas, torch.ones(2)))
    assert found.broken == [0, 0, 0]
    assert found.change == pytest.approx([2e50, 5e50], rel=1e-6)
    assert found.cosine(0) == pytest.approx(1 / math.sqrt(10), rel=1e-6)
    far = measure(Piece("w", 0, torch.full((2,), -3e38), torch.full((1, 2), 3e38), torch.ones(1)))
    assert far.broken == [0, 2]
    assert math.isnan(far.change[0])


def test_signs_after_a_trim_are_of_what_is_left():
    piece = piece_of(experts=3)
    left = piece.deltas.reshape(3, -1) * (torch.rand(3, 37 * 29, generator=torch.manual_seed(3)) < 0.3)
    found = sign_conflict(piece, left, Patterns.of(left))
    as_models = Piece("w", 0, torch.zeros(37, 29), left.reshape(3, 37, 29), torch.ones(3))
    assert found == measure(as_models).signs
    assert found.coverage < measure(piece).signs.coverage
