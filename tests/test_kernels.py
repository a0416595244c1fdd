"""The compiled loops give what the reference in torch gives: weights bit by bit, sums to their last digits."""

from __future__ import annotations

import pytest
import torch

import merging
from merging import METHODS, noise, ops

pytestmark = pytest.mark.skipif(ops.loops() is None, reason="numba is not installed")
SIZES = (0, 1, 7, 2048, 5000)


@pytest.fixture
def both(monkeypatch):
    """What a function gives with the compiled loops, and without."""

    def run(work):
        with monkeypatch.context() as patch:
            patch.setattr(ops, "loops", lambda: None)
            reference = work()
        return work(), reference

    return run


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers as experts' changes are: many 0, some equal, of both signs of 0."""
    torch.manual_seed(seed)
    found = (torch.randn(*shape) * 0.01).bfloat16().float()
    found.view(-1)[::3] = 0
    found.view(-1)[1::11] = -0.0
    found.view(-1)[2::13] = 0.0078125
    return found


def bits_of(values: torch.Tensor) -> bytes:
    values = values.clone(memory_format=torch.contiguous_format)
    return (
        values.view(torch.int16).numpy().tobytes()
        if values.dtype == torch.bfloat16
        else values.numpy().tobytes()
    )


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and bits_of(one) == bits_of(other)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("experts", [1, 2, 5])
def test_sums_of_scaled_changes(both, experts, size):
    deltas = values(experts, size)
    for factors in (torch.rand(experts, 1), values(experts, size, seed=1) * 100):
        for scale in (1.0, 0.4):
            one, other = both(lambda f=factors, s=scale: ops.weighted_sum(f, deltas, s))
            assert same_bits(one, other)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_base", [True, False])
