"""Runs in mergekit's environment: many recipes in one process, each with what mergekit resolved for every tensor.

    python run_mergekit.py JOBS.json ANSWERS.json

A job is {name, recipe (a file), out (a folder, or null: only read the recipe), seed}. The answer to it is
{error: text or null, tensors: {output name: what mergekit resolved for it}}; what was asked before is resolved once.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import _model_out_config, run_merge
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner


def read(recipe: str) -> MergeConfiguration:
    return MergeConfiguration.model_validate(yaml.safe_load(Path(recipe).read_text()))


def resolved(recipe: str, options: MergeOptions) -> dict[str, Any]:
    """Models in order, their tensors, and the parameters, as mergekit resolves them for every output tensor."""
    config = read(recipe)
    architecture = get_architecture_info(config, options)
    LoaderCache().setup(options)
    planner = MergePlanner(config, architecture, options, _model_out_config(config, architecture))
    planner._plan()
    answer = {}
    for weight, task in planner._tensors:
        gathered = getattr(task.gather_tensors, "gather_tensors", task.gather_tensors)  # inside a permutation
        answer[weight.name] = {
            "models": [str(model) for model in task.model_order],
            "base": str(task.base_model) if task.base_model else None,
            "names": {str(model): weight.name for model, weight in gathered.weight_info.items()},
            "shared": dict(task.parameters.items()),
            "own": {str(model): dict(values.items()) for model, values in task.input_parameters.items()},
        }
    return answer


def answer(job: dict[str, Any], known: set[str]) -> dict[str, Any]:
    options = MergeOptions(
        copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=job["seed"], device="cpu"
    )
    try:
        if job["out"] is None:
            return {"error": None, "config": read(job["recipe"]).model_dump(mode="json", exclude_none=True)}
        tensors = None if job["recipe"] in known else resolved(job["recipe"], options)
        known.add(job["recipe"])
        run_merge(read(job["recipe"]), job["out"], options)
    except Exception as error:  # whatever mergekit raises is its answer
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": None, "tensors": tensors}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    jobs = json.loads(Path(sys.argv[1]).read_text())
    known: set[str] = set()
    answers = {job["name"]: answer(job, known) for job in jobs}
    Path(sys.argv[2]).write_text(json.dumps(answers))
