"""Recipes of deterministic methods: parameters at every level, slices, and every method mergekit has."""

from __future__ import annotations

from oracle.case import Case, case

BASELINES = [
    case(
        "linear",
        "smooth",
        """
merge_method: linear
models:
  - {model: $one, parameters: {weight: 0.7}}
  - {model: $two, parameters: {weight: 0.2}}
  - {model: $three, parameters: {weight: 0.4}}
""",
    ),
    case(
        "linear-gradient",
        "biased",
        """
merge_method: linear
models:
  - model: $one
    parameters: {weight: [0.1, 0.9, 0.3, 0.8]}
  - model: $two
    parameters:
      weight:
        - {filter: q_proj.bias, value: [1, 0]}
        - {filter: mlp, value: 0.25}
parameters:
  weight: 0.6
""",
    ),
    case(
        "linear-negative-not-normalized",
        "biased",
        """
merge_method: linear
models:
  - {model: $one, parameters: {weight: -0.3}}
  - {model: $two, parameters: {weight: 1.2}}
parameters: {normalize: false}
""",
    ),
    case(
        "linear-base-listed",
        "coarse",
        """
merge_method: linear
base_model: $base
models:
  - {model: $one, parameters: {weight: 0.5}}
  - {model: $base, parameters: {weight: 0.75}}
  - {model: $two, parameters: {weight: 0.25}}
""",
    ),
    case(
        "linear-base-added",
        "smooth",
        """
merge_method: linear
base_model: $base
models:
  - {model: $one, parameters: {weight: 0.5}}
  - {model: $two}
parameters: {weight: 0.3}
""",
    ),
    case(
        "slerp",
        "smooth",
        """
merge_method: slerp
base_model: $base
models:
  - {model: $one}
parameters: {t: 0.3}
""",
    ),
    case(
        "slerp-gradient-base-listed",
        "biased",
        """
merge_method: slerp
base_model: $one
models:
  - {model: $two}
  - {model: $one}
parameters: {t: [0, 0.7, 1, 0.2]}
""",
    ),
    case(
        "slerp-filters",
        "smooth",
        """
merge_method: slerp
base_model: $one
models:
  - {model: $one}
  - {model: $two}
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
""",
    ),
    case(
        "slerp-nearly-parallel",
        "coarse",
        """
merge_method: slerp
base_model: $base
models:
  - {model: $one}
parameters: {t: [0.1, 0.9]}
""",
    ),
    case(
        "task-arithmetic",
        "smooth",
        """
merge_method: task_arithmetic
base_model: $base
models:
  - {model: $one, parameters: {weight: 0.8}}
  - {model: $two, parameters: {weight: 0.5}}
parameters: {lambda: 0.7}
""",
    ),
    case(
        "task-arithmetic-gradient",
        "biased",
        """
merge_method: task_arithmetic
base_model: $base
models:
  - model: $one
    parameters:
      weight:
        - {filter: layers.1, value: 0.9}
        - {filter: self_attn, value: [0, 1, 0.5]}
  - model: $two
    parameters: {weight: [-0.5, 0.5]}
  - model: $three
parameters:
  weight:
    - {filter: norm, value: 0}
    - {filter: "*", value: 0.35}
  lambda: [0.5, 1.5]
""",
    ),
    case(
        "task-arithmetic-normalized-negative",
        "smooth",
        """
merge_method: task_arithmetic
base_model: $base
models:
  - {model: $one, parameters: {weight: 1.5}}
  - {model: $two, parameters: {weight: -0.5}}
parameters: {normalize: true, int8_mask: true}
""",
    ),
    case(
        "task-arithmetic-idle-parameters",
        "biased",
        """
merge_method: task_arithmetic
base_model: $base
models:
  - {model: $one, parameters: {weight: 0.6, density: 0.3}}
  - {model: $three, parameters: {weight: 0.6, density: [0, 1]}}
parameters: {rescale: true, int8_mask: true}
""",
    ),
    case(
        "task-arithmetic-coarse",
        "coarse",
        """
merge_method: task_arithmetic
base_model: $base
models:
  - {model: $one, parameters: {weight: 0.6}}
  - {model: $three, parameters: {weight: 0.6}}
""",
    ),
]

