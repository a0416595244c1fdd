"""Estimates from a sample: near the exact values by the error that they tell, and never silently wrong."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import merging
from benchmarks.family import make_family
from merging import MergingError, Progress
from merging.cuts import Ranking
from merging.inspecting import sampling
from merging.inspecting.sampling import GROUPS, SampledFamily, samplable, sample_rows
from merging.inspecting.sums import Record, total
from merging.inspection import preview_plan, trim_plan
from merging.memory import whatif
from merging.memory.whatif import Residents
from merging.pieces import Piece, StoredPiece
from merging.reports.report import Preview, Sample, Trim, added_up, placed
from merging.sorted_keys import SpreadCut, sort_keys
from merging.statistics import Attained

SAMPLE_BYTES = 400 << 10
WHOLE = 4096
NUMBERS = {
    "kept": lambda fate: fate.share(0, "kept"),
    "dropped": lambda fate: fate.share(1, "dropped"),
    "outvoted": lambda fate: fate.share(2, "outvoted"),
    "projection": lambda fate: fate.projection(1),
    "rounded": lambda fate: fate.lost_share("bfloat16"),
}


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch):
    """What counts as large is made small, so that a family of half a million parameters is."""
    monkeypatch.setattr(sampling, "WHOLE", WHOLE)
    monkeypatch.setattr(sampling, "BLOCK_BYTES", 512)
    monkeypatch.setattr(sampling, "SAMPLE_BYTES", SAMPLE_BYTES)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Three bfloat16 experts of half a million parameters whose matrices are too large to be read whole."""
    folder = tmp_path_factory.mktemp("large") / "family"
    make_family(folder, width=128, blocks=2, vocabulary=500)
    return folder


def planned(folder, method: str = "ties", experts: int = 3, **keys):
    models = tuple({"model": str(folder / f"expert-{number}")} for number in range(1, experts + 1))
    keys = {"profile": "paper", **keys}
    return merging.check(
        merging.Recipe(merge_method=method, base_model=str(folder / "base"), models=models, **keys)
    )


def sampled(plan, seed: int = 0) -> Preview:
    rows = sample_rows(plan, seed, SAMPLE_BYTES)
    return whatif._preview(plan, SampledFamily([*whatif.sources_of(plan)], rows))


def last(events):
    *_, found = events
    return found


def distances(exact: Preview, estimate: Preview) -> list[float]:
    """How many standard errors every number of every cell is off."""
    found = []
    cells: dict[object, list[str]] = {}
    for name, place in placed(exact.tensors).items():
        cells.setdefault((place.block, place.kind), []).append(name)
    assert estimate.sample is not None
    for names in cells.values():
        for value in NUMBERS.values():
            true = value(total(exact.tensors[name] for name in names))
            guess = value(total(estimate.tensors[name] for name in names))
            error = estimate.sample.error(value, names)
            assert guess is not None
            assert error is not None
            if error == 0:
                assert guess == pytest.approx(true, abs=1e-9)
            else:
                found.append(abs(guess - true) / error)
    return found


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("ties", {}),
        ("ties", {"scope": "tensor", "parameters": {"density": 0.3}}),
        ("dare_ties", {}),
        ("della", {}),
        ("pcb", {}),
    ],
)
def test_exact_values_lie_within_the_errors(method, keys, large):
    plan = planned(large, method, **keys)
    exact = last(preview_plan(plan, device="cpu"))
    off = [one for seed in range(4) for one in distances(exact, sampled(plan, seed))]
    assert len(off) > 100
    # of Student's t with 7 degrees of freedom, 91.4 % lie within 2 and 99.5 % within 4
    assert sum(one < 2 for one in off) / len(off) > 0.85
    assert sum(one < 4 for one in off) / len(off) > 0.97


def test_estimates_are_not_biased(large):
    """Over seeds the mean of the estimates is nearer to the truth than one of them, cell by cell."""
    plan = planned(large, "ties")
    exact = last(preview_plan(plan, device="cpu"))
    estimates = [sampled(plan, seed) for seed in range(8)]
    name = "model.layers.1.mlp.down_proj.weight"
    for value in (lambda fate: fate.energy[0][4], lambda fate: fate.change, lambda fate: fate.gram[0][0]):
        values = torch.tensor([value(one.tensors[name]) for one in estimates], dtype=torch.float64)
        spread = float(values.std()) / len(values) ** 0.5
        assert abs(float(values.mean()) - value(exact.tensors[name])) < 4 * spread


