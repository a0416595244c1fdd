"""The loops that a merge on a CPU spends its time in, compiled by numba where that is installed.

Each does in one sweep what takes `ops` several, chunk by chunk in what stays in a core's first cache, without the
interpreter's lock. `ops.loops` says whether they are there, and beside every use stands the reference in torch: results that
become weights have the same bits (products and sums are rounded one by one, in the same order), sums for people the same
digits but for the last.

Values come as contiguous NumPy views of float32 tensors: base [n] (empty for none), deltas [experts, n], and factors
[experts, n] or, of one for all elements, [experts, 1].
"""

from __future__ import annotations

import numba
import numpy as np

CHUNK = 1024
"""Elements worked on at once: with all that is made of three experts' less than half of a first cache."""
SIGN = np.uint32(0x80000000)
MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITE = np.uint32(0x7F800000)
BF16_INFINITE = np.uint16(0x7F80)
BF16_NAN = np.uint32(0x7FC0)
HALF = np.uint32(0x7FFF)
LOW = np.uint32(16)
ZERO, ONE = np.float32(0), np.float32(1)


_exact = numba.njit(nogil=True, cache=True, error_model="numpy")
"""For results that become weights: every operation is rounded as IEEE 754 says, and none is moved."""
_summing = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
"""For sums in any order, so that they are taken several terms at a time."""


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
def products(base, deltas, out):
    """Σx·y of base and deltas, all with all: float64 [1 + experts, 1 + experts], 0 for a base that is empty."""
    experts, count = deltas.shape
    wide = np.zeros((1 + experts, CHUNK))
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        first = 1
        if len(base):
            _widen(base[start : start + size], wide[0, :size])
            first = 0
        for t in range(experts):
            _widen(deltas[t, start : start + size], wide[1 + t, :size])
        for a in range(first, 1 + experts):
            for b in range(a, 1 + experts):
                out[a, b] += _dot(wide[a, :size], wide[b, :size])
    for a in range(1 + experts):
        for b in range(a):
            out[a, b] = out[b, a]


@_exact
def _of(factors, expert, start, stop):
    """An expert's factors of some elements: [stop - start], or [1] for all."""
    return factors[expert, start:stop] if factors.shape[1] > 1 else factors[expert]


@_exact
def _sign(value):
    return np.int32(value > ZERO) - np.int32(value < ZERO)


@_exact
def _scaled(change, factors, deltas):
    if len(factors) == 1:
        factor = factors[0]
        for i in range(len(change)):
            change[i] = factor * deltas[i]
    else:
        for i in range(len(change)):
            change[i] = factors[i] * deltas[i]


@_exact
def _add_scaled(change, factors, deltas):
    if len(factors) == 1:
        factor = factors[0]
        for i in range(len(change)):
            change[i] += factor * deltas[i]
    else:
        for i in range(len(change)):
            change[i] += factors[i] * deltas[i]


@_exact
def weighted_sum(factors, deltas, scale, change):
    """scale·Σ_t factor_t·δ_t into `change` [n]; factors are [experts, n] or [experts, 1]."""
    experts, count = deltas.shape
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        part = change[start:stop]
        for t in range(experts):
            mine = _of(factors, t, start, stop)
            if t == 0:
                _scaled(part, mine, deltas[t, start:stop])
            else:
                _add_scaled(part, mine, deltas[t, start:stop])
        if scale != ONE:
            for i in range(len(part)):
                part[i] *= scale


@_exact
def _apply(base, change, merged):
    for i in range(len(change)):
        merged[i] = base[i] - (ZERO - change[i])


@_exact
def _round_bf16(bits, rows):
    for i in range(len(bits)):
        value = bits[i]
        odd = np.uint32(np.uint32(value >> LOW) & np.uint32(1))
        rounded = np.uint32(np.uint32(value + np.uint32(HALF + odd)) >> LOW)
        rows[i] = np.uint16(BF16_NAN if np.uint32(value & MAGNITUDE) > INFINITE else rounded)


@_exact
def _largest_magnitude(bits):
    largest = np.uint32(0)
    for i in range(len(bits)):
        largest = max(largest, bits[i] & MAGNITUDE)
    return largest


@_summing
def _square(values):
    total = 0.0
    for i in range(len(values)):
        total += np.float64(values[i]) * np.float64(values[i])
    return total


