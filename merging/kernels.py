"""The loops that a merge on a CPU spends its time in, compiled by numba where that is installed.

Each does in one sweep what takes `ops` several, chunk by chunk in what stays in a core's first cache, without the
interpreter's lock. `ops.loops` says whether they are there, and beside every use stands the reference in torch: results that
become weights have the same bits (products and sums are rounded one by one, in the same order), sums for people the same
digits but for the last.

Values come as contiguous NumPy views of float32 tensors: base [n] (empty for none), deltas [experts, n], and factors
[experts, n] or, of one for all elements, [experts, 1]. `stored` are models as whole numbers of their bits [m, n], of which all
but the first count as changes from it if `has_base`; changes that are there in float32 already are such models without a base.

They are one file because numba keeps what it compiled until the file of a loop changes, whatever becomes of the loops it calls.
"""

from __future__ import annotations

from contextlib import suppress
from math import factorial

import numba
import numpy as np

CHUNK = 1024
"""Elements worked on at once: with all that is made of three experts' up to 64 KB, what stays near a core."""
STRETCH = 32
"""Keys that are looked at together before they are taken one by one."""
DIGIT_BITS = 10
DIGITS = 1 << DIGIT_BITS
PASSES = -(-31 // DIGIT_BITS)
"""Of a radix sort of keys of 31 bits."""
SIGN = np.uint32(0x80000000)
MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITE = np.uint32(0x7F800000)
FORMS = {
    np.dtype(np.uint16): np.array([0x8000, 0x7F80], np.uint16),
    np.dtype(np.int16): np.array([-0x8000, 0x7C00], np.int16),
    np.dtype(np.uint32): np.array([0x80000000, 0x7F800000], np.uint32),
}
"""Sign and infinity of bfloat16, float16 and float32: stored values come and go as whole numbers of their bits, those of float16
as numbers with a sign, which tells them from bfloat16."""
BF16_NAN = np.uint32(0x7FC0)
BF16_HALF = np.uint32(0x7FFF)
LOW = np.uint32(16)
F16_MAGNITUDE, F16_SIGN = np.uint32(0x7FFF), np.uint32(0x8000)
F16_INFINITE, F16_NAN = np.uint32(0x7C00), np.uint32(0x7E00)
F16_LOW = np.uint32(13)
"""Bits of float32 that float16 has no room for."""
F16_SCALE = np.float32(2.0**112)
"""Between the exponents of float32 and float16, and the same as a difference of float32's bits, with half of what is rounded off."""
F16_ROUND = np.uint32(0xC8000FFF)
F16_NORMAL, F16_MOST = np.uint32(0x38800000), np.uint32(0x47800000)
"""The bits of the least normal number, and of the least that is infinite."""
F16_LEAST, F16_HALF, F16_STEP = np.float32(2.0**-14), np.float32(0.5), np.float32(2.0**24)
"""The least normal number, and how many of the steps below it make 1."""
NOTHING = np.int32(0x7FFFFFFF)
"""No key is above it."""
ZERO, ONE = np.float32(0), np.float32(1)
LOG2E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
"""ln 2 in two parts, the first of so few digits that a multiple of it is exact."""
F2, F3, F4, F5, F6, F7, F8, F9, F10, F11, F12, F13 = (1 / factorial(k) for k in range(2, 14))
T3, T5, T7, SMALL = -1 / 3, 2 / 15, -17 / 315, 0.008
"""The series of tanh, and below which its next term is less than float64 tells."""
MOST_TANH = 45.0
"""Twice what tanh is 1 from, in float64."""
TINY = 1e-12


def _compiled(loop, fastmath):
    found = numba.njit(loop, nogil=True, cache=True, error_model="numpy", fastmath=fastmath)
    keep = found._cache.save_overload

    def keep_if_there_is_room(*arguments):
        with suppress(OSError):
            keep(*arguments)

    found._cache.save_overload = keep_if_there_is_room
    return found


def _exact(loop):
    """For results that become weights: every operation is rounded as IEEE 754 says, and none is moved."""
    return _compiled(loop, fastmath=False)


def _summing(loop):
    """For sums in any order, so that they are taken several terms at a time."""
    return _compiled(loop, fastmath={"reassoc"})


@_summing
def _dot(one, two):
    total = 0.0
    for i in range(len(one)):
        total += one[i] * two[i]
    return total


@_exact
def _widen(values, wide):
    for i in range(len(values)):
        wide[i] = values[i]


@_exact
def _own(factors, expert, start, stop):
    """An expert's factors of some elements: [stop - start], or [1] for all."""
    return factors[expert, start:stop] if factors.shape[1] > 1 else factors[expert]


@_exact
def _sign_of(value):
    return np.int32(value > ZERO) - np.int32(value < ZERO)


@_exact
def _scaled(change, factors, deltas):
    if len(factors) == 1:
        factor = np.float32(factors[0])
        for i in range(len(change)):
            change[i] = factor * deltas[i]
    else:
        for i in range(len(change)):
            change[i] = np.float32(factors[i]) * deltas[i]


@_exact
def _add_scaled(change, factors, deltas):
    if len(factors) == 1:
        factor = np.float32(factors[0])
        for i in range(len(change)):
            change[i] += factor * deltas[i]
    else:
        for i in range(len(change)):
            change[i] += np.float32(factors[i]) * deltas[i]


@_exact
def _sum_scaled(factors, at, deltas, start, stop, scale, change):
    """scale·Σ_t factor_t·δ_t of elements start to stop, whose factors begin at `at`, into `change` [stop - start]."""
    for t in range(len(deltas)):
        mine = _own(factors, t, at, at + len(change))
        if t == 0:
            _scaled(change, mine, deltas[t, start:stop])
        else:
            _add_scaled(change, mine, deltas[t, start:stop])
    if scale != ONE:
        for i in range(len(change)):
            change[i] *= scale


@_summing
def _square(values):
    total = 0.0
    for i in range(len(values)):
        total += np.float64(values[i]) * np.float64(values[i])
    return total


@_summing
def _sum_of_magnitudes(values):
    total = 0.0
    for i in range(len(values)):
        total += np.float64(abs(values[i]))
    return total


@_exact
def _count_nonzero(values):
    count = 0
    for i in range(len(values)):
        count += values[i] != ZERO
    return count


@_exact
def _is_different(one, two, sign):
    """Whether the bits of two numbers differ, 0 and −0 being equal; `sign` is the sign's bit."""
    return (one != two) & (((one | two) & ~sign) != 0)


@_exact
def _count_differing(one, two, sign):
    count = 0
    for i in range(len(one)):
        count += _is_different(one[i], two[i], sign)
    return count


@_exact
def _largest_magnitude(bits):
    largest = np.uint32(0)
    for i in range(len(bits)):
        largest = max(largest, bits[i] & MAGNITUDE)
    return largest


@_exact
def _add_dots(wide, first, size, out):
    for a in range(first, len(wide)):
        for b in range(a, len(wide)):
            out[a, b] += _dot(wide[a, :size], wide[b, :size])


@_exact
def _add_products(values, wide, first, size, out):
    """Adds Σx·y of float32 rows, all with all, to the upper triangle of `out` from `first` on; `wide` is room."""
    for m in range(len(values)):
        _widen(values[m, :size], wide[first + m, :size])
    _add_dots(wide, first, size, out)


@_exact
def _mirror(out):
    for a in range(len(out)):
        for b in range(a):
            out[a, b] = out[b, a]


@_exact
def products(base, deltas, out):
    """Σx·y of base and deltas, all with all: adds to float64 [1 + experts, 1 + experts], nothing for a base that is empty."""
    experts, count = deltas.shape
    wide = np.empty((1 + experts, CHUNK))
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        size = stop - start
        if len(base):
            _widen(base[start:stop], wide[0, :size])
        for t in range(experts):
            _widen(deltas[t, start:stop], wide[1 + t, :size])
        _add_dots(wide, 0 if len(base) else 1, size, out)
    _mirror(out)


@_exact
def _is_float16(row):
    return row.dtype.type(-1) < 0


@_exact
def _read(row, values):
    """Stored bits as the float32 that they stand for."""
    bits = values.view(np.uint32)
    if _is_float16(row):
        for i in range(len(row)):
            bits[i] = (np.uint32(row[i]) & F16_MAGNITUDE) << F16_LOW
        for i in range(len(row)):
            values[i] *= F16_SCALE
        for i in range(len(row)):
            stored = np.uint32(row[i])
            beyond = INFINITE if (stored & F16_INFINITE) == F16_INFINITE else np.uint32(0)
            bits[i] |= beyond | ((stored & F16_SIGN) << LOW)
        return
    shift = np.uint32(32 - 8 * row.itemsize)
    for i in range(len(row)):
        bits[i] = np.uint32(np.uint32(row[i]) << shift)


@_exact
def _take(stored, start, stop, has_base, values):
    """Stored bits [m, n] from start to stop as float32 into `values` [m, CHUNK]; with a base, all but the first as changes
    from it."""
    size = stop - start
    first = values[0, :size]
    for m in range(len(stored)):
        mine = values[m, :size]
        _read(stored[m, start:stop], mine)
        if has_base and m > 0:
            for i in range(size):
                mine[i] -= first[i]


@_exact
def _take_changes(stored, start, has_base, values):
    """The changes of the chunk that begins at `start`, in the room of `values` [m, CHUNK]: where it ends, and [experts, CHUNK]."""
    stop = min(start + CHUNK, stored.shape[1])
    _take(stored, start, stop, has_base, values)
    return stop, values[1 if has_base else 0 :]


@_exact
def task_vectors(stored, base, deltas, out):
    """Base [n] and task vectors [experts, n] of the bits of base and experts as stored, and their `products` unless `out` is
    empty."""
    count = stored.shape[1]
    values, wide = np.empty((len(stored), CHUNK), np.float32), np.empty((len(stored), CHUNK))
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        size = stop - start
        _take(stored, start, stop, True, values)
        if len(out):
            _add_products(values, wide, 0, size, out)
        base[start:stop] = values[0, :size]
        for t in range(len(deltas)):
            deltas[t, start:stop] = values[1 + t, :size]
    _mirror(out)


@_exact
def weighted_sum(factors, deltas, scale, change):
    """scale·Σ_t factor_t·δ_t into `change` [n]; factors are [experts, n] or [experts, 1]."""
    for start in range(0, len(change), CHUNK):
        stop = min(start + CHUNK, len(change))
        _sum_scaled(factors, start, deltas, start, stop, scale, change[start:stop])


@_exact
def _apply(base, change, merged):
    for i in range(len(change)):
        merged[i] = base[i] - (ZERO - change[i])


@_exact
def _round(values, rows):
    """float32 to the bits of what is written, to even where two are equally near."""
    bits = values.view(np.uint32)
    if rows.itemsize == 4:
        for i in range(len(bits)):
            rows[i] = bits[i]
    elif _is_float16(rows):
        for i in range(len(bits)):
            value = bits[i]
            size, least = np.uint32(value & MAGNITUDE), min(abs(values[i]), F16_LEAST)
            odd = np.uint32(np.uint32(value >> F16_LOW) & np.uint32(1))
            rounded = np.uint32(np.uint32(size + np.uint32(F16_ROUND + odd)) >> F16_LOW)
            small = np.uint32(((least + F16_HALF) - F16_HALF) * F16_STEP)  # the sum has no bit below the step
            rounded = small if size < F16_NORMAL else rounded
            rounded = F16_INFINITE if size >= F16_MOST else rounded
            rounded = F16_NAN if size > INFINITE else rounded
            rows[i] = np.uint32(rounded | (np.uint32(value >> LOW) & F16_SIGN))
    else:
        for i in range(len(bits)):
            value = bits[i]
            odd = np.uint32(np.uint32(value >> LOW) & np.uint32(1))
            rounded = np.uint32(np.uint32(value + np.uint32(BF16_HALF + odd)) >> LOW)
            rows[i] = BF16_NAN if np.uint32(value & MAGNITUDE) > INFINITE else rounded


@_summing
def _error_of_rounding(rows, merged, scratch):
    if rows.itemsize == 4:
        return 0.0
    _read(rows, scratch)
    total = 0.0
    for i in range(len(rows)):
        error = np.float64(scratch[i] - merged[i])
        total += error * error
    return total


@_exact
def _fit(rows, infinite):
    largest = rows[0] & infinite
    for i in range(len(rows)):
        largest = max(largest, rows[i] & infinite)
    return largest < infinite


@_exact
def _finish_part(base, change, form, merged, rows, scratch, plain, sums):
    """`finish` of one chunk, with room for as many float32 and rows."""
    if len(base):
        _apply(base, change, merged)
    else:
        merged[:] = change
    _round(merged, rows)
    sums[1] += _error_of_rounding(rows, merged, scratch)
    if len(base):
        sums[0] += _square(change)
        changed = _count_nonzero(change)
        _round(base, plain)
        sums[2] += changed
        sums[3] += changed - _count_differing(rows, plain, form[0])
    return _fit(rows, form[1])


@_exact
def finish(base, change, form, merged, rows, sums):
    """base + change into `merged`, unless that is empty, and rounded to the bits of `rows`; adds to `sums`: Σ change²,
    Σ error², how many elements changed, how many of them equal the rounded base. Returns whether all rows are finite."""
    count, finite = len(change), True
    scratch, plain, room = (
        np.empty(CHUNK, np.float32),
        np.empty(CHUNK, rows.dtype),
        np.empty(CHUNK, np.float32),
    )
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        size = stop - start
        finite &= _finish_part(
            base[start:stop],
            change[start:stop],
            form,
            merged[start:stop] if len(merged) else room[:size],
            rows[start:stop],
            scratch[:size],
            plain[:size],
            sums,
        )
    return finite


@_exact
def _keep_common_part(models, start, merged, same):
    size = len(merged)
    same[:size] = True
    first = models[0, start : start + size]
    for t in range(1, len(models)):
        other = models[t, start : start + size]
        for i in range(size):
            same[i] &= other[i] == first[i]
    for i in range(size):
        merged[i] = first[i] if same[i] else merged[i]


@_exact
def keep_common(models, merged):
    """Put the models' own value where all of them have the same."""
    same = np.empty(CHUNK, np.bool_)
    for start in range(0, len(merged), CHUNK):
        stop = min(start + CHUNK, len(merged))
        _keep_common_part(models, start, merged[start:stop], same)


@_exact
def add_up(stored, has_base, factors, scale, keeps_common, elects, rule, form, rows, sums, out):
    """All of a merge by factors [experts, n] or [experts, 1], from stored bits [m, n] to `rows`, in one sweep: adds to `sums`
    as `finish` does, and to `out` the `products`. `keeps_common`: see `keep_common`; where it `elects`, by a `rule`, see
    `elect`."""
    models, count = stored.shape
    values, wide = np.empty((models, CHUNK), np.float32), np.empty((len(out), CHUNK))
    votes, shares = np.empty((models, CHUNK), np.float32), np.empty((len(factors), CHUNK), np.float32)
    elected, divisor = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    merged, scratch, change = (
        np.empty(CHUNK, np.float32),
        np.empty(CHUNK, np.float32),
        np.empty(CHUNK, np.float32),
    )
    plain, same, finite = np.empty(CHUNK, rows.dtype), np.empty(CHUNK, np.bool_), True
    first = 1 if has_base else 0
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        size = stop - start
        moved, base = change[:size], values[0, : size * first]
        _take(stored, start, stop, has_base, values)
        _add_products(values, wide, 1 - first, size, out)
        if elects:
            _elect(
                factors, start, values[first:], 0, size, rule, votes, elected[:size], divisor[:size], shares
            )
            _sum_scaled(shares, 0, values[first:], 0, size, scale, moved)
        else:
            _sum_scaled(factors, start, values[first:], 0, size, scale, moved)
        if keeps_common:
            _keep_common_part(values, 0, moved, same)
        finite &= _finish_part(
            base, moved, form, merged[:size], rows[start:stop], scratch[:size], plain[:size], sums
        )
    _mirror(out)
    return finite


@_exact
def l1_norms(factors, stored, has_base, norms):
    """Σ|δ| and Σ|factor·δ| of every expert, into float64 [2, experts]."""
    values, sparse = np.empty((len(stored), CHUNK), np.float32), np.empty(CHUNK, np.float32)
    for start in range(0, stored.shape[1], CHUNK):
        stop, deltas = _take_changes(stored, start, has_base, values)
        mine = sparse[: stop - start]
        for t in range(norms.shape[1]):
            whole = deltas[t, : stop - start]
            _scaled(mine, _own(factors, t, start, stop), whole)
            norms[0, t] += _sum_of_magnitudes(whole)
            norms[1, t] += _sum_of_magnitudes(mine)


@_exact
def _cast_votes(factors, deltas, weight, frequency, votes, total):
    """One expert's votes, and their sum or the sum of their signs so far."""
    if frequency or weight != ONE:
        _scaled(votes, factors, deltas)
        for i in range(len(votes)):
            votes[i] *= weight
            total[i] += np.float32(_sign_of(votes[i])) if frequency else votes[i]
    elif len(factors) == 1:
        factor = np.float32(factors[0])
        for i in range(len(votes)):
            votes[i] = factor * deltas[i]
            total[i] += votes[i]
    else:
        for i in range(len(votes)):
            votes[i] = np.float32(factors[i]) * deltas[i]
            total[i] += votes[i]


@_exact
def _share(agreed, divisor, factors, coefficients):
    if len(factors) == 1:
        factor = np.float32(factors[0])
        for i in range(len(agreed)):
            coefficients[i] = factor * (agreed[i] / divisor[i])
    else:
        for i in range(len(agreed)):
            coefficients[i] = np.float32(factors[i]) * (agreed[i] / divisor[i])


@_exact
def _elect(factors, at, deltas, start, stop, rule, votes, elected, divisor, shares):
    """The coefficients of elements start to stop, whose factors begin at `at`, into `shares` [experts, CHUNK]; `votes`
    [experts, CHUNK], `elected` and `divisor` [size] are room."""
    vote_weight, weight, frequency, if_draw, normalize = rule
    size = stop - start
    elected[:] = ZERO
    for t in range(len(deltas)):
        mine = _own(factors, t, at, at + size)
        _cast_votes(mine, deltas[t, start:stop], vote_weight[t], frequency, votes[t, :size], elected)
    for i in range(size):
        value = elected[i]
        elected[i] = ONE if value > ZERO else -ONE if value < ZERO else if_draw
    divisor[:] = ZERO
    for t in range(len(deltas)):
        mine, own = votes[t, :size], weight[t]
        for i in range(size):
            mine[i] = np.float32(mine[i] * elected[i] > ZERO) * own
            divisor[i] += mine[i]
    for i in range(size):
        divisor[i] = divisor[i] if normalize and divisor[i] != ZERO else ONE
    for t in range(len(deltas)):
        _share(votes[t, :size], divisor, _own(factors, t, at, at + size), shares[t, :size])


@_exact
def elect(factors, deltas, rule, coefficients):
    """What `ops.elected_coefficients` says, into `coefficients` [experts, n]; factors are [experts, n] or [experts, 1]. The
    `rule` is (vote_weight [experts], weight [experts], frequency, if_draw, normalize)."""
    experts, count = deltas.shape
    votes, shares = np.empty((experts, CHUNK), np.float32), np.empty((experts, CHUNK), np.float32)
    elected, divisor = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        size = stop - start
        _elect(factors, start, deltas, start, stop, rule, votes, elected[:size], divisor[:size], shares)
        for t in range(experts):
            coefficients[t, start:stop] = shares[t, :size]


@_exact
def elected_sum(factors, deltas, rule, scale, change):
    """`weighted_sum` with the coefficients of `elect`, which are not kept."""
    experts, count = deltas.shape
    votes, shares = np.empty((experts, CHUNK), np.float32), np.empty((experts, CHUNK), np.float32)
    elected, divisor = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        size = stop - start
        _elect(factors, start, deltas, start, stop, rule, votes, elected[:size], divisor[:size], shares)
        _sum_scaled(shares, 0, deltas, start, stop, scale, change[start:stop])


@_exact
def balance(factors, stored, has_base, vote_weight):
    """Σ sign(Σ_t vote_t): by how many elements more go up than down."""
    values = np.empty((len(stored), CHUNK), np.float32)
    votes, total, found = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32), 0
    for start in range(0, stored.shape[1], CHUNK):
        stop, deltas = _take_changes(stored, start, has_base, values)
        size = stop - start
        total[:] = ZERO
        for t in range(len(vote_weight)):
            mine = _own(factors, t, start, stop)
            _cast_votes(mine, deltas[t, :size], vote_weight[t], False, votes[:size], total[:size])
        for i in range(size):
            found += _sign_of(total[i])
    return found


