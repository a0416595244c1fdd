"""Runs in mergekit's environment: its merge methods on tensors in memory, without models or files of models.

    python run_kernels.py JOBS.pt ANSWERS.pt

A job is {method, base (a tensor or None), models (tensors), parameters}; a list is one value for each model but the
base. Where a method takes no base, `base` is None. The answer to it is the merged tensor, or the text of an error.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from mergekit.merge_methods import TensorGroup, get


def merged(job: dict[str, Any]) -> torch.Tensor | str:
    base = [] if job["base"] is None else [job["base"]]
    group = TensorGroup.from_tensors([*base, *job["models"]], base_index=0 if base else None)
    try:
        (answer,) = get(job["method"])([group], parameters=job["parameters"])
    except Exception as error:  # whatever mergekit raises is its answer
        return f"{type(error).__name__}: {error}"
    return answer


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save([merged(job) for job in torch.load(sys.argv[1])], sys.argv[2])