def test_small_tensors_are_exact_and_large_ones_stand_for_themselves(large):
    plan = planned(large, "task_arithmetic")
    exact, estimate = last(preview_plan(plan, device="cpu")), sampled(plan)
    assert estimate.sample is not None
    assert 0 < estimate.sample.share < 0.5
    assert len(estimate.sample.groups) == GROUPS
    for name, fate in exact.tensors.items():
        if fate.elements <= WHOLE:
            assert estimate.tensors[name] == fate
            assert estimate.sample.error(lambda one: one.change, [name]) == pytest.approx(0, abs=1e-12)
        else:
            assert estimate.tensors[name].elements == fate.elements
            assert estimate.tensors[name] != fate


def test_a_whole_model_threshold_weighs_tensors_by_their_size(large):
    """Norms are read whole and matrices in part, and still the kept share of the whole model is the one asked for."""
    plan = planned(large, "ties", parameters={"density": 0.2})
    fates = sampled(plan).tensors.values()
    exact = last(preview_plan(plan, device="cpu")).tensors.values()
    for expert in range(3):
        kept, true = (total(some).share(expert, "dropped") for some in (fates, exact))
        assert kept == pytest.approx(true, abs=0.02)


def test_every_row_is_as_likely(large):
    plan = planned(large)
    name = "model.layers.0.mlp.gate_proj.weight"
    counts = torch.zeros(341)
    for seed in range(200):
        rows = sample_rows(plan, seed, SAMPLE_BYTES).of[name]
        counts += rows.bincount(minlength=341)
    expected = float(counts.mean())
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert chi < 341 + 5 * (2 * 341) ** 0.5
    assert float(counts[:4].mean()) > expected / 2
    assert float(counts[-4:].mean()) > expected / 2


def test_large_families_are_estimated_first_and_then_exact(large):
    plan = planned(large, "ties")
    residents = Residents(16 << 20)
    assert not residents.fits(plan)
    events = list(whatif.steps(plan, residents, device="cpu"))
    first, end = events[0], events[-1]
    assert samplable(plan)
    assert isinstance(first, Preview)
    assert isinstance(first.sample, Sample)
    assert all(isinstance(event, Progress) for event in events[1:-1])
    assert isinstance(end, Preview)
    assert end.sample is None
    assert end == last(preview_plan(plan, device="cpu"))


def test_closing_stops_the_exact_pass(large):
    events = whatif.steps(planned(large, "ties"), Residents(16 << 20), device="cpu")
    next(events)
    next(events)
    events.close()
    assert list(events) == []


@pytest.mark.parametrize("method", ["dppa", "model_stock"])
def test_what_rows_cannot_tell_is_not_estimated(method, large):
    plan = planned(large, method)
    assert not samplable(plan)
    events = list(whatif.steps(plan, Residents(16 << 20), device="cpu"))
    assert [event.sample for event in events if isinstance(event, Preview)] == [None]


def test_trims_are_estimated_with_their_errors(large):
    plan = planned(large, "ties")
    rows = sample_rows(plan, 0, SAMPLE_BYTES)
    trimmed = whatif.trim_of(plan, 0.3, "model")
    found = whatif._trim(trimmed, SampledFamily([*whatif.sources_of(trimmed)], rows), 0.3, "model")
    exact = last(trim_plan(plan, 0.3, "model", device="cpu"))
    assert isinstance(found, Trim)
    assert found.sample is not None
    places = placed(exact.tensors)
    for cell, true in added_up(places, exact.tensors).items():
        names = [name for name, place in places.items() if (place.block, place.kind) == cell]
        guess = total(found.tensors[name] for name in names)
        for value in (lambda one: one.signs.opposite_share(), lambda one: one.kept[0] / one.signs.elements):
            error = found.sample.error(value, names)
            assert error is not None
            assert abs(value(guess) - value(true)) <= 6 * error + 1e-9


