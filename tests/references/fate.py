"""The fate of every element, from factors and elections written element by element. NumPy, float64, flat tensors.

A method here gives for some tensors, one after another, what is left of each change before an election (`sparse`, with
the expert's weight in it), what of it is merged (`parts`, whose sum times λ is the merged change), [experts, n] each, and
λ.
"""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import torch

from merging.checkpoint import StateDict
from merging.plan import plan_sources
from merging.recipe import ModelEntry, Recipe
from references import apl as apl_reference
from references import dppa as dppa_reference
from references import mergekit_methods, pcb
from references.family import NAMES, SHAPES, deltas_of, flat, masks_of, per_model
from references.random_methods import della_keep

FATES = ["dropped", "outvoted", "rounded", "cancelled", "kept"]
BLOCKS = {
    name: int(re.search(r"layers\.(\d+)\.", name)[1])
    for name, shape in SHAPES.items()
    if "layers." in name and len(shape) == 2 and 0 not in shape
}
WORDS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def plan_of(base, models, method, *, out=None, importance=None, profile="paper", seed=0, **parameters):
    """A plan over tensors in memory; a list for a parameter is one value for each model, a tuple one value."""
    shared = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in parameters.items()
        if not isinstance(value, list)
    }
    own = {name: value for name, value in parameters.items() if isinstance(value, list)}
    entries = [
        ModelEntry(model=f"model {t + 1}", parameters={name: values[t] for name, values in own.items()})
        for t in range(len(models))
    ]
    keys = {"out_dtype": WORDS[out]} if out is not None else {}
    recipe = Recipe(
        merge_method=method, models=tuple(entries), parameters=shared, profile=profile, seed=seed, **keys
    )
    sources = [(entry, StateDict(model, entry.model)) for entry, model in zip(entries, models, strict=True)]
    origin = StateDict(base, "base") if base is not None else None
    return plan_sources(recipe, origin, sources, importance=importance)


def fate_of(delta, sparse, part, change, output, base):
    """The fate of one element of one change."""
    if sparse == 0:
        return "dropped"
    if part == 0:
        return "outvoted"
    if output == base:
        return "rounded"
    if np.sign(delta) != np.sign(change):
        return "cancelled"
    return "kept"


def energies(deltas, sparse, parts, lam, output, base):
    """Σδ² by fate, [experts, fates], and the part of it that float32 and float64 may judge differently."""
    change = lam * parts.sum(axis=0)
    near = np.abs(change) < 1e-6 * abs(lam) * np.abs(parts).sum(axis=0)
    found, unsure = np.zeros((len(deltas), len(FATES))), np.zeros(len(deltas))
    for t, delta in enumerate(deltas):
        for i, value in enumerate(delta):
            fate = fate_of(value, sparse[t, i], parts[t, i], change[i], output[i], base[i])
            found[t, FATES.index(fate)] += value**2
            unsure[t] += value**2 * (near[i] and change[i] != 0)
    return found, unsure


def elect(sparse, weight, *, elect_on="delta", draw=1.0, normalize=True):
    """What is merged of changes (without their weights) after an election."""
    parts = np.zeros_like(sparse)
    for i in range(sparse.shape[1]):
        votes = [w * s if elect_on == "weighted" else s for w, s in zip(weight, sparse[:, i], strict=True)]
        balance = sum(votes)
        sign = draw if balance == 0 else np.sign(balance)
        agree = [t for t, vote in enumerate(votes) if np.sign(vote) == sign]
        divisor = sum(weight[t] for t in agree) if normalize else 1.0
        for t in agree:
            parts[t, i] = weight[t] * sparse[t, i] / (divisor or 1.0)
    return parts


def majority(sparse):
    return -1.0 if np.sign(sparse.sum(axis=0)).sum() < 0 else 1.0


def column(weight):
    return np.array(weight, dtype=np.float64)[:, None]


