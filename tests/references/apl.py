"""APL (2408.09485, a reconstruction): drop ratios and weights per partition, and the merge over flattened tensors."""

from __future__ import annotations

import numpy as np

from references.random_methods import prune


def drop_ratios(importance, sizes, p, tau1=0.1):
    """One expert's drop ratio for every partition; their size-weighted mean is p."""
    size, n = np.array(importance, float), np.array(sizes, float)
    deviation = size - (n * size).sum() / n.sum()
    top = np.abs(deviation).max()
    z = deviation / top if top > 0 else np.zeros_like(size)

    def ratios(c):
        return np.clip(p - tau1 * z + c, 0, 0.99)

    low, high = -2.0, 2.0
    for _ in range(200):
        middle = (low + high) / 2
        if (n * ratios(middle)).sum() / n.sum() < p:
            low = middle
        else:
            high = middle
    return ratios((low + high) / 2)


def relative(importance):
    """π of every expert and partition, [experts, P]."""
    total = np.array(importance, float).sum(axis=1, keepdims=True)
    even = np.full(np.shape(importance), 1 / np.shape(importance)[1])
    return np.where(total > 0, importance / np.where(total > 0, total, 1), even)


def weights(share, tau2=1.0):
    """T·softmax over the experts of π/τ2, [experts, P]."""
    powers = np.exp(np.array(share, float) / tau2)
    return len(powers) * powers / powers.sum(axis=0)


def calibrate(importance, sizes, outside, p, tau1=0.1, tau2=1.0):
    """Drop ratio and weight [experts, P]; partitions outside keep the global p and the weight 1."""
    inside = ~np.asarray(outside)
    ratio, factor = np.full(importance.shape, p), np.ones(importance.shape)
    if inside.any():
        own = importance[:, inside]
        ratio[:, inside] = [drop_ratios(one, sizes[inside], p, tau1) for one in own]
        factor[:, inside] = weights(relative(own), tau2)
    return ratio, factor


def keep_top(delta, order_by, index, ratio):
    """Per partition the round((1 − r)·n) elements that are largest by `order_by`, the lower index among equals."""
    kept = np.zeros_like(delta)
    for number, drop in enumerate(ratio):
        members = [i for i in range(len(delta)) if index[i] == number]
        members.sort(key=lambda i: (-order_by[i], i))
        chosen = members[: round((1 - drop) * len(members))]
        kept[chosen] = delta[chosen]
    return kept


def merge(pruned, factors, lam=1.0, elect=False):
    """λ Σ w·δ̂; with `elect` the sum of those that agree with the sign of the whole sum, plus where that is 0."""
    changes = np.array([f * d for f, d in zip(factors, pruned, strict=True)])
    if elect:
        elected = np.where(changes.sum(axis=0) < 0, -1.0, 1.0)
        changes = np.where(np.sign(changes) == elected, changes, 0.0)
    return lam * changes.sum(axis=0)


def random_drop(delta, mask, drop):
    """Drop where the mask is False, the rest over 1 − r."""
    return prune(delta, mask, 1 - drop, [len(delta)], "expected")