@_exact
def _count_equal_keys(keys, mask, threshold):
    count = 0
    for i in range(len(keys)):
        count += (keys[i] & mask) == threshold
    return count


@_exact
def _above(keys, mask, threshold, allowed, keep):
    """`above` for some keys of one row: how many of the equal are still allowed."""
    for i in range(len(keys)):
        keep[i] = (keys[i] & mask) > threshold
    tied = _count_equal_keys(keys, mask, threshold) if allowed else 0
    if tied <= allowed:
        if tied:
            for i in range(len(keys)):
                keep[i] = (keys[i] & mask) >= threshold
        return allowed - tied
    for i in range(len(keys)):
        if allowed and (keys[i] & mask) == threshold:
            keep[i] = True
            allowed -= 1
    return allowed


@_exact
def above(stored, has_base, rows, mask, thresholds, allowed, keep):
    """Where keys, masked first, are above the threshold of a cut, and the first `allowed` that equal it: into bool [cuts, n].
    Cut c looks at the float32 bits of `rows[c]`, be they an expert's change or already keys; `allowed` [cuts] is used up."""
    values = np.empty((len(stored), CHUNK), np.float32)
    for start in range(0, stored.shape[1], CHUNK):
        stop, deltas = _take_changes(stored, start, has_base, values)
        for c in range(len(rows)):
            keys = deltas[rows[c], : stop - start].view(np.int32)
            allowed[c] = _above(keys, mask, thresholds[c], allowed[c], keep[c, start:stop])


