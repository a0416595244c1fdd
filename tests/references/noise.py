"""The counter-based random numbers in plain Python integers."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

WORD = 0xFFFFFFFF


def mix(word):
    """MurmurHash3's finaliser for 32 bits."""
    word ^= word >> 16
    word = word * 0x85EBCA6B & WORD
    word ^= word >> 13
    word = word * 0xC2B2AE35 & WORD
    return word ^ word >> 16


def key(seed, expert, tensor):
    """Two words from seed, position among the experts (from 0) and the output tensor's name."""
    digest = blake2b(f"{seed}/{expert}/{tensor}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def word(index, key):
    low, high = index & WORD, index >> 32
    return mix(mix(low ^ key[0] ^ (high * 0x9E3779B9 & WORD)) ^ key[1])


def keep_mask(keep, seed, expert, tensor):
    """Which elements of a tensor are kept: `keep` is the probability of each, in flat order."""
    own = key(seed, expert, tensor)
    kept = [word(i, own) >> 8 < round(float(share) * 2**24) for i, share in enumerate(keep)]
    return np.array(kept, dtype=bool)
