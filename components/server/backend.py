"""What outlives a page: the jobs, the models in memory and the run history, one of each for a folder of runs."""

from __future__ import annotations

from pathlib import Path

from components.hub.desk import HubDesk
from components.server.process import kept
from components.server.settings import Settings
from components.server.visits import Visits
from merging.answering.model_cache import ModelCache
from merging.jobs import JobStore
from merging.judging.history import History


def job_store(settings: Settings) -> JobStore:
    """The jobs under the settings' folder of runs."""
    return _limited(_store(settings.runs.resolve()), settings)


def download_store(settings: Settings) -> JobStore:
    """The downloads: they wait for the network, so they run beside the other jobs."""
    return _limited(_store(settings.downloads.resolve()), settings)


def push_store(settings: Settings) -> JobStore:
    """The pushes to the Hub: nobody's upload waits for another's download."""
    return _limited(_store(settings.pushes.resolve()), settings)


def hub_desk(settings: Settings) -> HubDesk:
    """What was looked up on the Hub, and the visitors' tokens."""
    return _desk(settings.runs.resolve(), settings.single_owner)


def model_cache(settings: Settings) -> ModelCache:
    """The models that answer in the chat."""
    return _models(settings.runs.resolve())


def visits(settings: Settings) -> Visits:
    """When every owner was here last."""
    return _visits(settings.runs.resolve())


def run_history(settings: Settings) -> History:
    """What was merged and how it did."""
    return _history(settings.history.resolve())


def _limited(store: JobStore, settings: Settings) -> JobStore:
    store.most_of_owner, store.most, store.longest = settings.owner_jobs, settings.jobs, settings.longest_job
    return store


@kept
def _store(folder: Path) -> JobStore:
    return JobStore(folder)


@kept
def _desk(folder: Path, machine_token: bool) -> HubDesk:
    return HubDesk(machine_token)


@kept
def _models(folder: Path) -> ModelCache:
    return ModelCache()


@kept
def _visits(folder: Path) -> Visits:
    return Visits(folder)


@kept
def _history(file: Path) -> History:
    return History(file)
