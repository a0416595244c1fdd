"""Pure tensor operations that the methods are made of. Task vectors are float32 of shape [experts, *shape]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

TINY_SUM = 1e-8
CANCELLED = 1e-6
"""A sum of weights smaller than this share of their magnitudes is float32 rounding, not a divisor."""
BITS = {torch.bfloat16: np.uint16, torch.float16: np.int16, torch.float32: np.uint32}
"""What `loops` read and write as it is stored, as the integers that have the same bits; see `kernels.FORMS`."""
EXPONENTS = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
}
"""The integers that have the bits of floating-point values, and the bits of the exponent."""
INNER_CHUNK = 1 << 14
Counting = Literal["nearest", "floor"]


class Changes(NamedTuple):
    """Rows of numbers [rows, *shape]: task vectors in float32, or keys in int32. `from_first`, for `loops` only: models as
    they are stored, of which all but the first are task vectors from it, so that nobody has to widen them first."""

    values: torch.Tensor
    from_first: bool = False

    @property
    def shape(self) -> torch.Size:
        """[rows, *shape]."""
        rows, *shape = self.values.shape
        return torch.Size((rows - self.from_first, *shape))

    @property
    def rows(self) -> torch.Tensor:
        """The same as numbers of their own: task vectors in float32, or keys."""
        if self.from_first:
            return task_vectors(self.values, with_products=False)[1]
        return self.values if self.values.dtype == torch.int32 else self.values.to(torch.float32)


def kept_count(density: float, elements: int, count: Counting) -> int:
    """How many of `elements` a density keeps.

    `nearest`: round(density·n), at least 1 where density > 0 and n > 0. `floor` (mergekit): everything from density 1
    up, nothing from 0 down, else max(1, int(density·n)).
    """
    if elements == 0 or density <= 0:
        return 0
    if density >= 1:
        return elements
    kept = int(density * elements) if count == "floor" else round(density * elements)
    return max(1, kept)


def window(density: float, gamma: float, elements: int, count: Counting) -> tuple[int, int]:
    """How many of the largest of `elements` are dropped, and how many of the next are kept.

    Never fewer than asked are kept: a gamma above 1 − density counts as 1 − density. `floor` (mergekit) keeps
    int(density·n), which may be none.
    """
    kept = kept_count(density, elements, count)
    if count == "floor" and density < 1:
        kept = int(density * elements)
    dropped = int(gamma * elements) if count == "floor" else round(gamma * elements)
    return min(dropped, elements - kept), kept


def magnitude_bits(values: torch.Tensor) -> torch.Tensor:
    """|x| of float32 values as int32 that order exactly as the magnitudes do."""
    return values.contiguous().view(torch.int32) & 0x7FFFFFFF


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask is true, in row-major order: int64. On the CPU by NumPy, in a quarter of torch's time."""
    if mask.device.type != "cpu":
        return mask.flatten().nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def keys_of(row: torch.Tensor) -> torch.Tensor:
    """Keys (int32) as they are, of changes (float32) their magnitude bits."""
    return row if row.dtype == torch.int32 else magnitude_bits(row)


def above(
    changes: Changes, rows: Sequence[int], thresholds: Sequence[int], allowed: Sequence[int]
) -> torch.Tensor:
    """Where `keys_of` some rows are above their thresholds, and the first few that equal it: bool [len(rows), *shape]."""
    values = changes.values
    keep = torch.empty((len(rows), *values.shape[1:]), dtype=torch.bool, device=values.device)
    if looped(values):
        left = np.array(allowed, dtype=np.int64)
        loops().above(
            *as_bits(changes), _indices(rows), _mask(values), _keys(thresholds), left, array(keep, 2)
        )
        return keep
    ranked = changes.rows
    for mine, row, threshold, few in zip(keep, rows, thresholds, allowed, strict=True):
        keys = keys_of(ranked[row])
        mine.copy_(keys > threshold)
        if few:
            mine.view(-1)[positions(keys == threshold)[:few]] = True
    return keep


