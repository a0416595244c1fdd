"""DARE (2311.03099) and DELLA (2406.11617) with given masks: flattened float64 vectors, `keep` probabilities beside
them."""

from __future__ import annotations

import numpy as np

from references.seed_methods import elect_and_combine, rescale_l1, task_arithmetic


def prune(delta, mask, keep, sizes, rescale="expected"):
    """Drop where the mask is False; bring the rest back to the change's expected value or to its L1 norm."""
    kept = np.where(mask, delta, 0.0)
    if rescale == "expected":
        return np.where(mask, kept / np.where(mask, keep, 1.0), 0.0)
    return rescale_l1(kept, delta, sizes) if rescale == "l1" else kept


def pruned_linear(deltas, masks, keep, weight, lam=1.0, *, sizes, rescale="expected", normalize=True):
    """`dare_linear`, and `della_linear` with its own probabilities."""
    pruned = [prune(*each, sizes, rescale) for each in zip(deltas, masks, keep, strict=True)]
    return task_arithmetic(pruned, weight, lam, normalize)


def pruned_election(deltas, masks, keep, weight, lam=1.0, *, sizes, rescale="expected", **election):
    """`dare_ties`, and `della` with its own probabilities."""
    pruned = [prune(*each, sizes, rescale) for each in zip(deltas, masks, keep, strict=True)]
    return lam * elect_and_combine(pruned, weight, **election)


def della_keep(delta, density, epsilon):
    """Keep probabilities of one tensor, flat: rank 0 is the largest |δ| of a row."""
    if density >= 1 or density <= 0 or not delta.size:
        return np.full(delta.size, float(density >= 1))
    rows = delta.reshape(delta.shape[0], -1) if delta.ndim > 1 else delta.reshape(1, -1)
    keep = np.zeros(rows.shape)
    for i, row in enumerate(rows):
        m = len(row)
        for r, j in enumerate(sorted(range(m), key=lambda j: (-abs(row[j]), j))):
            keep[i, j] = density if m == 1 else (density + epsilon) - 2 * epsilon * r / (m - 1)
    return keep.reshape(-1)
