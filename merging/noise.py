"""Random numbers that belong to an element, not to a moment: the same for any device, order, block size and worker.

The word of an element is a hash of where it is. With h = BLAKE2b-64 of "seed/expert/tensor" read as two little-endian
32-bit words k0, k1, with i the element's row-major index in the whole tensor, i = low + 2³²·high, and with mix the
finaliser of MurmurHash3 (x ^= x≫16; x *= 0x85EBCA6B; x ^= x≫13; x *= 0xC2B2AE35; x ^= x≫16, modulo 2³²):

    word = mix(mix(low ^ k0 ^ (high·0x9E3779B9)) ^ k1),   u = word ≫ 8

so u is uniform over 24 bits, and an element is kept if u < round(keep·2²⁴). Test vectors: seed 0, expert 0, tensor
"w": u of the elements 0 to 3 is 13245866, 15558548, 15262340, 11673480.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from merging import ops
from merging.devices import settle
from merging.pieces import Piece

ONE = 1 << 24
"""The number of values u can take: a keep probability of 1."""
MULTIPLIERS = (0x85EBCA6B, 0xC2B2AE35)
SHIFTS = (16, 13, 16)
HIGH = 0x9E3779B9
WORD = 1 << 32
CHUNK = 1 << 17
"""Elements made at once: what stays in the cache."""
DEVICE_CHUNK = 1 << 30
"""The same on a GPU: every operation has to be told, and there is no such cache."""
FLIPS = 1 << 18
"""Elements after which a tensor's coin flips repeat."""
COINS = 24
"""Coins in one u."""


def key(seed: int, expert: int, tensor: str) -> tuple[int, int]:
    """The two key words of a stream; `expert` is the position among the models other than the base, from 0."""
    digest = hashlib.blake2b(f"{seed}/{expert}/{tensor}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def uniform(
    seed: int, expert: int, tensor: str, start: int, count: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """u of the elements `start` to `start + count` of a tensor: int32 in [0, 2²⁴)."""
    word = _on_cpu if torch.device(device).type == "cpu" else _on_device
    k0, k1 = key(seed, expert, tensor)
    return word(k0, k1, start, count, torch.device(device))


def _on_cpu(k0: int, k1: int, start: int, count: int, device: torch.device) -> torch.Tensor:
    """`uniform` by a compiled loop, or by NumPy, whose unsigned shifts save an operation each."""
    words = np.empty(count, dtype=np.uint32)
    for high, low, place in _runs(start, count):
        part, keys = words[place], _keys(k0, k1, high)
        if ops.loops() is not None:
            ops.loops().words(*map(np.uint32, (*keys, low)), part)
        else:
            part[:] = np.arange(len(part), dtype=np.uint32) + np.uint32(low)
            _mix(part[None], [keys], np.uint32, np.right_shift)
            part >>= 8
    return torch.from_numpy(words.view(np.int32))


def _on_device(k0: int, k1: int, start: int, count: int, device: torch.device) -> torch.Tensor:
    return _rows_on_device([(k0, k1)], start, count, device)[0]


def _rows_on_device(
    keys: Sequence[tuple[int, int]], start: int, count: int, device: torch.device
) -> torch.Tensor:
    """`uniform` of several experts [experts, count] by torch, whose int32 arithmetic wraps as unsigned does."""
    words = torch.empty(len(keys), count, dtype=torch.int32, device=device)
    for high, low, place in _runs(start, count, DEVICE_CHUNK):
        part = words[:, place]
        part.copy_(torch.arange(part.shape[1], dtype=torch.int32, device=device) + _signed(low))
        each = [_keys(*pair, high) for pair in keys]
        _mix(part, each, _signed, lambda x, by: (x >> by) & ((1 << (32 - by)) - 1))
        part.bitwise_right_shift_(8).bitwise_and_(ONE - 1)
    return words


def _keys(k0: int, k1: int, high: int) -> tuple[int, int]:
    return k0 ^ (high * HIGH % WORD), k1


def _mix(
    words: Any,
    keys: Sequence[tuple[int, int]],
    number: Callable[[int], Any],
    shift: Callable[[Any, int], Any],
) -> None:
    """XOR each key of its row in and apply MurmurHash3's finaliser to words [rows, n], in place, in the arithmetic of an
    array's own kind."""
    for each in zip(*keys, strict=True):
        for row, key in zip(words, each, strict=True):
            row ^= number(key)
        for by, multiplier in zip(SHIFTS, (*MULTIPLIERS, None), strict=True):
            words ^= shift(words, by)
            if multiplier is not None:
                words *= number(multiplier)


def _runs(start: int, count: int, most: int = CHUNK) -> Iterator[tuple[int, int, slice]]:
    """Elements `start` to `start + count` in runs of at most `most` with one `high`: that, the first `low`, and where the
    run lies."""
    done = 0
    while done < count:
        high, low = divmod(start + done, WORD)
        size = min(most, count - done, WORD - low)
        yield high, low, slice(done, done + size)
        done += size


def piece_uniform(piece: Piece, seed: int) -> torch.Tensor:
    """u of every element of a piece for every expert: int32 [experts, *shape]."""
    shape, count = piece.shape, piece.elements
    start = _first_element(piece)

    def make() -> torch.Tensor:
        if piece.device.type != "cpu":
            keys = [key(seed, expert, piece.name) for expert in range(piece.experts)]
            return _rows_on_device(keys, start, count, piece.device).view(shape)
        return torch.stack(
            [
                uniform(seed, expert, piece.name, start, count, piece.device).view(shape[1:])
                for expert in range(piece.experts)
            ]
        )

    return piece.remember("uniform", seed, make)


def coin_flips(piece: Piece, count: int, seed: int) -> torch.Tensor:
    """+1 or −1 at random for `count` experts at every element of a piece: float32 [count, elements].

    They repeat after `FLIPS` elements, so that they are drawn once; every tensor begins at another place, so that many
    small ones do not all have the same.
    """
    elements = piece.elements
    begin = (key(seed, 0, piece.name)[0] + _first_element(piece)) % FLIPS
    flips = _flips(count, seed, piece.device, 1 + (begin + elements) // FLIPS)
    return flips[:, begin : begin + elements]


@lru_cache(maxsize=8)
def _flips(count: int, seed: int, device: torch.device, times: int) -> torch.Tensor:
    """Each element has one u for every `COINS` experts, whose bits are their coins; all of it so many times."""
    if times > 1:
        flips = _flips(count, seed, device, 1).repeat(1, times)
    else:
        words = [uniform(seed, first, "coins", 0, FLIPS, device) for first in range(0, count, COINS)]
        flips = torch.stack([1.0 - 2.0 * ((words[t // COINS] >> t % COINS) & 1) for t in range(count)])
    settle(device)
    return flips


def _first_element(piece: Piece) -> int:
    """The row-major index of a piece's first element in its tensor."""
    shape = piece.shape
    return piece.start * (piece.elements // shape[1] if len(shape) > 1 and shape[1] else 1)


def threshold(keep: float) -> int:
    """The whole number that u must be below for an element to be kept with probability `keep`."""
    return round(keep * ONE)


def _signed(word: int) -> int:
    return word - WORD if word >= WORD // 2 else word
