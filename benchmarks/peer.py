"""Runs in mergekit's environment: one merge by mergekit; prints its seconds and peak memory as JSON.

.venv-mergekit/bin/python benchmarks/peer.py RECIPE.yaml OUT
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

import yaml
from memory import PeakMemory
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

if __name__ == "__main__":
    logging.disable(logging.WARNING)
    recipe = MergeConfiguration.model_validate(yaml.safe_load(Path(sys.argv[1]).read_text()))
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, device="cpu")
    with PeakMemory() as peak:
        started = time.perf_counter()
        run_merge(recipe, sys.argv[2], options)
        seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak": peak.bytes}))
