"""All recipes that both programs run; here those of random methods and of bfloat16 arithmetic."""

from __future__ import annotations

from oracle.case import Case, case
from oracle.deterministic import BASELINES, SLICES, TIES
from oracle.others import OTHERS

DETERMINISTIC = BASELINES + TIES + SLICES + OTHERS

SEEDS = 6
RANDOM = [
    case(
        f"{method}-{'rescaled' if rescale else 'not-rescaled'}",
        family,
        f"""
merge_method: {method}
base_model: $base
models:
  - model: $one
    parameters: {{weight: 0.7, density: 0.3{epsilon}}}
  - model: $two
    parameters: {{weight: 0.4, density: [0.6, 0.4]}}
  - model: $three
    parameters:
      weight: [0.2, 0.9]
      density:
        - {{filter: mlp, value: 0.7}}
        - {{value: 0.5}}
parameters: {{rescale: {str(rescale).lower()}, lambda: 0.8}}
""",
        seeds=SEEDS,
    )
    for method, family, epsilon in (
        ("dare_linear", "smooth", ""),
        ("dare_ties", "biased", ""),
        ("della", "smooth", ", epsilon: 0.2"),
        ("della_linear", "biased", ", epsilon: 0.05"),
    )
    for rescale in (True, False)
]
ALONE = [
    case(
        f"{method}-alone-{'rescaled' if rescale else 'not-rescaled'}",
        "smooth",
        f"""
merge_method: {method}
base_model: $base
models:
  - {{model: $one, parameters: {{weight: 1, density: 0.4}}}}
parameters: {{{"" if rescale else "rescale: false"}}}
""",
        seeds=2,
    )
    for method in ("dare_linear", "dare_ties", "della", "della_linear")
    for rescale in (True, False)
]
IN_BFLOAT16 = [
    Case(
        f"bfloat16-{method}",
        "coarse",
        f"""
merge_method: {method}
base_model: $base
models:
  - {{model: $one, parameters: {{weight: 0.7{density}}}}}
  - {{model: $two, parameters: {{weight: 0.4{density}}}}}
dtype: bfloat16
""",
    )
    for method, density in (("task_arithmetic", ""), ("ties", ", density: 0.5"))
]
ALL = [*DETERMINISTIC, *RANDOM, *ALONE, *IN_BFLOAT16]