def largest(delta, density, count=round):
    """Which elements a trim keeps: the lower index among equals."""
    kept = max(1, count(density * len(delta))) if density > 0 and len(delta) else 0
    order = np.lexsort((np.arange(len(delta)), -np.abs(delta)))
    mask = np.zeros(len(delta), dtype=bool)
    mask[order[:kept]] = True
    return mask


def added(sparse, weight, lam, normalize=False):
    sparse = sparse * column(weight)
    return sparse, sparse / (sum(weight) if normalize else 1.0), lam


def task_arithmetic(deltas, names, o):
    return added(deltas, o["weight"], o.get("lambda", 0.4), o.get("normalize", False))


def magnitude(deltas, names, o):
    density = per_model(o.get("density", 0.2), len(deltas))
    sparse = np.array([d * largest(d, k) for d, k in zip(deltas, density, strict=True)])
    return added(sparse, o["weight"], o.get("lambda", 1.0))


def elected(sparse, o, lam=1.0, **how):
    how = {"draw": majority(sparse), **how}
    return sparse * column(o["weight"]), elect(sparse, o["weight"], **how), o.get("lambda", lam)


def ties(deltas, names, o):
    density = per_model(o.get("density", 0.2), len(deltas))
    mergekit = o.get("profile") == "mergekit"
    count = int if mergekit else round
    sparse = np.array([d * largest(d, k, count) for d, k in zip(deltas, density, strict=True)])
    if mergekit:
        return elected(sparse, o, elect_on="weighted", draw=1.0)
    return elected(sparse, o)


def dropped_at_random(deltas, names, o, keep):
    return np.array(
        [
            np.where(masks_of(share, names, o.get("seed", 0), t), delta / np.where(share > 0, share, 1), 0)
            for t, (delta, share) in enumerate(zip(deltas, keep, strict=True))
        ]
    )


def evenly(deltas, o, density):
    return [np.full(deltas.shape[1], k) for k in per_model(o.get("density", density), len(deltas))]


def dare_linear(deltas, names, o):
    sparse = dropped_at_random(deltas, names, o, evenly(deltas, o, 0.8))
    return added(sparse, o["weight"], o.get("lambda", 1.0), True)


def dare_ties(deltas, names, o):
    return elected(dropped_at_random(deltas, names, o, evenly(deltas, o, 0.8)), o)


def della(deltas, names, o):
    """One tensor after the other, for ranks are its rows'."""
    sizes = np.cumsum([0, *(int(np.prod(SHAPES[name], dtype=int)) for name in names)])
    keep = [
        np.concatenate(
            [
                della_keep(delta[a:b].reshape(SHAPES[name]), o.get("density", 0.7), o.get("epsilon", 0.07))
                for name, (a, b) in zip(names, pairwise(sizes), strict=True)
            ]
        )
        for delta in deltas
    ]
    return elected(dropped_at_random(deltas, names, o, keep), o, 1.1, elect_on="weighted", draw=1.0)


def pcb_root(deltas, names, o):
    score = pcb.scores(pcb.balances(deltas, "root"), o.get("ratio", 0.1), "root")
    values = np.array([np.sign(d) * pcb.clamp(d, 1e-4) for d in deltas]) * (deltas != 0)
    sparse = score * values * column(o["weight"])
    return sparse, sparse / np.maximum(score.sum(axis=0), 1e-12), o.get("lambda", 1.0)


def dppa(deltas, names, o):
    levels, amplify = o.get("levels", (0.9, 0.8)), o.get("amplify", (1.0, 1.0))
    sizes = np.cumsum([0, *(int(np.prod(SHAPES[name], dtype=int)) for name in names)])
    sparse = np.zeros_like(deltas)
    for t, whole in enumerate(deltas):
        parts = dict(zip(names, (whole[a:b] for a, b in pairwise(sizes)), strict=True))
        pruned = [dppa_reference.prune(parts, BLOCKS, p, 0.08) for p in levels]
        for name, (a, b) in zip(names, pairwise(sizes), strict=True):
            kept = [one[name] for one in pruned]
            sparse[t, a:b] = dppa_reference.amplified(kept, amplify) if name in BLOCKS else parts[name]
    return added(sparse, o["weight"], o.get("lambda", 1.0))