@_exact
def histogram(stored, has_base, mask, shift, below, counts):
    """Counts of the upper bits of keys, masked first, with `below` added: adds to int64 [rows, bins]."""
    values = np.empty((len(stored), CHUNK), np.float32)
    for start in range(0, stored.shape[1], CHUNK):
        stop, deltas = _take_changes(stored, start, has_base, values)
        for row in range(len(counts)):
            keys, mine = deltas[row, : stop - start].view(np.int32), counts[row]
            for i in range(len(keys)):
                digits = (keys[i] & mask) >> shift
                mine[np.uint32(digits + below)] += 1  # unsigned: nothing counts from the end


@_exact
def order_bits(values, keys):
    """Values as integers that order as they do, both 0 alike, in the bits of float32 `keys`."""
    for i in range(len(values)):
        keys[i] = values[i] + ZERO
    whole = keys.view(np.int32)
    for i in range(len(whole)):
        whole[i] ^= (whole[i] >> np.int32(31)) & np.int32(0x7FFFFFFF)


@_exact
def _any_within(keys, mask, low, span):
    found = False
    for i in range(len(keys)):
        found |= np.uint32((keys[i] & mask) - low) <= span
    return found


@_exact
def _count_keys_above(keys, mask, threshold):
    count = 0
    for i in range(len(keys)):
        count += (keys[i] & mask) > threshold
    return count


