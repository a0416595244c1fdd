"""Every method against its formula in float64, over scopes, profiles, dtypes and awkward shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from references import seed_methods as reference

from merging import merge_state_dicts
from merging.anatomy import locate

SHAPES = {
    "model.embed_tokens.weight": (7, 6),
    "model.layers.0.self_attn.q_proj.weight": (6, 6),
    "model.layers.0.mlp.up_proj.weight": (9, 6),
    "model.layers.0.input_layernorm.weight": (6,),
    "model.layers.1.self_attn.q_proj.weight": (6, 6),
    "model.layers.1.column.weight": (5, 1),
    "model.layers.1.scalar": (),
    "model.layers.1.empty": (0, 3),
    "model.layers.1.constant.weight": (4, 4),
    "model.layers.1.conv.weight": (2, 3, 2),
}


def random_family(experts, seed, dtype):
    generator = torch.Generator().manual_seed(seed)

    def noise(shape, scale):
        return torch.randn(shape, generator=generator) * scale

    base = {name: noise(shape, 1.0).to(dtype) for name, shape in SHAPES.items()}
    models = []
    for _ in range(experts):
        model = {name: (value.float() + noise(value.shape, 0.05)).to(dtype) for name, value in base.items()}
        model["model.layers.1.constant.weight"] = (base["model.layers.1.constant.weight"].float() + 0.5).to(
            dtype
        )
        model["model.layers.0.mlp.up_proj.weight"][3:] = base["model.layers.0.mlp.up_proj.weight"][3:]
        models.append(model)
    return base, models


def scopes_of(scope):
    """Lists of tensor names that are ranked together, in the order that breaks ties."""
    if scope == "model":
        return [sorted(SHAPES)]
    if scope == "tensor":
        return [[name] for name in SHAPES]
    groups = {}
    for name in sorted(SHAPES):
        block = locate(name).block
        groups.setdefault(name if block is None else block, []).append(name)
    return list(groups.values())


def flat(tensors, names):
    return np.concatenate([tensors[name].double().flatten().numpy() for name in names])


def deltas_of(base, model):
    """Task vectors as float32, as the specification asks."""
    return {name: model[name].float() - base[name].float() for name in base}


def assert_close(merged, base, expected, names):
    offset = 0
    for name in names:
        count = merged[name].numel()
        wanted = flat(base, [name]) + expected[offset : offset + count]
        cast = torch.tensor(wanted).to(base[name].dtype).double().numpy()
        scale = np.abs(wanted).max(initial=1.0)
        tolerance = {torch.float32: 3e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}[base[name].dtype] * scale
        assert np.abs(flat(merged, [name]) - cast).max(initial=0) <= tolerance, name
        offset += count


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scope", ["tensor", "layer", "model"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"density": 0.5, "sign": "frequency"},
        {"density": [0.1, 0.5, 1.0], "weight": [0.5, 1.0, 2.0], "lambda": 1.3},
        {"density": 0.7, "weight": [0.2, 0.9, 0.4], "elect_on": "weighted", "zero_sum": "plus"},
        {"density": 0.3, "normalize": False, "count": "floor"},
        {"profile": "mergekit", "density": 0.33, "weight": [1.0, -0.5, 0.25]},
        {"profile": "mergekit"},
        {"density": 0.0},
    ],
)
def test_ties(scope, options, dtype):
    base, models = random_family(3, 11, dtype)
    merged = merge_state_dicts(base, models, "ties", scope=scope, **options)
    mergekit = options.get("profile") == "mergekit"
    density = options.get("density", 1.0 if mergekit else 0.2)
    settings = {
        "sign": options.get("sign", "total"),
        "elect_on": options.get("elect_on", "weighted" if mergekit else "delta"),
        "zero_sum": options.get("zero_sum", "plus" if mergekit else "majority"),
        "count": options.get("count", "floor" if mergekit else "nearest"),
        "normalize": options.get("normalize", True),
    }
    deltas = [deltas_of(base, model) for model in models]
    for names in scopes_of(scope):
        expected = reference.ties(
            [flat(delta, names) for delta in deltas],
            options.get("weight", [1.0] * 3),
            density if isinstance(density, list) else [density] * 3,
            options.get("lambda", 1.0),
            **settings,
        )
        assert_close(merged, base, expected, names)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"lambda": 1.5, "weight": [0.2, 0.9, -0.4]}, {"normalize": True, "weight": [1, 2, 3]}]
)
def test_task_arithmetic(options, dtype):
    base, models = random_family(3, 5, dtype)
    merged = merge_state_dicts(base, models, "task_arithmetic", **options)
    names = list(SHAPES)
    expected = reference.task_arithmetic(
        [flat(deltas_of(base, model), names) for model in models],
        options.get("weight", [1.0] * 3),
        options.get("lambda", 0.4),
        options.get("normalize", False),
    )
    assert_close(merged, base, expected, names)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"weight": [0.2, 0.9, 0.4]}, {"weight": [0.2, 0.9, 0.4], "normalize": False}]
)
def test_linear(options, dtype):
    base, models = random_family(3, 6, dtype)
    merged = merge_state_dicts(None, models, "linear", **options)
    names = list(SHAPES)
    expected = reference.linear(
        [flat(model, names) for model in models],
        options.get("weight", [1.0] * 3),
        options.get("normalize", True),
    )
    zero = {name: torch.zeros_like(value) for name, value in base.items()}
    assert_close(merged, zero, expected, names)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp(t, dtype):
    base, models = random_family(1, 7, dtype)
    models[0]["model.layers.0.self_attn.q_proj.weight"] = torch.randn(
        6, 6, generator=torch.Generator().manual_seed(1)
    ).to(dtype)
    models[0]["model.layers.0.input_layernorm.weight"] = torch.zeros(6, dtype=dtype)
    merged = merge_state_dicts(base, models, "slerp", t=t)
    zero = {name: torch.zeros_like(value) for name, value in base.items()}
    for name in SHAPES:
        expected = reference.slerp(flat(base, [name]), flat(models[0], [name]), t)
        assert_close(merged, zero, expected, [name])