class Within(NamedTuple):
    """What `within` finds of one row: the `distinct` of its keys between two bounds, how often each is there, how many keys
    are above, and how many are 0, if that was asked for."""

    keys: torch.Tensor
    counts: torch.Tensor
    above: int
    zeros: int


def within(
    changes: Changes, rows: Sequence[int], brackets: Sequence[tuple[int, int]], count_zeros: Sequence[bool]
) -> list[Within]:
    """What lies between two bounds, both included, of `keys_of` some rows, for each of them."""
    values = changes.values
    if not looped(values):
        ranked = changes.rows
        return [
            _within(keys_of(ranked[row]), *bounds, zeros)
            for row, bounds, zeros in zip(rows, brackets, count_zeros, strict=True)
        ]
    inside = np.empty((len(rows), math.prod(values.shape[1:]) + 1), dtype=np.int32)
    found, bounds = np.zeros((3, len(rows)), dtype=np.uint64), np.array(brackets, dtype=np.int32)
    asked = np.array(count_zeros, dtype=np.bool_)
    loops().within(
        *as_bits(changes), _indices(rows), _mask(values), bounds.reshape(-1, 2), asked, inside, found
    )
    return [
        Within(*distinct(torch.from_numpy(mine[:count])), above, zeros)
        for mine, (count, above, zeros) in zip(inside, found.T.tolist(), strict=True)
    ]


def _within(keys: torch.Tensor, low: int, high: int, count_zeros: bool) -> Within:
    zeros = keys.numel() - int(keys.count_nonzero()) if count_zeros else 0
    return Within(*distinct(keys[(keys >= low) & (keys <= high)]), int((keys > high).count_nonzero()), zeros)


def count_bins(changes: Changes, shift: int, below: int, counts: torch.Tensor) -> None:
    """Add how often the bits above `shift` of `keys_of` the first rows occur, with `below` added, to int64 [rows, bins] on
    their device."""
    values = changes.values
    if looped(values):
        loops().histogram(*as_bits(changes), _mask(values), np.int32(shift), np.int32(below), counts.numpy())
        return
    for mine, row in zip(counts, changes.rows, strict=False):
        bins = ((keys_of(row) >> shift) + below).flatten().long()
        ones = counts.new_ones(1).expand(len(bins))
        mine.scatter_add_(0, bins, ones)  # `bincount` waits for the device twice


def as_bits(changes: Changes) -> tuple[Any, bool]:
    """Rows as `loops` take them: whole numbers of their bits [m, n], and whether all but the first are changes from it."""
    return stored_bits(changes.values), changes.from_first


def _mask(values: torch.Tensor) -> np.int32:
    """What makes keys of the bits."""
    return np.int32(-1 if values.dtype == torch.int32 else 0x7FFFFFFF)


def _indices(rows: Sequence[int]) -> Any:
    return np.array(rows, dtype=np.int64)


def _keys(values: Sequence[int]) -> Any:
    return np.array(values, dtype=np.int32)


