"""Recipes of mergekit's further methods: one each, with the parameters that change what they do."""

from __future__ import annotations

from oracle.case import case

TWO = """
base_model: $base
models:
  - {model: $one}
"""
THREE = """
base_model: $base
models:
  - {model: $one}
  - {model: $two}
  - {model: $three}
"""
WEIGHED = """
base_model: $base
models:
  - {model: $one, parameters: {weight: 0.7}}
  - {model: $two, parameters: {weight: 0.5}}
"""
NO_BASE = """
models:
  - {model: $one, parameters: {weight: 0.7}}
  - {model: $two, parameters: {weight: [0.2, 0.9]}}
"""
UNWEIGHED = """
models:
  - {model: $one}
  - {model: $two}
"""
TRIMMED = """
base_model: $base
models:
  - {model: $one, parameters: {weight: 0.7, density: 0.5, gamma: 0.05}}
  - {model: $two, parameters: {weight: 0.5, density: [0.9, 0.2], gamma: [0.2, 0.01]}}
  - {model: $three, parameters: {weight: -0.2, density: 0.3}}
"""


def other(method: str, family: str, models: str, parameters: str = "", label: str = ""):
    name = f"{method}{'-' if label else ''}{label}"
    return case(name, family, f"merge_method: {method}\n{models.strip()}\n{parameters}")


OTHERS = [
    other("breadcrumbs", "smooth", TRIMMED),
    other(
        "breadcrumbs",
        "biased",
        TRIMMED,
        "parameters: {normalize: true, rescale: true, lambda: 0.7}",
        "rescaled",
    ),
    other("breadcrumbs", "coarse", TRIMMED, label="coarse"),
    other("breadcrumbs_ties", "smooth", TRIMMED),
    other(
        "breadcrumbs_ties",
        "biased",
        TRIMMED,
        "parameters: {normalize: true, lambda: [0.5, 1.2]}",
        "normalized",
    ),
    other("model_stock", "smooth", THREE),
    other("model_stock", "coarse", THREE, "parameters: {filter_wise: true}", "by-row"),
    other("sce", "smooth", THREE),
    other("sce", "biased", THREE, "parameters: {select_topk: [0.1, 0.6]}", "selected"),
    other("sce", "coarse", THREE, "parameters: {select_topk: 0.3}", "small-changes"),
    other("nuslerp", "smooth", WEIGHED),
    other("nuslerp", "biased", WEIGHED, "parameters: {nuslerp_flatten: false}", "by-row"),
    other(
        "nuslerp",
        "smooth",
        WEIGHED,
        "parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}",
        "by-column",
    ),
    other("nuslerp", "biased", NO_BASE, label="no-base"),
    other("multislerp", "smooth", WEIGHED),
    other("multislerp", "biased", NO_BASE, "parameters: {normalize_weights: false}", "no-base"),
    other("karcher", "smooth", UNWEIGHED),
    other("karcher", "biased", THREE, "parameters: {max_iter: 3}", "base-included"),
    other("nearswap", "smooth", TWO, "parameters: {t: 0.004}"),
    other("nearswap", "coarse", TWO, "parameters: {t: [0.0001, 0.002]}", "gradient"),
    other("arcee_fusion", "smooth", TWO),
    other("ram", "smooth", THREE, "parameters: {epsilon: 0.005}"),
    other("ramplus_tl", "coarse", THREE),
    other("ramplus_tl", "smooth", THREE, "parameters: {epsilon: 0.01, r: 0.5, alpha: 0.9}", "stronger"),
]