@_exact
def _within(keys, mask, low, span, inside, found):
    """`within` for some keys of one row, of which `found` were collected before: how many are now."""
    for start in range(0, len(keys), STRETCH):
        part = keys[start : min(start + STRETCH, len(keys))]
        if _any_within(part, mask, low, span):
            for i in range(len(part)):
                key = np.int32(part[i] & mask)
                inside[found] = key
                found += np.uint64(np.uint32(key - low) <= span)
    return found


@_exact
def within(stored, has_base, rows, mask, brackets, count_zeros, inside, found):
    """Collects the keys of each cut, masked first, that lie in its bracket (low, high) of int32 [cuts, 2] in int32 `inside`
    [cuts, n + 1]. Adds to uint64 `found` [3, cuts] how many these are, how many are above and, if asked for, how many are 0.
    Where few are in a bracket, most stretches of keys are only looked at. For `rows` see `above`."""
    values = np.empty((len(stored), CHUNK), np.float32)
    for start in range(0, stored.shape[1], CHUNK):
        stop, deltas = _take_changes(stored, start, has_base, values)
        for c in range(len(rows)):
            keys = deltas[rows[c], : stop - start].view(np.int32)
            low, high = brackets[c, 0], brackets[c, 1]
            if high != NOTHING:
                found[1, c] += np.uint64(_count_keys_above(keys, mask, high))
            if count_zeros[c]:
                found[2, c] += np.uint64(_count_equal_keys(keys, mask, np.int32(0)))
            found[0, c] = _within(keys, mask, low, np.uint32(high - low), inside[c], found[0, c])