TIES = [
    case(
        "ties",
        "smooth",
        """
merge_method: ties
base_model: $base
models:
  - {model: $one, parameters: {weight: 0.7, density: 0.5}}
  - {model: $two, parameters: {weight: 0.4, density: 0.3}}
  - {model: $three, parameters: {weight: 1, density: 0.9}}
""",
    ),
    case(
        "ties-gradient",
        "biased",
        """
merge_method: ties
base_model: $base
models:
  - model: $one
    parameters: {weight: [0, 0.3, 0.7, 1], density: [1, 0.7, 0.1]}
  - model: $two
    parameters: {weight: 1, density: 0.6}
parameters: {normalize: true}
""",
    ),
    case(
        "ties-filters",
        "smooth",
        """
merge_method: ties
base_model: $base
models:
  - model: $one
    parameters:
      weight:
        - {filter: mlp, value: 0.5}
        - {filter: embed, value: 0.1}
      density:
        - {filter: q_proj, value: [0.2, 0.8]}
        - {value: 0.5}
  - model: $two
    parameters:
      density:
        - {filter: nothing-like-this, value: 0.01}
parameters:
  weight:
    - {filter: self_attn, value: [0.2, 1]}
    - {filter: "*", value: 0.75}
  density: 0.4
  normalize:
    - {filter: down_proj, value: false}
    - {value: [true, false, true]}
""",
    ),
    case(
        "ties-negative",
        "smooth",
        """
merge_method: ties
base_model: $base
models:
  - {model: $one, parameters: {weight: 1.3, density: 0.8}}
  - {model: $two, parameters: {weight: -0.4, density: 0.8}}
parameters: {normalize: true}
""",
    ),
    case(
        "ties-negative-not-normalized",
        "biased",
        """
merge_method: ties
base_model: $base
models:
  - {model: $one, parameters: {weight: 1, density: 0.8}}
  - {model: $two, parameters: {weight: -0.4, density: 0.5}}
  - {model: $three, parameters: {weight: 0.2, density: 0.5}}
parameters: {normalize: false, lambda: 0.6}
""",
    ),
    case(
        "ties-extreme-densities",
        "biased",
        """
merge_method: ties
base_model: $base
models:
  - {model: $one, parameters: {weight: 1, density: 5e-4}}
  - {model: $two, parameters: {weight: 1, density: 0}}
  - {model: $three, parameters: {weight: 1, density: [1e-2, 1]}}
""",
    ),
    case(
        "ties-out-bfloat16",
        "smooth",
        """
merge_method: ties
base_model: $base
models:
  - {model: $one, parameters: {weight: 0.7, density: 0.5}}
  - {model: $two, parameters: {weight: 0.4, density: 0.5}}
out_dtype: bfloat16
""",
    ),
    Case(
        "ties-dtype-of-the-models",
        "smooth",
        """
merge_method: ties
base_model: $base
models:
  - {model: $one, parameters: {weight: 0.7, density: 0.5}}
  - {model: $two, parameters: {weight: 0.4, density: 0.5}}
""",
    ),
    case(
        "ties-base-listed",
        "smooth",
        """
merge_method: ties
base_model: $base
models:
  - {model: $base, parameters: {weight: 5, density: 0.1}}
  - {model: $one, parameters: {weight: 0.7, density: 0.5}}
  - {model: $two, parameters: {weight: 0.4, density: 0.5}}
""",
    ),
    case(
        "ties-coarse",
        "coarse",
        """
merge_method: ties
base_model: $base
models:
  - {model: $one, parameters: {weight: 0.7, density: 0.4}}
  - {model: $two, parameters: {weight: 0.45, density: 0.6}}
  - {model: $three, parameters: {weight: 0.6, density: 0.2}}
""",
    ),
    case(
        "ties-coarse-alone",
        "coarse",
        """
merge_method: ties
base_model: $base
models:
  - {model: $one, parameters: {weight: 1, density: 0.3}}
""",
    ),
    case(
        "ties-rescaled",
        "smooth",
        """
merge_method: ties
base_model: $base
models:
  - {model: $one, parameters: {weight: 0.7, density: 0.5}}
  - {model: $two, parameters: {weight: 0.4, density: 0.5}}
parameters: {rescale: true}
""",
    ),
]

