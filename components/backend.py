"""What outlives a page: the jobs, the models in memory and the run history, one of each for a folder of runs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from components.settings import Settings
from merging.history import History
from merging.jobs import JobStore
from merging.model_cache import ModelCache


def job_store(settings: Settings) -> JobStore:
    """The jobs under the settings' folder of runs."""
    return _store(settings.runs.resolve())


def model_cache(settings: Settings) -> ModelCache:
    """The models that answer in the chat."""
    return _models(settings.runs.resolve())


def run_history(settings: Settings) -> History:
    """What was merged and how it did."""
    return _history(settings.history.resolve())


@cache
def _store(folder: Path) -> JobStore:
    return JobStore(folder)


@cache
def _models(folder: Path) -> ModelCache:
    return ModelCache()


@cache
def _history(file: Path) -> History:
    return History(file)
