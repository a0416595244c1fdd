"""Linear, task arithmetic, magnitude, TIES and SLERP as their papers write them. NumPy, float64, loops over elements
allowed."""

from __future__ import annotations

import numpy as np


def linear(models, weight, normalize=True):
    total = sum(w * m for w, m in zip(weight, models, strict=True))
    return total / sum(weight) if normalize else total


def task_arithmetic(deltas, weight, lam, normalize=False):
    change = sum(w * d for w, d in zip(weight, deltas, strict=True))
    return lam * (change / sum(weight) if normalize else change)


def keep_largest(delta, density, count="nearest"):
    """The trim of TIES: the largest |δ|, the lower index among equals."""
    if density >= 1:
        kept = len(delta)
    elif density <= 0 or len(delta) == 0:
        kept = 0
    else:
        kept = max(1, int(density * len(delta)) if count == "floor" else round(density * len(delta)))
    order = sorted(range(len(delta)), key=lambda i: (-abs(delta[i]), i))
    out = np.zeros_like(delta)
    out[order[:kept]] = delta[order[:kept]]
    return out


def rescale_l1(pruned, delta, sizes):
    """Each tensor's Σ|δ̂| brought back to Σ|δ|; `sizes` are the elements of the tensors one after another."""
    out, start = pruned.copy(), 0
    for size in sizes:
        part = slice(start, start + size)
        before, after = np.abs(delta[part]).sum(), np.abs(pruned[part]).sum()
        if before >= 1e-7 and after >= 1e-7:
            out[part] = pruned[part] * (before / after)
        start += size
    return out


def magnitude(deltas, weight, density, lam=1.0, *, sizes, count="nearest", rescale="none", normalize=False):
    pruned = [keep_largest(d, k, count) for d, k in zip(deltas, density, strict=True)]
    if rescale == "l1":
        pruned = [rescale_l1(p, d, sizes) for p, d in zip(pruned, deltas, strict=True)]
    return task_arithmetic(pruned, weight, lam, normalize)


def elect_and_combine(pruned, weight, *, sign="total", elect_on="delta", zero_sum="majority", normalize=True):
    """Elect a sign for every element, then combine the non-zero values that agree with it."""
    votes = pruned if elect_on == "delta" else [w * d for w, d in zip(weight, pruned, strict=True)]
    balance = sum(np.sign(v) for v in votes) if sign == "frequency" else sum(votes)
    draw = 1.0
    if zero_sum == "majority" and np.sign(sum(votes)).sum() < 0:
        draw = -1.0
    elected = np.where(balance == 0, draw, np.sign(balance))
    merged = np.zeros_like(pruned[0])
    for i in range(len(merged)):
        agree = [t for t in range(len(pruned)) if np.sign(votes[t][i]) == elected[i]]
        top = sum(weight[t] * pruned[t][i] for t in agree)
        bottom = sum(weight[t] for t in agree) if normalize else 1
        merged[i] = top / bottom if agree and bottom else top
    return merged


def ties(deltas, weight, density, lam=1.0, *, count="nearest", **election):
    trimmed = [keep_largest(d, k, count) for d, k in zip(deltas, density, strict=True)]
    return lam * elect_and_combine(trimmed, weight, **election)


def slerp(base, model, t):
    def unit(v):
        norm = np.linalg.norm(v)
        return v / norm if norm > 1e-8 else v

    dot = float(np.clip(unit(base) @ unit(model), -1, 1))
    if abs(dot) > 0.9995:
        return (1 - t) * base + t * model
    angle = np.arccos(dot)
    return (np.sin((1 - t) * angle) * base + np.sin(t * angle) * model) / np.sin(angle)