def apl(deltas, names, o):
    partitions, values = o["importance"].partitions, o["importance"].values.numpy()
    index = np.concatenate([partitions.index[n].expand(SHAPES[n]).flatten().numpy() for n in names])
    sizes, outside = np.bincount(index, minlength=len(partitions)), partitions.outside.numpy()
    ratio, factor = apl_reference.calibrate(values, sizes, outside, 1 - o.get("density", 0.8))
    if o.get("drop", "random") == "random":
        sparse = dropped_at_random(deltas, names, o, [1 - r[index] for r in ratio])
    else:
        each = zip(deltas, ratio, strict=True)
        sparse = np.array([apl_reference.keep_top(d, np.abs(d), index, r) for d, r in each])
    sparse = sparse * factor[:, index] * column(o["weight"])
    if not o.get("elect"):
        return sparse, sparse, 1.0
    return sparse, elect(sparse, [1.0] * len(deltas), normalize=False), 1.0


def sce(deltas, names, o):
    """Squares and shares are those of the elements with the largest variance."""
    variance = deltas.var(axis=0).astype(np.float32)
    if o.get("select_topk", 1.0) < 1:
        differing = int((variance != 0).sum())
        order = np.lexsort((np.arange(len(variance)), -variance))
        deltas = deltas * np.isin(np.arange(len(variance)), order[: round(o["select_topk"] * differing)])
    squares = (deltas**2).sum(axis=1)
    share = squares / squares.sum() if squares.sum() > 0 else np.full(len(deltas), 1 / len(deltas))
    return deltas * share[:, None], elect(deltas, list(share)), 1.0


def crumbs(deltas, o):
    each = zip(deltas, per_model(o.get("density", 0.15)), per_model(o.get("gamma", 0.006)), strict=True)
    return np.array([mergekit_methods.crumbs(*one) for one in each])


def breadcrumbs(deltas, names, o):
    return added(crumbs(deltas, o), o["weight"], o.get("lambda", 0.2))


def breadcrumbs_ties(deltas, names, o):
    return elected(crumbs(deltas, o), o)


def ram(deltas, names, o):
    active = np.abs(deltas) > np.float32(o.get("epsilon", 1e-5))
    sparse = deltas * active
    return sparse, sparse / np.maximum(active.sum(axis=0), 1), 1.0


def model_stock(deltas, names, o):
    sparse = deltas * mergekit_methods.stock_ratio(list(deltas)) / len(deltas)
    return sparse, sparse, 1.0


def nearswap(deltas, names, o):
    sparse = np.array([mergekit_methods.nearswap(delta, o.get("t", 0.0001)) for delta in deltas])
    return sparse, sparse, 1.0


METHODS = {
    "task_arithmetic": task_arithmetic,
    "magnitude": magnitude,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "della": della,
    "pcb": pcb_root,
    "dppa": dppa,
    "apl": apl,
    "sce": sce,
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": breadcrumbs_ties,
    "ram": ram,
    "model_stock": model_stock,
    "nearswap": nearswap,
}
BY_TENSOR = {"sce", "breadcrumbs", "breadcrumbs_ties", "ram", "model_stock", "nearswap"}


def pieces_of(method, base, models, options):
    """name -> (deltas, sparse, parts, λ) of every tensor."""
    scopes = [[name] for name in NAMES]
    if method not in BY_TENSOR and options.get("profile") != "mergekit":
        scopes = [NAMES]
    options = {**options, "weight": per_model(options.get("weight", 1.0), len(models))}
    changes = [deltas_of(base, model) for model in models]
    found = {}
    for names in scopes:
        deltas = np.array([flat(change, names) for change in changes])
        sparse, parts, lam = METHODS[method](deltas, names, options) if deltas.size else (deltas, deltas, 1.0)
        start = 0
        for name in names:
            stop = start + int(np.prod(SHAPES[name], dtype=int))
            found[name] = (deltas[:, start:stop], sparse[:, start:stop], parts[:, start:stop], lam)
            start = stop
    return found
