"""The compiled loops give what the reference in torch gives: weights bit by bit, sums to their last digits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import merging
from merging import METHODS, noise, ops
from merging.methods import dppa
from merging.methods.pcb import Clipped, Known, Pcb
from merging.pieces import Piece

pytestmark = pytest.mark.skipif(ops.loops() is None, reason="numba is not installed")
STORED = [torch.bfloat16, torch.float16, torch.float32]
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
@pytest.mark.parametrize("dtype", STORED)
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


def test_every_float16_is_read():
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    found = ops.Changes(torch.stack([torch.zeros_like(every), every]), True).rows[0]
    known = ~every.isnan()
    assert same_bits(found[known], every.float()[known])
    assert bool(found[~known].isnan().all())


def test_what_is_rounded_to_float16():
    """Every float16, what lies halfway between two, what is next to these, and any bits."""
    every = torch.arange(0x7C00, dtype=torch.int16).view(torch.float16).double()
    halfway = (every[1:] + every[:-1]) / 2
    most = torch.tensor([65504, 65519.99, 65520, 65536, 1e30, torch.inf], dtype=torch.float64)
    exact = torch.cat([every, halfway, most]).float()
    torch.manual_seed(0)
    any_bits = torch.randint(-(2**31), 2**31, (1 << 18,)).to(torch.int32).view(torch.float32)
    beside = [exact.nextafter(torch.tensor(end)) for end in (torch.inf, -torch.inf)]
    given = torch.cat([exact, -exact, *beside, any_bits])
    _, rows, tally = ops.finish(None, given, torch.float16)
    known = ~given.isnan()
    assert same_bits(rows[known], given.half()[known])
    assert bool(rows[~known].isnan().all())
    assert not tally.finite
    assert ops.finish(None, torch.tensor([65519.99]), torch.float16)[2].finite


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
                    f, deltas, ops.Election(weight, weighted, sign, d, normalize)
                )
            )
            assert torch.equal(one, other)  # a 0 of either sign adds nothing
        one, other = both(lambda f=factors: ops.balance(f, ops.Changes(deltas), weight, weighted=weighted))
        assert same_bits(one, other)


@pytest.mark.parametrize("size", SIZES)
def test_sums_and_cuts(both, size):
    base, deltas = values(size, seed=5), values(3, size)
    for one, other in (both(lambda: ops.products(base, deltas)), both(lambda: ops.products(None, deltas))):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-18)
    for factors in (None, values(3, size, seed=6)):
        one, other = both(lambda f=factors: ops.l1_norms(ops.Changes(deltas), f))
        torch.testing.assert_close(one, other, rtol=1e-7, atol=0)
    for keys in (deltas, ops.order_bits(deltas)):
        ranked = ops.Changes(keys)
        for bits in (0x3C000000, 0, 0x7FFFFFFF):
            cuts = (1, 0, 1, 2), (bits, 0x3C000000, bits, 0x3B000000), (0, 7, 2000, 1)
            one, other = both(lambda r=ranked, c=cuts: ops.above(r, *c))
            assert same_bits(one, other)
        for found, wanted in zip(
            *both(lambda r=ranked: ops.within(r, (2, 0, 0, 1), *asked(size))), strict=True
        ):
            assert_same_within(found, wanted)
    one, other = both(lambda: ops.order_in_rows(ops.Changes(deltas[:, None])))
    assert torch.equal(one.long(), other)
    one, other = both(lambda: ops.keep_common(torch.stack([base, base, deltas[0]]), deltas[1].clone()))
    assert same_bits(one, other)


def asked(size: int) -> tuple[list[tuple[int, int]], list[bool]]:
    """Brackets, and of which of them zeros are counted."""
    brackets = [(0x3C000000, 0x3C008000), (0x3C000001, 0x3C000000 + size), (0, 0), (-(1 << 31), 0x7FFFFFFF)]
    return brackets, [False, True, True, True]


def assert_same_within(found: ops.Within, wanted: ops.Within) -> None:
    assert torch.equal(found.keys, wanted.keys)
    assert torch.equal(found.counts, wanted.counts)
    assert found[2:] == wanted[2:]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("with_base", [True, False])
def test_models_as_they_are_stored_give_what_their_changes_give(dtype, size, with_base):
    stored = torch.stack([values(size, seed=seed) for seed in range(4)]).to(dtype)
    deltas = ops.task_vectors(stored, with_products=False)[1] if with_base else stored.float()
    as_stored, widened = ops.Changes(stored, with_base), ops.Changes(deltas)
    assert as_stored.shape == widened.shape == deltas.shape
    assert same_bits(as_stored.rows, deltas)
    experts, cuts = len(deltas), ((1, 0, 2), (0x3C000000, 0x3B800000, 0), (3, 0, 1000))
    keep = ops.above(widened, *cuts)
    assert same_bits(ops.above(as_stored, *cuts), keep)
    for one, other in zip(
        *(ops.within(rows, (2, 0, 0, 1), *asked(size)) for rows in (as_stored, widened)), strict=True
    ):
        assert_same_within(one, other)
    counts = torch.zeros(2, experts, 1 << 16, dtype=torch.int64)
    ops.count_bins(as_stored, 15, 0, counts[0])
    ops.count_bins(widened, 15, 0, counts[1])
    assert torch.equal(*counts)
    weight = torch.tensor([0.5, -1.0, 2.0, 1.0])[:experts]
    for factors in (keep[:1].expand(deltas.shape), values(*deltas.shape, seed=9), torch.rand(experts, 1)):
        assert same_bits(ops.l1_norms(as_stored, factors), ops.l1_norms(widened, factors))
        balances = (ops.balance(factors, rows, weight, weighted=True) for rows in (as_stored, widened))
        assert same_bits(*balances)
    assert same_bits(ops.order_in_rows(as_stored), ops.order_in_rows(widened))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", STORED)
def test_task_vectors_of_what_is_stored(both, dtype, size):
    stored = torch.stack([values(size, seed=seed) for seed in range(4)]).to(dtype)
    one, other = both(lambda: ops.task_vectors(stored, with_products=True))
    assert same_bits(one[0], other[0])
    assert same_bits(one[1], other[1])
    torch.testing.assert_close(one[2], other[2], rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("out", STORED)
@pytest.mark.parametrize("dtype", STORED)
def test_one_sweep_gives_what_the_steps_give(dtype, out, size):
    stored = torch.stack([values(size, seed=seed) for seed in range(4)]).to(dtype)
    stored[2:, ::5] = stored[1, ::5]
    factors, weight = torch.tensor([[0.5], [-0.25], [1.5]]), torch.tensor([0.5, -1.0, 2.0])
    base, deltas, found = ops.task_vectors(stored, with_products=True)
    assert same_bits(ops.task_vectors(stored, with_products=False)[1], deltas)
    each = values(3, size, seed=4)
    for sweep in (
        ops.Sweep(factors),
        ops.Sweep(factors, 0.4),
        ops.Sweep(each * 70, 0.4),
        ops.Sweep(each != 0),
        ops.Sweep(each != 0, election=ops.Election(weight)),
        ops.Sweep(each * 70, 0.7, election=ops.Election(weight, True, "frequency", -1.0, False)),
        ops.Sweep(factors, election=ops.Election(weight, if_draw=-1.0)),
    ):
        _, wanted, sums = ops.finish(base, ops.summed(sweep, deltas), out)
        rows, tally, products = ops.add_up(stored, sweep, out, has_base=True)
        assert same_bits(rows, wanted)
        assert tally == sums
        torch.testing.assert_close(products, found, rtol=1e-12, atol=1e-18)
    models = stored[1:].float()
    _, wanted, sums = ops.finish(None, ops.keep_common(models, ops.weighted_sum(factors, models)), out)
    rows, tally, products = ops.add_up(stored[1:], ops.Sweep(factors, keeps_common=True), out, has_base=False)
    assert same_bits(rows, wanted)
    assert tally == sums
    torch.testing.assert_close(products, ops.products(None, models), rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("size", SIZES)
def test_an_elected_sum_is_the_sum_of_what_is_elected(both, size):
    deltas, weight = values(3, size), torch.tensor([0.5, -1.0, 2.0])
    for factors in (torch.ones(3, 1), values(3, size, seed=4) != 0, values(3, size, seed=4) * 70):
        for rule in ({"weighted": True, "if_draw": -1.0}, {"sign": "frequency"}, {"normalize": False}):
            election = ops.Election(weight, **rule)
            change, reference = both(lambda f=factors, e=election: ops.elected_sum(f, deltas, e, 0.7))
            assert same_bits(change, reference)
            coefficients = ops.elected_coefficients(factors, deltas, election)
            assert same_bits(change, ops.weighted_sum(coefficients, deltas, 0.7))


@pytest.mark.parametrize("size", SIZES)
def test_keys_and_their_bins(both, size):
    scores = values(size, seed=7) * 300
    one, other = both(lambda: ops.order_bits(scores))
    assert same_bits(one, other)
    for row, below in ((scores, 0), (one, 1 << 16)):

        def bins(row=row, below=below):
            counts = torch.zeros(1, 1 << 17, dtype=torch.int64)
            ops.count_bins(ops.Changes(row[None]), 15, below, counts)
            return counts[0]

        counted, wanted = both(bins)
        assert torch.equal(counted, wanted)
        assert int(counted.sum()) == size


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 300.0])
def test_competition(both, size, scale):
    deltas = values(3, size) * scale
    piece = Piece("w", 0, torch.zeros(size), deltas, torch.tensor([1.0, 0.5, -2.0]))
    lower = torch.full((3,), 1e-4 * scale, dtype=torch.float64)
    upper = torch.tensor([0.02, 0.01, 1e-4], dtype=torch.float64) * scale  # the last has a range of one point
    formula = Clipped(lower, upper, "root")
    one, other = both(lambda: formula.score(piece).float())
    torch.testing.assert_close(one, other, rtol=3e-7, atol=0)
    threshold, top = one.double().median(1).values, one.double().amax(1)
    known = Known(formula, threshold, top)
    one, other = both(lambda: Pcb().coefficients(replace(piece, memory=None), known))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("rule", ["strictest", "authors"])
def test_graded_factors_and_outliers(both, rule):
    keep = values(3, 2, 40, 5, seed=8) > 0
    one, other = both(lambda: dppa.amplified(keep, [0.5, -1.5], rule))
    assert same_bits(one, other)
    deltas = values(3, 40, 5)
    piece = Piece("w", 0, torch.zeros(40, 5), deltas, torch.ones(3))
    limits = {"w": torch.tensor([[0.01, 0.0, 1.0], [0.002, 0.0078125, 0.02]], dtype=torch.float64)}
    one, other = both(lambda: dppa._outliers(piece, limits))
    assert torch.equal(one.long(), other.long())


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

    monkeypatch.setattr(ops.loops(), "order_bits", broken)
    assert ops.loops.__wrapped__() is None


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (40, 16, 300)])
def test_a_change_of_low_rank(both, shape):
    rows, rank, columns = shape
    left, right, total = values(rows, rank), values(rank, columns, seed=1), values(rows, columns, seed=2)

    def work():
        found = total.clone()
        ops.add_low_rank(found, left, right, 0.3)
        return found

    assert same_bits(*both(work))


@pytest.mark.parametrize("columns", [1, 2, 300, 3000])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_every_digit_of_a_magnitude_counts_in_its_order(columns, scale):
    """Rows whose numbers differ in all digits, in some, and in none."""
    rows = torch.randn(2, 7, columns, generator=torch.Generator().manual_seed(columns)) * scale
    rows[0, 1] = 0.5
    rows[0, 2] = rows[0, 2].bfloat16().float()
    rows[1, 3, ::2] = rows[1, 3, 0]
    expected = rows.abs().sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(ops.order_in_rows(ops.Changes(rows)).long(), expected)
