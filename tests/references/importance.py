"""An importance artefact over a family in memory, with made-up scores."""

from __future__ import annotations

import torch

from merging.checkpoint import StateDict
from merging.importances.artefact import Description, ExpertFacts, Importance, Parent, fingerprint
from merging.partitions import make_partitions


def made_up_importance(base, models, partition="module", *, seed=0, elements=True, equal=False):
    """Long-tailed scores of both signs for every partition, or equal ones; with `elements` also one for each weight."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tuple(value.shape) for name, value in base.items()}

    def noise(*shape):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.sign() * values.abs().exp()

    size = (len(models), len(make_partitions(shapes, {}, partition)))
    description = Description(
        how="gradient",
        at="base",
        partition=partition,
        samples=16,
        base=Parent(name="base", fingerprint=fingerprint(StateDict(base, "base"))),
        experts=tuple(
            ExpertFacts(
                name=f"model {number}",
                fingerprint=fingerprint(StateDict(model, f"model {number}")),
                data="0" * 32,
                base_loss=2.0,
                expert_loss=1.0,
            )
            for number, model in enumerate(models, 1)
        ),
        shapes=shapes,
        config={},
    )
    signed = torch.ones(size, dtype=torch.float64) if equal else noise(*size)
    sources = None
    if elements:
        sources = tuple(
            StateDict({name: noise(*shape).to(torch.float32) for name, shape in shapes.items()}, "elements")
            for _ in models
        )
    return Importance(description, signed, torch.ones(size, dtype=torch.float64), sources)