def distinct(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct of integers [n] in ascending order, and how often each is there. On the CPU by NumPy, in a fifth of
    torch's time."""
    if values.device.type != "cpu":
        found: tuple[torch.Tensor, torch.Tensor] = values.unique(return_counts=True)
        return found
    one, counts = np.unique(values.numpy(), return_counts=True)
    return torch.from_numpy(one), torch.from_numpy(counts)


def broadcast_rows(values: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Rows `start` to `stop` of what broadcasts to a tensor: all of it where it has one value for every row."""
    return values[start:stop] if values.ndim and values.shape[0] > 1 else values


def order_bits(values: torch.Tensor) -> torch.Tensor:
    """float32 values as int32 that order exactly as the values do; −0 and 0 are equal."""
    if compiled(values):
        found = torch.empty_like(values, memory_format=torch.contiguous_format)
        loops().order_bits(array(values), array(found))
        return found.view(torch.int32)
    bits = (values + 0.0).contiguous().view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def from_order_bits(bits: torch.Tensor) -> torch.Tensor:
    """The inverse of `order_bits`."""
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def factor(mask: torch.Tensor) -> torch.Tensor:
    """A bool mask as float32 of 0 and 1. By way of bytes, which torch widens several times as fast as bool."""
    return mask.view(torch.uint8).to(torch.float32)


def choose(mask: torch.Tensor, value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`value` where the mask is set, `other` elsewhere, float32, bit by bit: without a branch for every element, which a
    random mask makes several times as slow."""
    picked = mask.view(torch.uint8).to(torch.int32).neg_()
    bits = other.contiguous().view(torch.int32)
    return (bits ^ ((bits ^ value.contiguous().view(torch.int32)) & picked)).view(torch.float32)


def all_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(_finite(values))


def _finite(values: torch.Tensor) -> torch.Tensor:
    """The same as a bool on the values' device: no exponent is the largest. Several times as fast as `isfinite`."""
    if values.dtype not in EXPONENTS or not values.numel():
        return values.isfinite().all()
    integer, exponent = EXPONENTS[values.dtype]
    return (values.contiguous().view(integer) & exponent).amax() < exponent


def differ(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Where two float tensors of a dtype and shape differ: bool. Of 16 bits, several times as fast as comparing the numbers."""
    width = one.dtype.itemsize
    if width > 4 or (one.device.type != "cpu" and width == 4):
        return one != two
    integer = torch.int16 if width == 2 else torch.int32
    first, second = one.contiguous().view(integer), two.contiguous().view(integer)
    if looped(one):
        found = torch.empty(one.shape, dtype=torch.bool)
        unsigned = np.uint16 if width == 2 else np.uint32
        loops().differ(
            array(first).view(unsigned),
            array(second).view(unsigned),
            unsigned(1 << 8 * width - 1),
            array(found),
        )
        return found
    return (first ^ second).bool() & ((first | second) << 1).bool()  # 0 and −0 are equal


def per_expert(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Numbers [experts] shaped [experts, 1, ...] to broadcast against `like` [experts, *shape]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def sum_experts(values: torch.Tensor) -> torch.Tensor:
    """Σ_t over [experts, *shape] in expert order, one addition at a time, so that every device rounds alike."""
    total = values[0].clone()
    for term in values[1:]:
        total += term
    return total


def flat(values: torch.Tensor, leading: int = 1) -> torch.Tensor:
    """The dims after the first `leading` as one, which a scalar tensor's values then have, too."""
    return values.reshape(*values.shape[:leading], math.prod(values.shape[leading:]))


@cache
def loops() -> Any:
    """The module `kernels`, imported when a merge first needs it, which takes half a second; None where numba is missing or
    does not work, be it that it finds no room to keep what it compiled."""
    try:
        from merging import kernels

        kernels.order_bits(np.zeros(1, np.float32), np.zeros(1, np.float32))
    except Exception:  # whatever numba meets, torch does the same, only slower
        return None
    return kernels


def looped(values: torch.Tensor) -> bool:
    """Whether `loops` work where a tensor is: on a CPU."""
    return values.device.type == "cpu" and loops() is not None


def compiled(values: torch.Tensor) -> bool:
    """Whether they work on it: float32 on a CPU."""
    return values.dtype == torch.float32 and looped(values)


def _float32(value: float) -> np.float32:
    """A number as `loops` take it; what float32 cannot hold is infinite, and the result is found to be not finite."""
    with np.errstate(over="ignore"):
        return np.float32(value)


def array(values: torch.Tensor | None, dims: int = 1) -> Any:
    """A tensor on the CPU as `kernels` take it: contiguous, with its last dims as one; None as no elements."""
    if values is None:
        return _NOTHING
    # by NumPy from here on: every operation of torch lets go of the interpreter's lock and waits for it again
    found = values.contiguous().numpy()
    if found.ndim != dims:
        found = found.reshape(*found.shape[: dims - 1], math.prod(found.shape[dims - 1 :]))
    return found


_NOTHING = np.empty(0, dtype=np.float32)


def inner(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Σ x·y of each row of one [p, n] with each of the other [q, n], in float64: float64 [p, q] on the CPU. A CPU takes as
    much at once as stays in its cache; a GPU takes all such parts at once."""
    total = torch.zeros(len(one), len(two), dtype=torch.float64, device=one.device)
    if one.device.type != "cpu":
        whole = one.shape[1] // INNER_CHUNK * INNER_CHUNK
        first = _in_parts(one[:, :whole])
        second = first if two is one else _in_parts(two[:, :whole])
        total += (first @ second.mT).sum(0)
        one, two = one[:, whole:], two[:, whole:]
    for left, right in zip(one.split(INNER_CHUNK, 1), two.split(INNER_CHUNK, 1), strict=True):
        total += left.double() @ right.double().T
    return total.cpu()


def _in_parts(rows: torch.Tensor) -> torch.Tensor:
    """[p, n] in float64 as [parts, p, INNER_CHUNK]."""
    return rows.double().view(len(rows), -1, INNER_CHUNK).transpose(0, 1)


def products(base: torch.Tensor | None, deltas: torch.Tensor) -> torch.Tensor:
    """Σ x·y of the base [*shape] and every change [experts, *shape], each with each: float64 [1 + experts, 1 + experts] on
    the CPU; 0 for no base."""
    if compiled(deltas):
        total = torch.zeros(1 + len(deltas), 1 + len(deltas), dtype=torch.float64)
        loops().products(array(base), array(deltas, 2), total.numpy())
        return total
    first = torch.zeros_like(deltas[0]) if base is None else base
    rows = flat(torch.cat([first[None], deltas]))
    return inner(rows, rows)


def l1_norms(changes: Changes, factors: torch.Tensor | None = None) -> torch.Tensor:
    """Σ|δ| and Σ|factor·δ| of each expert: float64 [2, experts] on the CPU, summed as such."""
    values = changes.values
    if factors is None:
        factors = torch.ones([1] * values.ndim, dtype=torch.float32, device=values.device)
    if looped(values):
        norms = np.zeros((2, changes.shape[0]))
        loops().l1_norms(factors_of(factors, changes.shape), *as_bits(changes), norms)
        return torch.from_numpy(norms)
    deltas = changes.rows
    sizes = torch.stack([flat(part.abs()) for part in (deltas, factors * deltas)])
    return sizes.sum(2, dtype=torch.float64).cpu()


def stored_bits(stored: torch.Tensor) -> Any:
    """Stored models, or keys, [m, *shape] as `loops` take them: whole numbers [m, n] of their bits."""
    if stored.dtype == torch.int32:
        return array(stored, 2).view(np.uint32)
    return array(stored.contiguous().view(EXPONENTS[stored.dtype][0]), 2).view(BITS[stored.dtype])


def sweepable(stored: torch.Tensor) -> bool:
    """Whether `loops` read models as they are stored."""
    return stored.dtype in BITS and looped(stored)


def task_vectors(
    stored: torch.Tensor, *, with_products: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Base [*shape] and task vectors [experts, *shape] in float32, and their `products` if these are asked for, of base and
    experts [1 + experts, *shape] as they are stored."""
    if not sweepable(stored):
        base, models = (values := stored.to(torch.float32))[0], values[1:]
        deltas = models - base
        return base, deltas, products(base, deltas) if with_products else None
    base = torch.empty(stored.shape[1:], dtype=torch.float32)
    deltas = torch.empty((len(stored) - 1, *stored.shape[1:]), dtype=torch.float32)
    size = len(stored) if with_products else 0
    found = torch.zeros(size, size, dtype=torch.float64)
    loops().task_vectors(stored_bits(stored), array(base), array(deltas, 2), found.numpy())
    return base, deltas, found if with_products else None


def weighted_sum(coefficients: torch.Tensor, deltas: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """scale·Σ_t coefficient_t·δ_t in expert order; product and sum are rounded separately (no fused multiply-add).

    Shapes: deltas [experts, *shape], coefficients the same or, of one number for each expert, [experts, 1, ...].
    """
    if compiled(deltas):
        change = torch.empty_like(deltas[0], memory_format=torch.contiguous_format)
        loops().weighted_sum(
            factors_of(coefficients, deltas.shape), array(deltas, 2), _float32(scale), array(change)
        )
        return change
    total = coefficients[0] * deltas[0]
    for coefficient, delta in zip(coefficients[1:], deltas[1:], strict=True):
        total += coefficient * delta
    return total if scale == 1 else total * scale


def apply(base: torch.Tensor | None, change: torch.Tensor) -> torch.Tensor:
    """base + change; where the change is exactly 0 the base's own bits (−0 included)."""
    return change if base is None else base - (0 - change)  # 0 − 0 is +0, and θ − (+0) has the bits of θ


def keep_common(models: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
    """What is merged [*shape], but where all models [experts, *shape] are equal their own value."""
    if compiled(models):
        loops().keep_common(array(models, 2), array(merged))
        return merged
    return torch.where((models == models[0]).all(0), models[0], merged)


class Tally(NamedTuple):
    """Sums over merged elements: `change` = ΣΔ² of the merged change, `error` = Σ(rounded − merged)², how many elements
    `changed`, how many of these are `lost` because they equal the rounded base, and whether all are `finite` as written.
    Without a base nothing is a change."""

    change: float
    error: float
    changed: int
    lost: int
    finite: bool


def finish(
    base: torch.Tensor | None, change: torch.Tensor, dtype: torch.dtype, *, in_float32: bool = True
) -> tuple[torch.Tensor | None, torch.Tensor, Tally]:
    """base + change in float32 (see `apply`; None unless `in_float32`), the same in the dtype it is written in, and what came
    of it: [*shape] twice."""
    if compiled(change) and dtype in BITS:
        merged = torch.empty(change.shape, dtype=torch.float32) if in_float32 else None
        rows, written, sums = _rows(change.shape, dtype)
        finite = loops().finish(
            array(base), array(change), loops().FORMS[written.dtype], array(merged), written, sums
        )
        return merged, rows, _tally(sums, finite)
    merged = apply(base, change)
    rows = merged.to(dtype)
    return merged, rows, tally(base, merged, rows, change)


def _rows(shape: torch.Size, dtype: torch.dtype) -> tuple[torch.Tensor, Any, Any]:
    """Room for rows in the dtype they are written in, the same as whole numbers of their bits [n], and four sums."""
    rows = torch.empty(shape, dtype=dtype)
    return rows, stored_bits(rows[None])[0], np.zeros(4)


def _tally(sums: Any, finite: bool) -> Tally:
    moved, error, changed, lost = sums.tolist()
    return Tally(moved, error, int(changed), int(lost), bool(finite))


class Election(NamedTuple):
    """How a sign is elected for every element, and who then counts: see `elected_coefficients`."""

    weight: torch.Tensor
    weighted: bool = False
    sign: Literal["total", "frequency"] = "total"
    if_draw: float = 1.0
    normalize: bool = True


class Sweep(NamedTuple):
    """A merge that adds up by factors [experts, *shape], or what broadcasts to it, times a scale; after an `election`, if
    there is one. `keeps_common` (without a base): where all models are equal their own value stays."""

    factors: torch.Tensor
    scale: float = 1.0
    keeps_common: bool = False
    election: Election | None = None


def add_up(
    stored: torch.Tensor, sweep: Sweep, dtype: torch.dtype, *, has_base: bool
) -> tuple[torch.Tensor, Tally, torch.Tensor]:
    """All of a merge that adds up, in one sweep over `sweepable` models: the rows [*shape] in the dtype they are written in,
    what came of it, and the `products`.

    The stored models are [m, *shape], the base first if there is one. The same as `task_vectors`, `weighted_sum` or
    `elected_sum`, `keep_common` (if that is asked for) and `finish`, bit by bit.
    """
    factors, scale, keeps_common, election = sweep
    changes = Changes(stored, has_base)
    experts = changes.shape[0]
    rows, written, sums = _rows(stored.shape[1:], dtype)
    found = torch.zeros(1 + experts, 1 + experts, dtype=torch.float64)
    finite = loops().add_up(
        *as_bits(changes),
        factors_of(factors, changes.shape),
        _float32(scale),
        keeps_common,
        election is not None,
        _rule(election or Election(torch.ones(experts, dtype=torch.float32))),
        loops().FORMS[written.dtype],
        written,
        sums,
        found.numpy(),
    )
    return rows, _tally(sums, finite), found


def tally(
    base: torch.Tensor | None, merged: torch.Tensor, rows: torch.Tensor, change: torch.Tensor | None = None
) -> Tally:
    """The sums over merged elements; a change that is not given is merged − base."""
    finite = _finite(rows)
    error = _square(rows.to(torch.float32) - merged)
    if base is None:
        error, every = torch.stack([error, finite.double()]).tolist()
        return Tally(0.0, error, 0, 0, bool(every))
    change = merged - base if change is None else change
    written = differ(rows, base.to(rows.dtype)).count_nonzero()
    found = _square(change), error, change.count_nonzero(), written, finite
    moved, error, changed, written, every = torch.stack(
        [one.double() for one in found]
    ).tolist()  # one wait for all
    return Tally(moved, error, int(changed), int(changed - written), bool(every))


def _square(values: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(values).double().square()


def shares(weight: torch.Tensor, normalize: bool) -> torch.Tensor:
    """The experts' weights [experts], divided by their sum if `normalize`. A sum that cancels to nothing divides by 1."""
    if not normalize:
        return weight
    total = sum_experts(weight)
    return weight / total if float(total.abs()) >= TINY_SUM else weight


def cancel(weights: Sequence[float]) -> bool:
    """Whether weights add up to nothing in float32, though they are not all zero or though they are."""
    values = torch.tensor(weights, dtype=torch.float32)
    return float(sum_experts(values).abs()) <= max(TINY_SUM, CANCELLED * float(values.abs().sum()))


def elect_sign(votes: torch.Tensor, how: Literal["total", "frequency"], if_zero: float) -> torch.Tensor:
    """One sign (+1 or −1) an element from the experts' votes [experts, *shape] -> [*shape].

    `total`: the sign of the sum (TIES, eq. 2: the side with more mass). `frequency`: the sign of the summed signs
    (the side with more experts). Where that is exactly 0 the sign is `if_zero`.

    Source: TIES-Merging, 2306.01708, step 2.
    """
    signs = sum_experts(votes.sign() if how == "frequency" else votes).sign_()
    return signs.add_(1 - signs.abs(), alpha=if_zero)


def agreement(votes: torch.Tensor, elected: torch.Tensor) -> torch.Tensor:
    """1 where a vote [experts, *shape] has the elected sign (+1 or −1), else 0; what is 0 has no vote."""
    return votes.sign().mul_(elected).clamp_(min=0)


def disjoint_coefficients(agree: torch.Tensor, weight: torch.Tensor, normalize: bool) -> torch.Tensor:
    """Coefficients of the disjoint mean: the weights of the experts that agree, divided by their sum if `normalize`.

    A sum of exactly 0 divides by 1. Shapes: agree [experts, *shape] of 0 and 1, weight [experts] -> [experts, *shape].

    Source: TIES-Merging, 2306.01708, step 3.
    """
    coefficients = agree * per_expert(weight, agree)
    if normalize:
        divisor = sum_experts(coefficients)
        coefficients /= divisor.add_(1 - divisor.sign().abs_())
    return coefficients


def elected_coefficients(factors: torch.Tensor, deltas: torch.Tensor, election: Election) -> torch.Tensor:
    """Coefficients after an election among the sparse changes factor_t·δ_t, which are weighted first if `weighted`:
    [experts, *shape], 0 for who lost. See `elect_sign`, `agreement` and `disjoint_coefficients`.

    Shapes: deltas [experts, *shape], factors the same or [experts, 1, ...], weight [experts].
    """
    if compiled(deltas):
        found = torch.empty_like(deltas, memory_format=torch.contiguous_format)
        loops().elect(factors_of(factors, deltas.shape), array(deltas, 2), _rule(election), array(found, 2))
        return found
    cast = votes(factors, deltas, election.weight, election.weighted)
    agree = agreement(cast, elect_sign(cast, election.sign, election.if_draw))
    return disjoint_coefficients(agree, election.weight, election.normalize).mul_(factors)


def elected_sum(
    factors: torch.Tensor, deltas: torch.Tensor, election: Election, scale: float = 1.0
) -> torch.Tensor:
    """The `weighted_sum` by `elected_coefficients`, bit by bit, without room for these: [*shape]."""
    if not compiled(deltas):
        return weighted_sum(elected_coefficients(factors, deltas, election), deltas, scale)
    change = torch.empty_like(deltas[0], memory_format=torch.contiguous_format)
    loops().elected_sum(
        factors_of(factors, deltas.shape), array(deltas, 2), _rule(election), _float32(scale), array(change)
    )
    return change


def summed(sweep: Sweep, deltas: torch.Tensor) -> torch.Tensor:
    """The change that comes of task vectors [experts, *shape]: [*shape]."""
    if sweep.election is None:
        return weighted_sum(sweep.factors, deltas, sweep.scale)
    return elected_sum(sweep.factors, deltas, sweep.election, sweep.scale)


def _rule(election: Election) -> Any:
    """How `loops` elect."""
    mine = array(election.weight)
    cast = mine if election.weighted else np.ones_like(mine)
    return cast, mine, election.sign == "frequency", np.float32(election.if_draw), election.normalize


def balance(
    factors: torch.Tensor, changes: Changes, weight: torch.Tensor, *, weighted: bool = False
) -> torch.Tensor:
    """By how many elements more the votes add up to something above 0 than below: float64."""
    if looped(changes.values):
        mine = array(weight) if weighted else np.ones(len(weight), dtype=np.float32)
        found = loops().balance(factors_of(factors, changes.shape), *as_bits(changes), mine)
        return torch.tensor(found, dtype=torch.float64)
    return sum_experts(votes(factors, changes.rows, weight, weighted)).sign().sum(dtype=torch.float64)


def votes(factors: torch.Tensor, deltas: torch.Tensor, weight: torch.Tensor, weighted: bool) -> torch.Tensor:
    """What is summed to elect a sign: factor_t·δ_t, times the experts' weights if `weighted`."""
    sparse = factors * deltas
    return sparse * per_expert(weight, sparse) if weighted else sparse


def factors_of(factors: torch.Tensor, shape: torch.Size) -> Any:
    """Factors for changes of a shape [experts, *shape] as `loops` take them, a mask as bytes: one for each expert, or for
    each element."""
    one_each = shape[0], *[1] * (len(shape) - 1)
    factors = factors.expand(one_each if factors.shape[1:].numel() == 1 else shape)
    return array(factors.view(torch.uint8) if factors.dtype == torch.bool else factors, 2)


def minmax(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Each expert's values [experts, *shape] from its range [low, high] onto [0, 1]; 0 where the range is one point."""
    low, span = (per_expert(bound.to(values.device), values) for bound in (low, high - low))
    return torch.where(span > 0, (values - low) / span, 0.0)


def as_rows(deltas: torch.Tensor) -> torch.Tensor:
    """[experts, *shape] as [experts, rows, m]: a 1-D tensor is one row, dims beyond the second count into the row."""
    experts, *shape = deltas.shape
    rows = shape[0] if len(shape) > 1 else 1
    return deltas.reshape(experts, rows, math.prod(shape) // rows if rows else 0)


def order_in_rows(changes: Changes) -> torch.Tensor:
    """Where in its row (see `as_rows`) the element of each rank by |δ| is, the largest first, among equals the lower index:
    [experts, rows, m], int32 from `loops`, else int64."""
    if not looped(changes.values):
        return magnitude_bits(as_rows(changes.rows)).sort(dim=-1, descending=True, stable=True).indices
    order = torch.empty((changes.shape[0], *as_rows(changes.values).shape[1:]), dtype=torch.int32)
    loops().order_in_rows(*as_bits(changes), order.numpy())
    return order


def survivors(uniform: torch.Tensor, limits: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """A gain (float32) where a random number (int32 [experts, ...]) is below its limit (int32), else 0; limits and gains
    are of the same shape or broadcast to it."""
    if not looped(uniform):
        return factor(uniform < limits.to(uniform.device)) * gains.to(uniform.device)
    found = torch.empty(uniform.shape, dtype=torch.float32)
    if limits.shape != (len(uniform), *[1] * (uniform.ndim - 1)):
        limits = limits.expand(uniform.shape)
    gains = gains.expand(limits.shape)
    rows = (array(values, 2) for values in (uniform, limits, gains, found))
    for numbers, limit, gain, mine in zip(*rows, strict=True):
        loops().survivors(numbers, limit, gain, mine)
    return found


def ranked_survivors(
    order: torch.Tensor, uniform: torch.Tensor, limits: torch.Tensor, gains: torch.Tensor
) -> torch.Tensor:
    """`survivors` where limits and gains [experts, m] are those of an element's rank in its row: `order` [experts, rows, m]
    says where each rank is."""
    if not looped(uniform):
        ranked = survivors(uniform.gather(-1, order), limits[:, None], gains[:, None])
        return torch.empty_like(ranked).scatter_(-1, order, ranked)
    found = torch.empty(uniform.shape, dtype=torch.float32)
    for places, numbers, limit, gain, mine in zip(
        *(values.numpy() for values in (order, uniform, limits, gains, found)), strict=True
    ):
        loops().ranked_survivors(places, numbers, limit, gain, mine)
    return found


def rank_probabilities(elements: int, density: float, epsilon: float) -> torch.Tensor:
    """MAGPRUNE's chance to stay for each rank of a row of m elements: float64 [m], mean exactly `density`.

    Source: DELLA-Merging, 2406.11617.
    """
    if density <= 0 or density >= 1 or elements == 1:
        return torch.full((elements,), min(max(density, 0.0), 1.0), dtype=torch.float64)
    ranks = torch.arange(elements, dtype=torch.float64)
    return (density + epsilon) - 2 * epsilon * ranks / (elements - 1)


def add_low_rank(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> None:
    """Add scale·L·R to `total` [rows, *], of L [rows, rank] and R [rank, columns]; all float32, on the CPU.

    Products are rounded one by one and summed in the order of the ranks, so that the same rows have the same bits whatever
    rows are worked on with them; a matrix product promises no order.
    """
    rows = total.view(len(left), -1)
    if compiled(total):
        loops().add_low_rank(
            left.contiguous().numpy(), right.contiguous().numpy(), _float32(scale), rows.numpy()
        )
        return
    change = torch.zeros_like(rows)
    for number in range(len(right)):
        change += left[:, number : number + 1] * right[number]
    rows += change * scale
