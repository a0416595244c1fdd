"""A random family of awkward shapes, and the comparison of a merge with a float64 reference."""

from __future__ import annotations

import numpy as np
import torch

from merging import METHODS
from merging.anatomy import locate
from references import noise

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
NAMES = sorted(SHAPES)
EXPERTS = 3
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HALF_ULP = {torch.float32: (2.0**-24, -126), torch.float16: (2.0**-11, -14), torch.bfloat16: (2.0**-8, -126)}
"""Half the gap between neighbours at 1, and the exponent below which gaps stay equal."""


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


def coarse_family(experts, seed, dtype):
    """Changes of −½, −¼, 0, ¼ and ½ alone: equal magnitudes and sums of exactly 0 everywhere."""
    generator = torch.Generator().manual_seed(seed)
    base = {
        name: torch.randint(-2, 3, shape, generator=generator).to(dtype) for name, shape in SHAPES.items()
    }
    models = [
        {
            name: (value + torch.randint(-2, 3, value.shape, generator=generator) / 4).to(dtype)
            for name, value in base.items()
        }
        for _ in range(experts)
    ]
    return base, models


def small_family(experts=EXPERTS, seed=0, dtype=torch.float32, shape=(8, 6)):
    """Two matrices of this shape in two blocks, and a norm."""
    generator = torch.Generator().manual_seed(seed)
    base = {
        "model.layers.0.mlp.up_proj.weight": torch.randn(shape, generator=generator).to(dtype),
        "model.layers.1.mlp.up_proj.weight": torch.randn(shape, generator=generator).to(dtype),
        "model.norm.weight": torch.ones(6, dtype=dtype),
    }
    models = [
        {
            name: (value.float() + torch.randn(value.shape, generator=generator) * 0.05).to(dtype)
            for name, value in base.items()
        }
        for _ in range(experts)
    ]
    return base, models


def number_of_experts(method):
    return METHODS[method].experts_wanted or EXPERTS


def scopes_of(scope):
    """Lists of tensor names that are ranked together, in the order that breaks ties."""
    if scope == "model":
        return [NAMES]
    if scope == "tensor":
        return [[name] for name in SHAPES]
    groups = {}
    for name in NAMES:
        block = locate(name).block
        groups.setdefault(name if block is None else block, []).append(name)
    return list(groups.values())


def flat(tensors, names):
    return np.concatenate([tensors[name].double().flatten().numpy() for name in names])


def deltas_of(base, model):
    """Task vectors as float32, as the specification asks."""
    return {name: model[name].float() - base[name].float() for name in base}


def per_model(value, experts=3):
    return list(value) if isinstance(value, list | tuple) else [value] * experts


def masks_of(keep, names, seed, expert):
    """The random mask of some tensors one after another; `keep` is the flat probability of each of their elements."""
    found, start = [np.zeros(0, dtype=bool)], 0
    for name in names:
        stop = start + int(np.prod(SHAPES[name], dtype=int))
        found.append(noise.keep_mask(keep[start:stop], seed, expert, name))
        start = stop
    return np.concatenate(found)


def heavy_family(experts, seed, dtype):
    """Changes with long tails, so that some stand out from their mean."""
    generator = torch.Generator().manual_seed(seed)

    def noise(shape):
        return torch.randn(shape, generator=generator)

    base = {name: noise(shape).to(dtype) for name, shape in SHAPES.items()}
    models = []
    for _ in range(experts):
        changes = {n: noise(s).sign() * (1.5 * noise(s)).exp() / 64 for n, s in SHAPES.items()}
        models.append({name: (base[name].float() + change).to(dtype) for name, change in changes.items()})
    return base, models


def assert_close(merged, base, change, names, *, leave_out=None, relative=1e-6):
    """The merged tensors are base + change, off by no more than the cast and float32's own rounding of the change.

    Args:
        change: float64, the tensors one after another.
        leave_out: elements that are not compared.
        relative: how far the change may be off, as a share of the tensor's largest.
    """
    start = 0
    for name in names:
        value = merged[name]
        stop = start + value.numel()
        part = change[start:stop]
        wanted = flat(base, [name]) + part
        half, smallest = HALF_ULP[value.dtype]
        exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(wanted), 2.0**-140))), smallest)
        bound = 1.001 * half * 2.0**exponent + relative * np.abs(part).max(initial=0)
        error = np.abs(flat(merged, [name]) - wanted)
        if leave_out is not None:
            error = np.where(leave_out[start:stop], 0, error)
        worst = int(np.argmax(error - bound)) if error.size else 0
        assert (error <= bound).all(), (
            f"{name}[{worst}]: off by {error[worst]:.3g}, wanted {wanted[worst]:.9g}"
        )
        start = stop
    assert start == len(change)
