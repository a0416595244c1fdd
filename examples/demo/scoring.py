"""Scores of models and of their merges on the demo's tasks."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from sampling import EXPERT_TASKS

import merging
from merging.evaluation import SuiteResult, evaluate
from merging.inference import LoadedModel
from merging.judging.suites import Suite

Scores = dict[str, float]


@dataclass(frozen=True)
class Merge:
    """A method with its parameters, by the names `merging.merge_state_dicts` takes."""

    method: str
    parameters: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        settings = ", ".join(f"{name.rstrip('_')} {value}" for name, value in self.parameters.items())
        return f"{self.method} ({settings})" if settings else self.method


MERGES = [
    Merge("linear"),
    *(Merge("task_arithmetic", {"lambda_": value}) for value in (0.4, 0.6, 0.8, 1.0, 1.2)),
    *(
        Merge("ties", {"density": density, "lambda_": value})
        for density in (0.2, 0.5, 0.8)
        for value in (1.0, 1.5)
    ),
]


def load_suites(data: Path, split: str, tasks: Iterable[str]) -> dict[str, Suite]:
    """The suite of each task for one split, by task name."""
    return {task: Suite.load(data / task / f"{split}.jsonl") for task in tasks}


def score(model: LoadedModel, suites: Mapping[str, Suite]) -> dict[str, SuiteResult]:
    """The model's result on every suite."""
    return {task: evaluate(model, suite) for task, suite in suites.items()}


def scores_of(results: Mapping[str, SuiteResult]) -> Scores:
    """The plain scores of results."""
    return {task: result.score for task, result in results.items()}


def average(scores: Scores) -> float:
    """Mean score over the tasks that have an expert."""
    return sum(scores[task] for task in EXPERT_TASKS) / len(EXPERT_TASKS)


def merged_models(
    base: LoadedModel, experts: list[LoadedModel], merges: Iterable[Merge]
) -> Iterator[LoadedModel]:
    """The merged models, one after the other."""
    for merge in merges:
        weights = merging.merge_state_dicts(
            _weights(base), [_weights(expert) for expert in experts], merge.method, **merge.parameters
        )
        model = copy.deepcopy(base.model)
        model.load_state_dict(weights, strict=False)
        yield LoadedModel(model, base.tokenizer, base.path, base.device)


def _weights(model: LoadedModel) -> dict[str, torch.Tensor]:
    """Every parameter once: a tied output head is left out."""
    return {name: parameter.detach() for name, parameter in model.model.named_parameters()}
