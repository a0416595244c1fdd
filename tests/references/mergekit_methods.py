"""mergekit's other methods as their sources write them: NumPy, float64, whole tensors. Changes are lists of arrays."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from references.seed_methods import ties as ties_of_trimmed


def crumbs(delta, density, gamma, count="nearest"):
    """What is left of one flat change: the largest are dropped, then `density` kept; the lower index among equals."""
    size = len(delta)
    if density >= 1:
        kept = size
    elif count == "floor":
        kept = int(density * size)
    else:
        kept = max(1, round(density * size)) if density > 0 and size else 0
    dropped = int(gamma * size) if count == "floor" else round(gamma * size)
    dropped = min(dropped, size - kept)
    order = sorted(range(size), key=lambda i: (-abs(delta[i]), i))[dropped : dropped + kept]
    out = np.zeros_like(delta)
    out[order] = delta[order]
    return out


def l1_rescaled(sparse, delta):
    before, after = np.abs(delta).sum(), np.abs(sparse).sum()
    return sparse if before < 1e-7 or after < 1e-7 else sparse * (before / after)


def breadcrumbs(sparse, weight, lam, normalize=False):
    change = sum(w * d for w, d in zip(weight, sparse, strict=True))
    divisor = sum(weight) if normalize and abs(sum(weight)) >= 1e-8 else 1.0
    return lam * change / divisor


def breadcrumbs_ties(sparse, weight, lam, **options):
    return ties_of_trimmed(sparse, weight, [1.0] * len(sparse), lam, **options)


def stock_ratio(changes, clamp=True, floor=0.0):
    cosines = []
    for one, other in combinations(changes, 2):
        lengths = max(np.linalg.norm(one) * np.linalg.norm(other), floor)
        cosines.append(np.clip(one @ other / lengths, -1, 1) if lengths else 0.0)
    cosine, count = np.mean(cosines), len(changes)
    if clamp:
        cosine = max(cosine, 0.0)
    divisor = 1 + (count - 1) * cosine
    return 0.0 if abs(divisor) < 1e-6 else count * cosine / divisor


def model_stock(changes, filter_wise=False, **options):
    """The merged change of one tensor, in its shape."""
    if filter_wise and changes[0].ndim > 1:
        return np.stack(
            [
                model_stock([change[row] for change in changes], True, **options)
                for row in range(len(changes[0]))
            ]
        )
    return stock_ratio([change.ravel() for change in changes], **options) * np.mean(changes, axis=0)


def sce(changes, select_topk=1.0, floor=0.0, cut_off=False):
    """The merged change of one flat tensor."""
    changes = np.array(changes)
    if select_topk < 1:
        variance = changes.var(axis=0).astype(np.float32)
        differing = int((variance != 0).sum())
        kept = (
            int(np.float32(differing) * np.float32(select_topk))
            if cut_off
            else round(select_topk * differing)
        )
        order = sorted(range(len(variance)), key=lambda i: (-variance[i], i))
        changes = changes * np.isin(np.arange(len(variance)), order[:kept])
    squares = (changes**2).mean(axis=1)
    total = squares.sum()
    share = squares / total if total > 0 and total >= floor else np.full(len(changes), 1 / len(changes))
    merged = np.zeros(changes.shape[1])
    for i in range(len(merged)):
        sign = 1.0 if changes[:, i].sum() >= 0 else -1.0
        agree = np.sign(changes[:, i]) == sign
        merged[i] = (share * agree * changes[:, i]).sum() / max((share * agree).sum(), 1e-6)
    return merged


def arc(one, other, t):
    """NuSLERP of two vectors."""
    cosine = one @ other / (max(np.linalg.norm(one), 1e-7) * max(np.linalg.norm(other), 1e-7))
    cosine = np.clip(cosine, -1, 1)
    if 1 - cosine**2 <= 1e-16 or 1 + cosine <= 1e-7:
        return (1 - t) * one + t * other
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * one + np.sin(t * angle) * other) / np.sin(angle)


def nuslerp(one, other, weight, flatten=True, columns=False):
    t = 0.5 if abs(sum(weight)) < 1e-6 else weight[1] / sum(weight)
    if flatten or one.ndim < 2:
        return arc(one.ravel(), other.ravel(), t).reshape(one.shape)
    along = 0 if columns else one.ndim - 1
    one, other = np.moveaxis(one, along, -1), np.moveaxis(other, along, -1)
    merged = np.empty_like(one)
    for index in np.ndindex(one.shape[:-1]):
        merged[index] = arc(one[index], other[index], t)
    return np.moveaxis(merged, -1, along)


def multislerp(vectors, weight, normalize=True, eps=1e-8):
    """Of flat vectors: out to the tangent space at their mean direction, and back by the exponential map."""
    vectors, weight = np.array(vectors), np.array(weight, dtype=np.float64)
    if len(vectors) == 1:
        return vectors[0]
    if normalize:
        weight = weight / weight.sum()
    norms = np.linalg.norm(vectors, axis=1)
    units = vectors / (norms[:, None] + eps)
    mean = weight @ units
    if np.linalg.norm(mean) < 1e-6 * np.abs(weight).sum():
        return weight @ vectors
    mean = mean / np.linalg.norm(mean)
    tangent = weight @ (units - np.outer(units @ mean, mean))
    angle = np.linalg.norm(tangent) + eps
    return (weight @ norms) * (mean * np.cos(angle) + tangent * np.sin(angle) / angle)


def karcher(vectors, max_iter=10, tol=1e-5):
    """Of flat vectors, by steps along the logarithm map."""
    norms = [np.linalg.norm(vector) for vector in vectors]
    units = [vector / norm for vector, norm in zip(vectors, norms, strict=True) if norm > tol]
    if len(vectors) == 1 or not units:
        return np.mean(vectors, axis=0)
    mean = np.mean(units, axis=0)
    mean = units[0] if np.linalg.norm(mean) < tol else mean / np.linalg.norm(mean)
    for _ in range(max_iter):
        step = np.zeros_like(mean)
        for unit in units:
            cosine = np.clip(mean @ unit, -1, 1)
            angle = np.arccos(cosine)
            if tol <= angle <= np.pi - 1e-3:
                step += angle / np.sin(angle) * (unit - cosine * mean) / len(units)
        length = np.linalg.norm(step)
        if length < tol:
            break
        mean = np.cos(length) * mean + np.sin(length) * step / length
        mean /= np.linalg.norm(mean)
    return np.mean(norms) * mean


def nearswap(change, t):
    return change * np.clip(t / np.maximum(np.abs(change), 1e-6), 0, 1)


def importance(base, model):
    """Arcee Fusion's |δ|·KL of every element, in the tensor's shape."""

    def softmax(values):
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    base, model = np.atleast_1d(base), np.atleast_1d(model)
    theirs, ours = softmax(model) + 1e-8, softmax(base) + 1e-8
    return np.abs(model - base) * (theirs * np.log(theirs / ours)).sum(axis=-1, keepdims=True)


def arcee_fusion(base, model):
    """The mask of the elements that are replaced, and how far each lies from the threshold."""
    scores = importance(base, model)
    ascending = np.sort(scores, axis=None)
    first, median, third = (ascending[int(q * (len(ascending) - 1))] for q in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (third - first)
    return (scores >= threshold).reshape(base.shape), np.abs(scores - threshold).reshape(base.shape)


def ram(changes, epsilon=1e-5, raised=None):
    """The merged change; `raised` is what an expert's own elements are multiplied by."""
    raised = raised or [1.0] * len(changes)
    active = [np.abs(change) > epsilon for change in changes]
    count = sum(mask.astype(int) for mask in active)
    own = sum(
        r * change * (mask & (count == 1)) for r, change, mask in zip(raised, changes, active, strict=True)
    )
    shared = sum(change * (mask & (count > 1)) for change, mask in zip(changes, active, strict=True))
    return own + shared / np.maximum(count, 1)


def ramplus(changes, epsilon=1e-5, r=0.1, alpha=0.2):
    active = [np.abs(change) > epsilon for change in changes]
    count = sum(mask.astype(int) for mask in active)
    ratios = [(mask & (count > 1)).sum() / max((mask & (count == 1)).sum(), epsilon) for mask in active]
    return ram(changes, epsilon, [1 + r * min(max(ratio, 0.0), alpha) for ratio in ratios])