@_exact
def survivors(uniform, limits, gains, factors):
    """A gain where a random number is below the limit, else 0; each has one limit and one gain for all [1], or one for each
    element [n]."""
    if len(limits) == 1:
        limit, gain = limits[0], gains[0]
        for i in range(len(uniform)):
            factors[i] = np.float32(uniform[i] < limit) * gain
    else:
        for i in range(len(uniform)):
            factors[i] = np.float32(uniform[i] < limits[i]) * gains[i]


@_exact
def _digit(key, number):
    return (key >> np.uint32(DIGIT_BITS * number)) & np.uint32(DIGITS - 1)


@_exact
def _sort_places(keys, other_keys, places, other_places, counts):
    """Puts into `places` [m] where the keys, uint32 below 2³¹, are in ascending order, equal ones by place: a radix sort,
    which leaves out digits that are all alike, such as the lowest of what two bfloat16 numbers differ by. `keys` and
    `other_keys` are used up, `other_places` [m] and `counts` [PASSES, DIGITS] are room."""
    size = len(keys)
    counts[:] = 0
    for i in range(size):
        places[i] = i
        for number in range(PASSES):
            counts[number, _digit(keys[i], number)] += 1
    source, target, swapped = places, other_places, False
    for number in range(PASSES):
        mine = counts[number]
        if mine[_digit(keys[0], number)] == size:
            continue
        total = np.uint32(0)
        for digit in range(DIGITS):
            mine[digit], total = total, np.uint32(total + mine[digit])
        for i in range(size):
            digit = _digit(keys[i], number)
            at = mine[digit]
            mine[digit] = np.uint32(at + 1)
            other_keys[at] = keys[i]
            target[at] = source[i]
        keys, other_keys = other_keys, keys
        source, target = target, source
        swapped = not swapped
    if swapped:
        places[:] = other_places