@_summing
def _error_of_bf16(rows, merged, scratch):
    bits = scratch.view(np.uint32)
    for i in range(len(rows)):
        bits[i] = np.uint32(rows[i]) << LOW
    total = 0.0
    for i in range(len(rows)):
        error = np.float64(scratch[i] - merged[i])
        total += error * error
    return total


@_exact
def _count_nonzero(values):
    count = 0
    for i in range(len(values)):
        count += values[i] != ZERO
    return count


@_exact
def _differ(one, two, sign):
    """Whether the bits of two numbers differ, 0 and −0 being equal; `sign` is the sign's bit."""
    return (one != two) & (((one | two) & ~sign) != 0)


@_exact
def _count_differing(one, two, sign):
    count = 0
    for i in range(len(one)):
        count += _differ(one[i], two[i], sign)
    return count


@_exact
def finish_bf16(base, change, merged, rows, sums):
    """base + change into `merged`, rounded to the bits of bfloat16 in `rows`; adds to `sums`: Σ change², Σ error², how many
    elements changed, how many of them equal the rounded base. Returns whether all rows are finite."""
    count = len(change)
    scratch, plain = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.uint16)
    finite = True
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        part, moved, out = merged[start:stop], change[start:stop], rows[start:stop]
        if len(base):
            _apply(base[start:stop], moved, part)
        else:
            part[:] = moved
        _round_bf16(part.view(np.uint32), out)
        finite &= _fit_bf16(out)
        sums[1] += _error_of_bf16(out, part, scratch[: len(out)])
        if len(base):
            sums[0] += _square(moved)
            changed = _count_nonzero(moved)
            _round_bf16(base[start:stop].view(np.uint32), plain[: len(out)])
            sums[2] += changed
            sums[3] += changed - _count_differing(out, plain[: len(out)], np.uint16(0x8000))
    return finite


@_exact
def _fit_bf16(rows):
    largest = np.uint16(0)
    for i in range(len(rows)):
        largest = max(largest, rows[i] & BF16_INFINITE)
    return largest < BF16_INFINITE


@_exact
def finish_float32(base, change, merged, sums):
    """base + change into `merged`, which is also what is written; see `finish_bf16`."""
    count, finite = len(change), True
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        part, moved = merged[start:stop], change[start:stop]
        if len(base):
            _apply(base[start:stop], moved, part)
            sums[0] += _square(moved)
            changed = _count_nonzero(moved)
            sums[2] += changed
            written = _count_differing(part.view(np.uint32), base[start:stop].view(np.uint32), SIGN)
            sums[3] += changed - written
        else:
            part[:] = moved
        finite &= _largest_magnitude(part.view(np.uint32)) < INFINITE
    return finite


@_exact
def _cast_votes(factors, deltas, weight, votes):
    _scaled(votes, factors, deltas)
    if weight != ONE:
        for i in range(len(votes)):
            votes[i] *= weight


@_exact
def _count_votes(votes, frequency, total):
    if frequency:
        for i in range(len(total)):
            total[i] += _sign(votes[i])
    else:
        for i in range(len(total)):
            total[i] += votes[i]


@_exact
def _agree(votes, elected, weight, coefficients):
    for i in range(len(votes)):
        coefficients[i] = np.float32(votes[i] * elected[i] > ZERO) * weight


@_exact
def _divide(values, divisor):
    for i in range(len(values)):
        values[i] /= divisor[i]


@_exact
def elect(factors, deltas, vote_weight, weight, frequency, if_draw, normalize, coefficients):
    """What `ops.elected_coefficients` says, into `coefficients` [experts, n]; factors are [experts, n] or [experts, 1]."""
    experts, count = deltas.shape
    votes, total = np.empty((experts, CHUNK), np.float32), np.empty(CHUNK, np.float32)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        size = stop - start
        elected = total[:size]
        elected[:] = ZERO
        for t in range(experts):
            mine = _of(factors, t, start, stop)
            _cast_votes(mine, deltas[t, start:stop], vote_weight[t], votes[t, :size])
            _count_votes(votes[t, :size], frequency, elected)
        for i in range(size):
            value = elected[i]
            elected[i] = ONE if value > ZERO else -ONE if value < ZERO else if_draw
        for t in range(experts):
            _agree(votes[t, :size], elected, weight[t], coefficients[t, start:stop])
        if normalize:
            divisor = elected
            divisor[:] = coefficients[0, start:stop]
            for t in range(1, experts):
                part = coefficients[t, start:stop]
                for i in range(size):
                    divisor[i] += part[i]
            for i in range(size):
                divisor[i] = divisor[i] if divisor[i] != ZERO else ONE
            for t in range(experts):
                _divide(coefficients[t, start:stop], divisor)
        for t in range(experts):
            part = coefficients[t, start:stop]
            _scaled(part, _of(factors, t, start, stop), part)


