"""PCB-Merging (2410.02396) in its three variants, over one scope of d elements."""

from __future__ import annotations

import numpy as np


def minmax(values):
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def softmax(values):
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def at(values, index):
    """The element of that index in sorted order, the index kept within the vector."""
    return np.sort(values)[min(max(index, 0), len(values) - 1)]


def clamp(delta, q):
    """|δ| winsorised at its quantiles q and 1 − q."""
    size, d = np.abs(delta), len(delta)
    return np.clip(size, at(size, int(d * q)), at(size, int(d * (1 - q) - 1)))


def balances(deltas, variant):
    """β of every expert, [experts, d]."""
    experts = len(deltas)
    if variant == "paper":
        intra = [softmax(experts * minmax(d**2)) for d in deltas]
        inter = [sum(softmax(minmax(d * other)) for other in deltas) for d in deltas]
        return np.array(intra) * np.array(inter)
    scaled = [minmax(clamp(d, 1e-4 if variant == "root" else 0.01)) for d in deltas]
    intra = np.array([np.exp(experts * a**2) for a in scaled])
    if variant == "root":
        inter = np.array([np.tanh(d * sum(deltas)) for d in deltas])
    else:
        signed = [np.sign(d) * a for d, a in zip(deltas, scaled, strict=True)]
        inter = np.array([sum(np.tanh(s * other) for other in signed) for s in signed])
    return intra * inter


def thresholds(beta, ratio):
    """`root` and `vision`: per expert the β that the score starts at."""
    return np.array([at(b, int(len(b) * (1 - ratio))) for b in beta])


def scores(beta, ratio, variant):
    if variant != "paper":
        return np.array(
            [minmax(np.maximum(b, th)) for b, th in zip(beta, thresholds(beta, ratio), strict=True)]
        )
    kept = np.zeros_like(beta)
    for row, out in zip(beta, kept, strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))[: round(ratio * len(row))]
        out[order] = row[order]
    return kept


def pcb(deltas, weight, ratio=0.1, lam=1.0, variant="root"):
    if not len(deltas[0]):
        return np.zeros(0)
    score = scores(balances(deltas, variant), ratio, variant)
    if variant == "paper":
        values = np.array(deltas)
    else:
        q = 1e-4 if variant == "root" else 0.01
        values = np.array([np.sign(d) * clamp(d, q) for d in deltas])
    top = sum(s * w * v for s, w, v in zip(score, weight, values, strict=True))
    total = score.sum(axis=0)
    if variant == "paper":
        return lam * np.where(total > 0, top / np.where(total > 0, total, 1.0), 0.0)
    return lam * top / np.maximum(total, 1e-12)