@_exact
def order_in_rows(stored, has_base, order):
    """Where in its row the element of each rank by |δ| is, the largest first, equal ones by place: int32 [experts, rows, m]."""
    experts, rows, columns = order.shape
    first, values = 1 if has_base else 0, np.empty((len(stored), CHUNK), np.float32)
    keys, other_keys = np.empty((experts, columns), np.uint32), np.empty(columns, np.uint32)
    other_places, counts = np.empty(columns, np.int32), np.empty((PASSES, DIGITS), np.uint32)
    for row in range(rows if columns else 0):
        for start in range(0, columns, CHUNK):
            stop = min(start + CHUNK, columns)
            _take(stored, row * columns + start, row * columns + stop, has_base, values)
            for t in range(experts):
                bits, mine = values[first + t, : stop - start].view(np.uint32), keys[t, start:stop]
                for i in range(len(bits)):
                    mine[i] = ~bits[i] & MAGNITUDE
        for t in range(experts):
            _sort_places(keys[t], other_keys, order[t, row], other_places, counts)


@_exact
def ranked_survivors(order, uniform, limits, gains, factors):
    """`survivors` of rows whose limits and gains are those of an element's rank: `order[r]` is where rank r is."""
    for row in range(len(order)):
        for rank in range(order.shape[1]):
            place = np.uint32(order[row, rank])  # unsigned: nothing counts from the end
            factors[row, place] = np.float32(uniform[row, place] < limits[rank]) * gains[rank]


