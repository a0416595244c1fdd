"""DPPA (2403.02799) on one expert's task vector: {tensor: δ}, and which block a linear lies in: {linear: block}."""

from __future__ import annotations

import numpy as np

from references.seed_methods import keep_largest


def significance(values, times):
    """Per cent of the values that are more than `times` their mean magnitude."""
    mean = np.abs(values).mean()
    return 100 * float((np.abs(values) / mean > times).mean()) if mean > 0 else 0.0


def offset(deviation, nu):
    """ν · deviation / max|deviation|."""
    top = np.abs(deviation).max(initial=0.0)
    return nu * deviation / top if top > 0 else np.zeros_like(deviation)


def densities(block_significance, linear_significance, sizes, block_of, p, nu):
    """Density of every linear; `block_of` is the place of its block in `block_significance`."""
    b, n = np.array(block_significance, float), np.array(sizes, float)
    size, mean = np.array(linear_significance, float), np.mean(linear_significance)
    relative = size / mean if mean > 0 else np.zeros_like(size)
    o_b = offset(b - b.mean(), nu)[np.array(block_of)]
    o_l = offset(relative - (n * relative).sum() / n.sum(), nu)
    return np.clip((1 - p) + o_b + o_l, 1 / n, 1)


def prune(delta, blocks, p, nu):
    """The task vector at drop rate p."""
    names, numbers = list(blocks), sorted(set(blocks.values()))
    b = [
        significance(np.concatenate([delta[name] for name in names if blocks[name] == number]), 3)
        for number in numbers
    ]
    linear = [significance(delta[name], 5) for name in names]
    sizes = [len(delta[name]) for name in names]
    found = densities(b, linear, sizes, [numbers.index(blocks[name]) for name in names], p, nu)
    return delta | {
        name: keep_largest(delta[name], density) for name, density in zip(names, found, strict=True)
    }


def amplified(kept, amplify, rule="strictest"):
    """One tensor from its pruned forms, strictest level first."""
    merged = np.zeros_like(kept[0])
    for i in range(len(merged)):
        if rule == "strictest":
            level = next((k for k, values in enumerate(kept) if values[i] != 0), None)
            merged[i] = 0 if level is None else amplify[level] * kept[level][i]
        else:
            merged[i] = max((a * values[i] for a, values in zip(amplify, kept, strict=True)), key=abs)
    return merged


def dppa(deltas, blocks, weight, lam=1.0, *, levels=(0.9, 0.8), amplify=(1, 1), rule="strictest", nu=0.08):
    """The merged change {tensor: Δ} of several experts."""
    merged = {name: np.zeros_like(value) for name, value in deltas[0].items()}
    for w, delta in zip(weight, deltas, strict=True):
        pruned = [prune(delta, blocks, p, nu) for p in levels]
        for name in merged:
            own = amplified([one[name] for one in pruned], amplify, rule) if name in blocks else delta[name]
            merged[name] += lam * w * own
    return merged