SLICES = [
    case(
        "slices-ties",
        "smooth",
        """
merge_method: ties
base_model: $base
slices:
  - sources:
      - {model: $base, layer_range: [0, 2]}
      - {model: $one, layer_range: [0, 2], parameters: {weight: 0.9, density: [0.3, 0.8]}}
      - {model: $two, layer_range: [0, 2], parameters: {weight: 0.4}}
    parameters: {density: 0.6, lambda: 0.5}
  - sources:
      - {model: $base, layer_range: [2, 6]}
      - {model: $one, layer_range: [2, 6], parameters: {weight: [0, 1, 0.5]}}
      - {model: $three, layer_range: [2, 6]}
parameters: {weight: 0.8, density: [0.2, 0.9], normalize: false}
""",
    ),
    case(
        "slices-other-blocks",
        "biased",
        """
merge_method: task_arithmetic
base_model: $base
slices:
  - sources:
      - {model: $one, layer_range: [0, 3], parameters: {weight: [0.2, 0.7]}}
      - {model: $base, layer_range: [1, 4]}
      - model: $two
        layer_range: [3, 6]
        parameters:
          weight:
            - {filter: layers.4, value: 2}
            - {filter: bias, value: -1}
            - {value: 0.5}
  - sources:
      - {model: $base, layer_range: [0, 1]}
      - {model: $one, layer_range: [5, 6], parameters: {weight: [0, 1]}}
    parameters: {lambda: [0.1, 0.6]}
  - sources:
      - {model: $three, layer_range: [1, 3], parameters: {weight: 0.4}}
      - {model: $base, layer_range: [4, 6]}
""",
    ),
    case(
        "slices-slerp",
        "smooth",
        """
slices:
  - sources:
      - {model: $one, layer_range: [0, 6]}
      - {model: $two, layer_range: [0, 6]}
merge_method: slerp
base_model: $one
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
""",
    ),
    case(
        "slices-slerp-own-base",
        "biased",
        """
merge_method: slerp
base_model: $one
slices:
  - sources:
      - {model: $one, layer_range: [0, 4]}
      - {model: $two, layer_range: [1, 5]}
    parameters: {t: 0.4}
  - sources:
      - {model: $one, layer_range: [2, 4]}
      - {model: $three, layer_range: [4, 6]}
    base_model: $three
    parameters:
      t:
        - {filter: layers.4, value: 0.9}
        - {value: 0.2}
""",
    ),
    case(
        "slices-linear-deeper",
        "coarse",
        """
merge_method: linear
slices:
  - sources:
      - {model: $one, layer_range: [0, 4], parameters: {weight: 0.4}}
      - {model: $two, layer_range: [0, 4], parameters: {weight: 0.6}}
  - sources:
      - {model: $two, layer_range: [2, 6], parameters: {weight: [1, 0.25]}}
      - {model: $three, layer_range: [1, 5]}
    parameters: {weight: 0.5}
""",
    ),
    case(
        "slices-passthrough",
        "smooth",
        """
merge_method: passthrough
slices:
  - sources:
      - {model: $one, layer_range: [0, 4]}
  - sources:
      - model: $two
        layer_range: [2, 6]
        parameters:
          scale:
            - {filter: o_proj, value: 0}
            - {filter: down_proj, value: [0.5, 1]}
            - {value: 1}
""",
    ),
]