def test_what_is_written(both, dtype, size, with_base):
    base = values(size, seed=2) if with_base else None
    (merged, rows, tally), (other, reference, wanted) = both(
        lambda: ops.finish(base, values(size, seed=3), dtype)
    )
    assert same_bits(merged, other)
    assert same_bits(rows, reference)
    assert tally[2:] == wanted[2:]
    assert tally[:2] == pytest.approx(wanted[:2], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_edges_of_float32_are_rounded_alike(both, dtype):
    edges = [
        float("nan"),
        float("inf"),
        3.4e38,
        -3.4e38,
        3.39e38,
        1e-40,
        1e-45,
        0.0,
        -0.0,
        1.00390625,
        1.01171875,
    ]
    (_, rows, tally), (_, reference, wanted) = both(lambda: ops.finish(None, torch.tensor(edges), dtype))
    assert torch.equal(rows.nan_to_num(7.0), reference.nan_to_num(7.0))
    assert bool(rows[0].isnan())
    assert (tally.finite, wanted.finite) == (False, False)
    fine, reference = both(lambda: ops.finish(None, torch.tensor(edges[4:]), dtype)[2].finite)
    assert (fine, reference) == (True, True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("normalize", [True, False])
def test_elections(both, size, weighted, sign, normalize):
    deltas, weight = values(3, size), torch.tensor([0.5, -1.0, 2.0])
    for factors in (torch.ones(3, 1), (values(3, size, seed=4) != 0).float() * 1.25):
        for if_draw in (1.0, -1.0):
            one, other = both(
                lambda f=factors, d=if_draw: ops.elected_coefficients(
                    f, deltas, weight, weighted=weighted, sign=sign, if_draw=d, normalize=normalize
                )
            )
            assert torch.equal(one, other)  # a 0 of either sign adds nothing
        one, other = both(lambda f=factors: ops.balance(f, deltas, weight, weighted=weighted))
        assert same_bits(one, other)


@pytest.mark.parametrize("size", SIZES)
def test_sums_and_cuts(both, size):
    base, deltas = values(size, seed=5), values(3, size)
    for one, other in (both(lambda: ops.products(base, deltas)), both(lambda: ops.products(None, deltas))):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-18)
    for factors in (None, values(3, size, seed=6)):
        one, other = both(lambda f=factors: ops.l1_norms(deltas, f))
        torch.testing.assert_close(one, other, rtol=1e-7, atol=0)
    for keys in (deltas[0], ops.order_bits(deltas[0])):
        for bits in (0x3C000000, 0, 0x7FFFFFFF):
            one, other = both(lambda k=keys, b=bits: ops.above(k, b))
            assert same_bits(one, other)
        one, other = both(lambda k=keys: ops.in_bin(k, 15, 0x3C000000 >> 15))
        assert same_bits(one, other)
    one, other = both(lambda: ops.order_in_rows(deltas[:, None]))
    assert same_bits(one, other)
    one, other = both(lambda: ops.keep_common(torch.stack([base, base, deltas[0]]), deltas[1].clone()))
    assert same_bits(one, other)


@pytest.mark.parametrize("start", [0, 2**32 - 3, 5 * 2**32 + 1])
def test_random_numbers(both, start):
    one, other = both(lambda: noise.uniform(7, 2, "tensor", start, 3000))
    assert same_bits(one, other)
    limits, gains = torch.tensor([[0], [1 << 23]], dtype=torch.int32), torch.tensor([[0.0], [2.0]])
    uniform = noise.uniform(7, 2, "tensor", 0, 6000).view(2, 3000)
    one, other = both(lambda: ops.survivors(uniform, limits, gains))
    assert same_bits(one, other)
    order = torch.stack([torch.randperm(100) for _ in range(60)]).view(2, 30, 100)
    table = (torch.linspace(0, 1, 100) * noise.ONE).int().expand(2, 100).contiguous()
    one, other = both(
        lambda: ops.ranked_survivors(order, uniform.view(2, 30, 100), table, torch.rand(2, 100).fill_(1.5))
    )
    assert same_bits(one, other)


SHAPES = {"a.weight": (70, 96), "b.weight": (300, 40), "c.weight": (97,), "d.weight": (1, 9)}


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.needs_importance])
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_every_method_gives_the_same_model(both, name, profile):
    method = METHODS[name]

    def model(seed: int) -> dict[str, torch.Tensor]:
        return {one: (0.1 + values(*shape, seed=seed)).bfloat16() for one, shape in SHAPES.items()}

    base, *experts = (model(seed) for seed in range(4))
    one, other = both(
        lambda: merging.merge_state_dicts(
            base if method.needs_base else None, experts[: method.experts_wanted], name, profile=profile
        )
    )
    assert all(same_bits(one[tensor], other[tensor]) for tensor in SHAPES)


@pytest.mark.parametrize("name", ["ties", "dare_ties", "della"])
def test_a_rescale_that_restores_the_sum_of_magnitudes(both, name):
    torch.manual_seed(3)
    base, *experts = ({"w": torch.randn(200, 300) * scale} for scale in (1.0, 0.01, 0.02, 0.03))
    for seed in range(6):
        options = {} if name == "ties" else {"seed": seed}
        one, other = both(
            lambda o=options: merging.merge_state_dicts(
                base, experts, name, density=0.5, rescale="l1", profile="mergekit", **o
            )
        )
        assert same_bits(one["w"], other["w"])


@pytest.mark.parametrize("name", ["dare_linear", "della", "ram"])
def test_another_default_dtype_changes_nothing(name):
    torch.manual_seed(4)
    base, *experts = ({"w": torch.randn(20, 30)} for _ in range(3))
    wanted = merging.merge_state_dicts(base, experts, name)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        found = merging.merge_state_dicts(base, experts, name)
    finally:
        torch.set_default_dtype(before)
    assert same_bits(found["w"], wanted["w"])


def test_a_numba_that_does_not_work_is_done_without(monkeypatch):
    def broken(*arrays):
        raise OSError("no space left on device")

    monkeypatch.setattr(ops.loops(), "above", broken)
    assert ops.loops.__wrapped__() is None