def test_a_merge_that_fails_fails_here_too(large):
    plan = planned(large, "ties", parameters={"lambda": 1e38}, out_dtype="float16")
    with pytest.raises(MergingError, match="not finite"):
        list(whatif.steps(plan, Residents(16 << 20), device="cpu"))


@pytest.mark.parametrize(("method", "most"), [("ties", 30), ("della", 28), ("pcb", 50)])
def test_what_a_sample_keeps_in_memory(method, most, large):
    """Bytes for each element of each expert: value, change and random words, or a table of 16; PCB has two, and a score."""
    plan = planned(large, method)
    rows = sample_rows(plan, 0, SAMPLE_BYTES)
    family = SampledFamily([*whatif.sources_of(plan)], rows)
    whatif._preview(plan, family)
    held = [value for held in family._held.values() for value in vars(held).values()]
    known = [value for memory in family._memories.values() for _, value in memory._kept.values()]
    tables = [value for table in family._tables.values() for value in vars(table).values()]
    tensors = [value for value in (*held, *known, *tables) if isinstance(value, torch.Tensor)]
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors}
    changes = rows.elements * len(plan.experts)
    assert 8 * changes < sum(storages.values()) < most * changes


@pytest.mark.parametrize("weighted", [False, True])
def test_keys_in_order(weighted):
    """Equal keys keep the order of pieces and elements, and the weights of the largest are added up."""
    generator = torch.Generator().manual_seed(0)
    models = [torch.randint(0, 5, (2, size), generator=generator).float() for size in (30, 1, 17)]
    pieces = [Piece(f"tensor {n}", 0, None, value, torch.ones(2)) for n, value in enumerate(models)]
    weights = [3.0, 1.0, 2.5]
    found = sort_keys(lambda piece: piece.models.int(), pieces, weights if weighted else None)
    rows, each = (
        torch.cat(models, 1).int(),
        torch.tensor(weights).repeat_interleave(torch.tensor([30, 1, 17])),
    )
    for number, row in enumerate(rows.tolist()):
        order = sorted(range(48), key=row.__getitem__)
        assert found.positions[number].tolist() == order
        assert found.values[number].tolist() == sorted(row)
        if weighted:
            sums = [sum(each[order[48 - count :]].tolist()) for count in range(49)]
            assert found.heavier[number].tolist() == sums
    assert (found.heavier is None) == (not weighted)


@dataclass(frozen=True)
class Count(Record):
    number: float


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equal_keys_are_spread_alike_however_the_models_are_stored(dtype):
    models = torch.randint(-2, 3, (3, 40, 50), generator=torch.Generator().manual_seed(2)).to(dtype)
    bits = torch.tensor([2.0, 1.0]).view(torch.int32)
    cut = SpreadCut(bits, {("w", 0): [100, 7]}, Attained(0, (), (), ()), Ranking((1, 0)))
    stored = cut.keep(StoredPiece("w", 0, models, True, torch.ones(2)))
    base, experts = models[0].float(), models[1:].float()
    widened = cut.keep(Piece("w", 0, base, experts, torch.ones(2)))
    assert torch.equal(stored, widened)
    for keep, delta, least, some in zip(
        widened, (experts - base).flip(0).abs(), (2, 1), (100, 7), strict=True
    ):
        assert bool(keep[delta > least].all())
        assert int(keep[delta == least].sum()) == some
        assert not bool(keep[delta < least].any())


def test_the_margin_is_that_of_student_s_t():
    """Of eight numbers around their mean, 2.365 standard errors either way cover 95 % of the means."""
    one_to_eight = Sample(0.1, tuple({"a": Count(number)} for number in range(1, 9)))
    assert one_to_eight.error(lambda one: one.number, ["a"]) == pytest.approx((6 / 8) ** 0.5)
    assert one_to_eight.margin(lambda one: one.number, ["a"]) == pytest.approx(2.365 * (6 / 8) ** 0.5)
    assert one_to_eight.margin(lambda one: None, ["a"]) is None
    drawn = torch.randn(4000, GROUPS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near = []
    for numbers in drawn.tolist():
        sample = Sample(0.1, tuple({"a": Count(number)} for number in numbers))
        near.append(abs(sum(numbers) / GROUPS) <= sample.margin(lambda one: one.number, ["a"]))
    assert sum(near) / len(near) == pytest.approx(0.95, abs=0.01)
