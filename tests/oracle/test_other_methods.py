"""mergekit's further methods on single tensors: awkward shapes, sizes of change from large to tiny, every parameter."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from references.mergekit_methods import stock_ratio

from merging import METHODS, merge_state_dicts
from oracle.conftest import ENVIRONMENT, OFFLINE, RUN_SECONDS

SHAPES = [(40, 24), (7,), (1,), (5, 1), (1, 6), (3, 4, 5), ()]
SIZES = [1e-1, 1e-2, 1e-3, 1e-4]
UNIT = 2.0**-24
CRUMBS: list[dict[str, Any]] = [
    {},
    {"density": 0.3, "gamma": 0.1},
    {"density": 0.5, "gamma": 0.7},
    {"density": 0.05, "gamma": 0.01, "normalize": True, "rescale": True},
    {"density": [0.2, 0.6, 1.0], "weight": [0.3, -0.2, 1.5], "lambda": 0.7},
]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "breadcrumbs": CRUMBS,
    "breadcrumbs_ties": CRUMBS,
    "model_stock": [{}, {"filter_wise": True}],
    "sce": [{}, {"select_topk": 0.4}, {"select_topk": 0.05}, {"select_topk": 0.0}],
    "nuslerp": [
        {"weight": [1.0, 1.0]},
        {"weight": [0.2, 0.9]},
        {"weight": [-0.3, 0.6]},
        {"weight": [0.5, -0.5]},
        {"weight": [0.3, 0.6], "nuslerp_flatten": False},
        {"weight": [0.3, 0.6], "nuslerp_flatten": False, "nuslerp_row_wise": True},
    ],
    "multislerp": [{}, {"weight": [0.2, 0.3, 0.9]}, {"weight": [0.2, 0.3, 0.9], "normalize_weights": False}],
    "karcher": [{}, {"max_iter": 0}, {"max_iter": 2, "tol": 1e-3}],
    "nearswap": [{"t": 1e-3}, {"t": 0.01}, {"t": 1e-7}],
    "arcee_fusion": [{}],
    "ram": [{}, {"epsilon": 1e-2}],
    "ramplus_tl": [{}, {"epsilon": 1e-2}, {"r": 0.5, "alpha": 0.9}],
    "passthrough": [{}, {"scale": 0.3}],
}
MODELS = {"model_stock": (2, 3), "sce": (1, 2, 3), "karcher": (1, 2, 3)}
ULPS = {
    "breadcrumbs": 12,
    "breadcrumbs_ties": 24,
    "model_stock": 4,
    "nuslerp": 8,
    "arcee_fusion": 0,
    "passthrough": 0,
}
"""How far apart both may lie, in units of 2⁻²⁴ of the largest input; l1 rescales sum up to 40·24 float32 values."""
OTHERWISE = 16


@dataclass(frozen=True)
class Job:
    method: str
    base: torch.Tensor | None
    models: list[torch.Tensor]
    parameters: dict[str, Any]

    @property
    def scale(self) -> float:
        """The largest input, or factor of it."""
        values = [*self.models, *([] if self.base is None else [self.base])]
        return max(float(value.abs().max()) for value in values)

    @property
    def ours(self) -> torch.Tensor:
        models = [{"only": model} for model in self.models]
        base = None if self.base is None else {"only": self.base}
        return merge_state_dicts(base, models, self.method, profile="mergekit", **self.parameters)["only"]


def jobs_of(method: str) -> list[Job]:
    generator = torch.Generator().manual_seed(7)
    chosen = METHODS[method]
    jobs = []
    for shape in SHAPES:
        for size in SIZES:
            for options in OPTIONS[method]:
                for count in MODELS.get(method, (chosen.experts_wanted or 3,)):
                    base = torch.randn(shape, generator=generator) * 0.05
                    common = torch.randn(shape, generator=generator) * size / 2
                    models = []
                    for _ in range(count):
                        own = torch.randn(shape, generator=generator) * size
                        if method.startswith("ram"):
                            own *= torch.rand(shape, generator=generator) > 0.5
                        models.append(base + common * (not method.startswith("ram")) + own)
                    weight = {"weight": 1.0} if "weight" in chosen.parameters() else {}
                    for has_base in {chosen.takes_base, chosen.needs_base}:
                        jobs.append(Job(method, base if has_base else None, models, {**weight, **options}))
    return jobs


def theirs(jobs: list[Job], folder: Path) -> list[torch.Tensor | str]:
    asked, answered = folder / "jobs.pt", folder / "answers.pt"
    torch.save([vars(job) for job in jobs], asked)
    command = [str(ENVIRONMENT / "bin" / "python"), str(Path(__file__).with_name("run_kernels.py"))]
    done = subprocess.run(
        [*command, str(asked), str(answered)],
        env={**os.environ, **OFFLINE},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(answered)


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, list[tuple[Job, torch.Tensor | str]]]:
    """All jobs with mergekit's answers, by method, from one run."""
    jobs = [job for method in OPTIONS for job in jobs_of(method)]
    found: dict[str, list[tuple[Job, torch.Tensor | str]]] = {method: [] for method in OPTIONS}
    for job, answer in zip(jobs, theirs(jobs, tmp_path_factory.mktemp("kernels")), strict=True):
        found[job.method].append((job, answer))
    return found


def steepness(job: Job) -> float:
    """How much Model Stock's t changes with the mean cosine, at its most: a small divisor makes much of a rounding."""
    changes = [(model - job.base).double().numpy() for model in job.models]
    length = (
        changes[0].shape[-1] if job.parameters.get("filter_wise") and changes[0].ndim else changes[0].size
    )
    count = len(changes)
    rows = zip(*(change.reshape(-1, length) for change in changes), strict=True)
    ratios = [stock_ratio(row, clamp=False, floor=1e-6) for row in rows]
    return max((count - (count - 1) * t) ** 2 / count for t in ratios)


def oppositeness(job: Job) -> float:
    """1/(1 + cosθ) of NuSLERP's two vectors, the largest: factors 1/sin θ grow without bound as they become opposite."""
    start = 0.0 if job.base is None else job.base
    one, other = ((model - start).double() for model in job.models)
    if job.parameters.get("nuslerp_flatten", True) or one.ndim < 2:
        one, other = one.reshape(1, -1), other.reshape(1, -1)
    elif job.parameters.get("nuslerp_row_wise"):
        one, other = one.transpose(0, -1), other.transpose(0, -1)
    cosine = torch.cosine_similarity(one, other, dim=-1)
    return float((1 / (1 + cosine.where(cosine > -1 + 1e-12, 1))).max())


STEEP = {"model_stock": steepness, "nuslerp": oppositeness}


@pytest.mark.parametrize("method", OPTIONS)
def test_tensors_agree(answers, method):
    """Every merged value is mergekit's, but for some float32 roundings of the largest input."""
    allowed, worst = ULPS.get(method, OTHERWISE), 0.0
    for job, answer in answers[method]:
        assert isinstance(answer, torch.Tensor), f"mergekit refuses {job.parameters}: {answer}"
        limit = allowed * (1 + STEEP[method](job)) if method in STEEP else allowed
        ulps = float((job.ours - answer).abs().max()) / job.scale / UNIT
        worst = max(worst, ulps)
        assert ulps <= limit, f"{tuple(answer.shape)}, {job.parameters}, {len(job.models)} models: {ulps:.1f}"
    print(f"\n{method}: {len(answers[method])} tensors, at most {worst:.1f} units apart")