@_exact
def balance(factors, deltas, vote_weight):
    """Σ sign(Σ_t vote_t): by how many elements more go up than down."""
    experts, count = deltas.shape
    votes, total, found = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32), 0
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        size = stop - start
        total[:] = ZERO
        for t in range(experts):
            mine = _of(factors, t, start, stop)
            _cast_votes(mine, deltas[t, start:stop], vote_weight[t], votes[:size])
            _count_votes(votes[:size], False, total[:size])
        for i in range(size):
            found += _sign(total[i])
    return found


@_exact
def above(keys, mask, threshold, keep):
    """Where keys, masked first, are above a threshold: into bool [n]."""
    for i in range(len(keys)):
        keep[i] = (keys[i] & mask) > threshold


@_exact
def histogram(deltas, shift, counts):
    """Counts of the upper magnitude bits of every expert's change: adds to int64 [experts, bins]."""
    for t in range(len(deltas)):
        bits, mine = deltas[t].view(np.uint32), counts[t]
        for i in range(len(bits)):
            mine[(bits[i] & MAGNITUDE) >> shift] += 1


@_exact
def keep_tied(keys, mask, threshold, allowed, keep):
    """Keep the first `allowed` elements whose keys, masked first, equal the threshold: sets bool [n]."""
    for i in range(len(keys)):
        if (keys[i] & mask) == threshold:
            keep[i] = True
            allowed -= 1
            if not allowed:
                return


@_exact
def in_bin(keys, mask, shift, chosen, found):
    """The keys, masked first, whose upper bits are `chosen`, into `found`; returns how many they are."""
    count = 0
    for i in range(len(keys)):
        key = keys[i] & mask
        found[count] = key
        count += (key >> shift) == chosen
    return count


@_summing
def _sum_of_magnitudes(values):
    total = 0.0
    for i in range(len(values)):
        total += np.float64(abs(values[i]))
    return total


@_exact
def l1_norms(factors, deltas, norms):
    """Σ|factor·δ| of every expert, into float64 [experts]."""
    experts, count = deltas.shape
    sparse = np.empty(CHUNK, np.float32)
    for t in range(experts):
        for start in range(0, count, CHUNK):
            stop = min(start + CHUNK, count)
            mine = _of(factors, t, start, stop)
            _scaled(sparse[: stop - start], mine, deltas[t, start:stop])
            norms[t] += _sum_of_magnitudes(sparse[: stop - start])


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
def rank_keys(rows, keys):
    """What sorts each row as |δ| does, the largest first, with the index below: uint64 [rows, m]."""
    for row in range(len(rows)):
        bits, mine = rows[row].view(np.uint32), keys[row]
        for i in range(len(bits)):
            mine[i] = (np.uint64(~bits[i] & MAGNITUDE) << np.uint64(32)) | np.uint64(i)


@_exact
def ranked_survivors(order, uniform, limits, gains, factors):
    """`survivors` of rows whose limits and gains are those of an element's rank: `order[r]` is where rank r is."""
    for row in range(len(order)):
        for rank in range(order.shape[1]):
            place = order[row, rank]
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
                _is_present(_of(sparse, t, start, stop), mine)
            _is_present(_of(coefficients, t, start, stop), met)
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


@_exact
def keep_common(models, merged):
    """Put the models' own value where all of them have the same."""
    same = np.empty(CHUNK, np.bool_)
    for start in range(0, len(merged), CHUNK):
        stop = min(start + CHUNK, len(merged))
        size = stop - start
        first, part = models[0, start:stop], merged[start:stop]
        same[:size] = True
        for t in range(1, len(models)):
            other = models[t, start:stop]
            for i in range(size):
                same[i] &= other[i] == first[i]
        for i in range(size):
            part[i] = first[i] if same[i] else part[i]


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
                part[i] += np.int32(_sign(values[i]) + 1) * power
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
    """Where two arrays of numbers, as bits, differ: into bool [n]; see `_differ`."""
    for i in range(len(found)):
        found[i] = _differ(one[i], two[i], sign)


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