@_exact
def _mixed(word):
    """MurmurHash3's finaliser, modulo 2³²: numba widens what it computes with whole numbers."""
    word = np.uint32(np.uint32(word ^ (word >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    word = np.uint32(np.uint32(word ^ (word >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(word ^ (word >> np.uint32(16)))


@_exact
def words(first_key, second_key, low, out):
    """`noise.uniform` of the elements `low` on, into uint32 [n]."""
    for i in range(len(out)):
        word = _mixed(np.uint32(np.uint32(low + i) ^ first_key))
        out[i] = _mixed(np.uint32(word ^ second_key)) >> np.uint32(8)


@_exact
def _is_present(factors, code):
    """Sets a code to 1 where a factor, one for all [1] or one each [n], is not 0, else to 0."""
    if len(factors) == 1:
        code[:] = factors[0] != ZERO
    else:
        for i in range(len(code)):
            code[i] = factors[i] != ZERO


@_exact
def _raise_code(code, at, condition):
    """One more where the code is `at` and a condition holds."""
    for i in range(len(code)):
        code[i] += (code[i] == at) & condition[i]


@_exact
def _same_sign(one, two, found):
    first, second = one.view(np.uint32), two.view(np.uint32)
    for i in range(len(first)):
        found[i] = (first[i] ^ second[i]) >> np.uint32(31) == 0


@_summing
def _sum_where(code, kind, squares):
    total = 0.0
    for i in range(len(code)):
        total += squares[i] * np.float64(code[i] == kind)
    return total


@_exact
def fates(deltas, coefficients, sparse, weight, change, written, energy):
    """Adds each expert's δ² by fate to `energy` [experts, fates]; `written` says where the output differs from the cast base."""
    experts, count = deltas.shape
    code, condition = np.empty(CHUNK, np.uint8), np.empty(CHUNK, np.bool_)
    squares = np.empty(CHUNK)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        size = stop - start
        mine, met = code[:size], condition[:size]
        for t in range(experts):
            part = deltas[t, start:stop]
            for i in range(size):
                squares[i] = np.float64(part[i]) * np.float64(part[i])
            if weight[t] == ZERO:
                mine[:] = 0
            else:
                _is_present(_own(sparse, t, start, stop), mine)
            _is_present(_own(coefficients, t, start, stop), met)
            _raise_code(mine, 1, met)
            _raise_code(mine, 2, written[start:stop])
            _same_sign(part, change[start:stop], met)
            _raise_code(mine, 3, met)
            for kind in range(energy.shape[1]):
                energy[t, kind] += _sum_where(mine, kind, squares[:size])


@_exact
def along(deltas, change, sums):
    """Σ Δ² of the merged change, then Σ Δ·δ of every expert: adds to float64 [1 + experts]. Returns how many of it are not
    0."""
    experts, count = deltas.shape
    wide, other, changed = np.empty(CHUNK), np.empty(CHUNK), 0
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        size = stop - start
        _widen(change[start:stop], wide[:size])
        changed += _count_nonzero(change[start:stop])
        sums[0] += _dot(wide[:size], wide[:size])
        for t in range(experts):
            _widen(deltas[t, start:stop], other[:size])
            sums[1 + t] += _dot(wide[:size], other[:size])
    return changed


@_summing
def _sum(values):
    total = 0.0
    for i in range(len(values)):
        total += np.float64(values[i])
    return total


@_exact
def spread(deltas, shift, totals, masses, largest, counts):
    """Adds Σδ, Σ|δ| and counts of the upper magnitude bits of every expert to arrays [experts], the last [experts, bins];
    `largest` becomes max|δ| as bits."""
    experts, count = deltas.shape
    for t in range(experts):
        mine = counts[t]
        for start in range(0, count, CHUNK):
            part = deltas[t, start : min(start + CHUNK, count)]
            bits = part.view(np.uint32)
            totals[t] += _sum(part)
            masses[t] += _sum_of_magnitudes(part)
            largest[t] = max(largest[t], _largest_magnitude(bits))
            for i in range(len(bits)):
                mine[(bits[i] & MAGNITUDE) >> shift] += 1


@_exact
def sign_patterns(deltas, counts):
    """Adds how often each Σ_t (sign_t + 1)·3^t occurs to int64 [3^experts]."""
    experts, count = deltas.shape
    number = np.empty(CHUNK, np.int32)
    for start in range(0, count, CHUNK):
        part = number[: min(CHUNK, count - start)]
        part[:] = 0
        power = np.int32(1)
        for t in range(experts):
            values = deltas[t, start : start + len(part)]
            for i in range(len(part)):
                part[i] += np.int32(_sign_of(values[i]) + 1) * power
            power = np.int32(power * 3)
        for i in range(len(part)):
            counts[part[i]] += 1


@_summing
def _sum_of_shared(values, changed):
    total = 0.0
    for i in range(len(values)):
        total += np.float64(abs(values[i])) * np.float64(changed[i] > 1)
    return total


@_exact
def masses(deltas, flips, sums):
    """Over the elements that at least two experts changed adds Σ Σ_t|δ_t|, Σ|Σ_t δ_t| and Σ|Σ_t flip_t·|δ_t|| to `sums`."""
    experts, count = deltas.shape
    gross, net, chance = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    changed = np.empty(CHUNK, np.int32)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        gross[:] = ZERO
        net[:] = ZERO
        chance[:] = ZERO
        changed[:] = 0
        for t in range(experts):
            values, turned = deltas[t, start : start + size], flips[t, start : start + size]
            for i in range(size):
                value = values[i]
                gross[i] += abs(value)
                net[i] += value
                chance[i] += turned[i] * abs(value)
                changed[i] += value != ZERO
        sums[0] += _sum_of_shared(gross[:size], changed)
        sums[1] += _sum_of_shared(net[:size], changed)
        sums[2] += _sum_of_shared(chance[:size], changed)


@_exact
def differ(one, two, sign, found):
    """Where two arrays of numbers, as bits, differ: into bool [n]; see `_is_different`."""
    for i in range(len(found)):
        found[i] = _is_different(one[i], two[i], sign)


@_summing
def _square_where_equal(change, differs):
    total = 0.0
    for i in range(len(change)):
        total += np.float64(change[i]) * np.float64(change[i]) * np.float64(not differs[i])
    return total


@_exact
def _count_equal(change, differs):
    count = 0
    for i in range(len(change)):
        count += (change[i] != ZERO) & (not differs[i])
    return count


@_exact
def losses(change, differs, lost, energy):
    """Of a merged change that some dtypes put back to the base's value where they do not differ, bool [dtypes, n]: adds how
    many elements that are to `lost` and their Δ² to `energy`, both [dtypes]."""
    for start in range(0, len(change), CHUNK):
        part = change[start : min(start + CHUNK, len(change))]
        for dtype in range(len(differs)):
            mine = differs[dtype, start : start + len(part)]
            lost[dtype] += _count_equal(part, mine)
            energy[dtype] += _square_where_equal(part, mine)


@_exact
def outliers(stored, has_base, limits, counts):
    """How many |δ| of every expert exceed each of its limits: adds to int64 [limits, experts]."""
    values = np.empty((len(stored), CHUNK), np.float32)
    for start in range(0, stored.shape[1], CHUNK):
        stop, deltas = _take_changes(stored, start, has_base, values)
        for row in range(len(limits)):
            for t in range(counts.shape[1]):
                counts[row, t] += _count_above(deltas[t, : stop - start], limits[row, t])


@_exact
def _count_above(values, limit):
    count = 0
    for i in range(len(values)):
        count += np.float64(abs(values[i])) > limit
    return count


@_exact
def _expm1(values, power, room):
    """e^x − 1 of float64 values from 0 to 700 in place, to the last digit or two: 2^k·e^r − 1 with |r| ≤ ln 2 / 2."""
    bits = room.view(np.int64)
    for i in range(len(values)):
        power[i] = np.floor(values[i] * LOG2E + 0.5)
        values[i] = (values[i] - power[i] * LN2_HIGH) - power[i] * LN2_LOW
    for i in range(len(values)):
        r = values[i]
        high = ((((F13 * r + F12) * r + F11) * r + F10) * r + F9) * r + F8
        low = ((((high * r + F7) * r + F6) * r + F5) * r + F4) * r + F3
        values[i] = r + r * r * (low * r + F2)
    for i in range(len(values)):
        bits[i] = (np.int64(power[i]) + 1023) << 52
    for i in range(len(values)):
        values[i] = room[i] * values[i] + (room[i] - 1.0)


@_exact
def _series_of_tanh(x):
    square = x * x
    return x + x * square * (T3 + square * (T5 + square * T7))


@_exact
def _tanh(values, room, power, more):
    """tanh of float64 values in place: a series where they are small, which changes mostly are; else by e^2x."""
    small = True
    for i in range(len(values)):
        small &= abs(values[i]) < SMALL
    if small:
        for i in range(len(values)):
            values[i] = _series_of_tanh(values[i])
        return
    for i in range(len(values)):
        room[i] = min(2.0 * abs(values[i]), MOST_TANH)
    _expm1(room, power, more)
    for i in range(len(values)):
        x = values[i]
        large = room[i] / (room[i] + 2.0)
        values[i] = _series_of_tanh(x) if abs(x) < SMALL else -large if x < 0.0 else large


@_exact
def _minmax(value, low, span):
    return (value - low) / span if span > 0.0 else 0.0


@_exact
def _clipped(value, low, high):
    return min(max(abs(value), low), high)


@_exact
def competition(stored, has_base, lower, upper, scores):
    """PCB's score β of every change, into float32 [experts, n]; see `methods.pcb.Clipped.score`."""
    experts = len(scores)
    values = np.empty((len(stored), CHUNK), np.float32)
    wide, total = np.empty((experts, CHUNK)), np.empty(CHUNK)
    value, power, room, agreement = np.empty(CHUNK), np.empty(CHUNK), np.empty(CHUNK), np.empty(CHUNK)
    for start in range(0, stored.shape[1], CHUNK):
        stop, deltas = _take_changes(stored, start, has_base, values)
        size = stop - start
        sum_, one, two, three, agree = total[:size], value[:size], power[:size], room[:size], agreement[:size]
        sum_[:] = 0.0
        for t in range(experts):
            mine = wide[t, :size]
            _widen(deltas[t, :size], mine)
            for i in range(size):
                sum_[i] += mine[i]
        for t in range(experts):
            mine, out = wide[t, :size], scores[t, start:stop]
            for i in range(size):
                agree[i] = mine[i] * sum_[i]
            _tanh(agree, one, two, three)
            low, span = lower[t], upper[t] - lower[t]
            for i in range(size):
                part = _minmax(_clipped(mine[i], low, upper[t]), low, span)
                one[i] = experts * (part * part)
            _expm1(one, two, three)
            for i in range(size):
                out[i] = (one[i] + 1.0) * agree[i]


@_exact
def competing(scores, stored, has_base, bounds, weight, coefficients):
    """PCB's coefficients from its scores, into float32 [experts, n]; `bounds` are lower and upper of |δ|, threshold and top
    of β: float64 [4, experts]. See `methods.pcb.Pcb.coefficients`."""
    experts = len(scores)
    values = np.empty((len(stored), CHUNK), np.float32)
    shares, total = np.empty((experts, CHUNK)), np.empty(CHUNK)
    for start in range(0, stored.shape[1], CHUNK):
        stop, deltas = _take_changes(stored, start, has_base, values)
        size = stop - start
        sum_ = total[:size]
        sum_[:] = 0.0
        for t in range(experts):
            part, mine = shares[t, :size], scores[t, start:stop]
            low, span = bounds[2, t], bounds[3, t] - bounds[2, t]
            for i in range(size):
                part[i] = _minmax(max(np.float64(mine[i]), low), low, span)
                sum_[i] += part[i]
        for i in range(size):
            sum_[i] = max(sum_[i], TINY)
        for t in range(experts):
            part, mine = shares[t, :size], deltas[t, :size]
            out = coefficients[t, start:stop]
            low, high, own = bounds[0, t], bounds[1, t], np.float64(weight[t])
            for i in range(size):
                value = abs(np.float64(mine[i]))
                clip = min(max(value, low), high) / value if value > 0.0 else 0.0
                out[i] = part[i] / sum_[i] * clip * own


@_exact
def graded(keep, factors, largest, out):
    """DPPA's factor of every change, into float32 [experts, n]: that of the strictest level that keeps it or, if `largest`,
    the largest of those that do. Levels go from strict to loose, `keep` is bool [experts · levels, n]."""
    levels = len(factors)
    for t in range(len(out)):
        mine = out[t]
        mine[:] = ZERO
        for level in range(levels - 1, -1, -1):
            kept, factor = keep[t * levels + level], factors[level]
            if largest:
                for i in range(len(mine)):
                    mine[i] = factor if kept[i] & (abs(factor) >= abs(mine[i])) else mine[i]
            else:
                for i in range(len(mine)):
                    mine[i] = factor if kept[i] else mine[i]


@_exact
def add_low_rank(left, right, scale, total):
    """Add scale·L·R to total [rows, columns], of L [rows, rank] and R [rank, columns]."""
    change = np.empty(right.shape[1], np.float32)
    for row in range(len(left)):
        change[:] = ZERO
        for number in range(len(right)):
            factor = left[row, number]
            for i in range(len(change)):
                change[i] += factor * right[number, i]
        for i in range(len(change)):
            total[row, i] += scale * change[i]
