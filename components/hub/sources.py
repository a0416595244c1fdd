"""From what a visitor typed to an open model: a folder, a demo model, a Hub id, an adapter over one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from components.hub.desk import Looked
from components.numbers import count, size
from components.server.backend import hub_desk
from components.server.settings import Settings
from components.stages import RUN, run_folder
from merging import Checkpoint, CheckpointError, MergingError
from merging.folders.adapter_file import is_adapter
from merging.hub.client import Pinned
from merging.references import Reference
from merging.sources import open_model

DEMO = "demo:"


class NotAsked(MergingError):
    """The Hub has not been asked for a model yet; `reference` is what to ask for."""

    def __init__(self, reference: Reference):
        self.reference = reference
        super().__init__("Press Enter in the field to look it up on the Hub.")


@dataclass(frozen=True)
class Opened:
    """A model that was typed: its short name, what recipes call it, the model itself, and what it still lacks.

    `model` is None for an adapter that has to be downloaded before it can be read; `looked` is what the Hub said of the model
    and of the adapter, where they come from there.
    """

    typed: str
    reference: str
    model: Checkpoint | None
    looked: tuple[Looked, ...] = ()

    @property
    def name(self) -> str:
        if self.typed.startswith(RUN) and self.model is not None:
            return self.model.label
        return name_of(self.typed)

    @property
    def missing(self) -> int:
        """Bytes that are still to be downloaded."""
        return sum(looked.missing for looked in self.looked)

    @property
    def pinned(self) -> tuple[Pinned, ...]:
        return tuple(looked.pinned for looked in self.looked if looked.pinned is not None)


@dataclass(frozen=True)
class Place:
    """A model or an adapter without what it stands on: its name in a recipe, and what the Hub said of it."""

    reference: Reference
    looked: Looked | None = None
    is_adapter: bool = False


def name_of(typed: str) -> str:
    """The short name of what was typed."""
    named = typed.rpartition("+")[2] if "+" in typed else typed
    hub = Reference.parse(named, lambda text: False)
    named = hub.model if hub.looks_like_hub else named.removeprefix(DEMO).removeprefix(RUN)
    return Path(named).name or typed


def parse(typed: str, settings: Settings) -> Reference:
    """What was typed as a reference; only where folders may be named does this look whether there is one."""

    def exists(text: str) -> bool:
        if text.startswith((DEMO, RUN)):
            return "+" not in text
        return settings.local_folders and _exists(text)

    return Reference.parse(typed, exists)


def open_typed(settings: Settings, owner: str, typed: str, base: str = "") -> Opened:
    """Open by headers what was typed; `base` is the reference of the base, which an adapter goes over.

    Raises:
        NotAsked: the Hub would have to be asked.
        MergingError: it is not there, cannot be read, or is not allowed here.
    """
    wanted = parse(typed, settings)
    model = _place(settings, owner, wanted.alone)
    adapter = _place(settings, owner, wanted.adapter) if wanted.adapter is not None else None
    if model.is_adapter:
        if adapter is not None:
            raise MergingError("Both are adapters; write MODEL+ADAPTER, with the model first.")
        if not base:
            raise MergingError("This is an adapter, which changes a model. Name its base first.")
        model, adapter = _place(settings, owner, parse(base, settings)), model
    elif adapter is not None and not adapter.is_adapter:
        raise MergingError(f"{adapter.reference}: is no adapter. After '+' comes the name of a LoRA adapter.")
    places = [model, *([adapter] if adapter is not None else [])]
    looked = tuple(place.looked for place in places if place.looked is not None)
    reference = str(replace(model.reference, adapter=adapter.reference if adapter is not None else None))
    if adapter is not None and adapter.looked is not None and adapter.looked.missing:
        return Opened(typed, reference, None, looked)
    opened = open_model(reference, remote=_remote(model))
    _require_small(settings, name_of(typed), opened)
    return Opened(typed, reference, opened, looked)


def _require_small(settings: Settings, name: str, model: Checkpoint) -> None:
    most = settings.largest_model
    if most is not None and model.parameters > most:
        raise MergingError(
            f"{name} has {count(model.parameters)} parameters, and this server takes models of {count(most)} at most; run "
            "Mergescope on your own machine for larger ones."
        )


def _remote(place: Place) -> Callable[[Reference], Checkpoint]:
    def opened(reference: Reference) -> Checkpoint:
        if place.looked is None or place.looked.model is None:
            raise CheckpointError(f"{reference}: its files were here and are gone; download it again.")
        return place.looked.model

    return opened


def _place(settings: Settings, owner: str, wanted: Reference) -> Place:
    if wanted.model.startswith(DEMO):
        return Place(Reference(demo_folder(wanted.model, settings)))
    if wanted.model.startswith(RUN):
        return Place(Reference(run_folder(settings, owner, wanted.model.removeprefix(RUN).strip())))
    if wanted.looks_like_hub and (wanted.revision or not (settings.local_folders and _exists(wanted.model))):
        return _on_hub(settings, owner, wanted)
    if not settings.local_folders:
        also = ", models of the Hub (org/name)" if settings.hub else ""
        raise MergingError(
            f"This server opens only the demo models (demo:NAME){also} and merges made here, not folders; run Mergescope "
            "on your own machine to merge models of yours."
        )
    try:
        folder = Path(wanted.model).expanduser()
    except RuntimeError:
        raise MergingError(
            f"{wanted.model}: there is no such user on this machine. Give the whole path."
        ) from None
    return Place(Reference(str(folder)), is_adapter=is_adapter(folder))


def _on_hub(settings: Settings, owner: str, wanted: Reference) -> Place:
    if not settings.hub:
        raise MergingError(
            "This server does not ask the Hub; run Mergescope on your own machine to use its models."
        )
    looked = hub_desk(settings).known(owner, wanted)
    if looked is None:
        raise NotAsked(wanted)
    if looked.pinned is None:
        raise MergingError(looked.problem)
    most = settings.largest_download
    if most is not None and looked.missing > most:
        raise MergingError(
            f"{looked.pinned.id} takes {size(looked.missing)} to download, and this server allows {size(most)} a model; run "
            "Mergescope on your own machine for larger ones."
        )
    pinned = Reference(looked.pinned.id, looked.pinned.commit)
    return Place(pinned, looked, is_adapter=looked.is_adapter)


def demo_folder(typed: str, settings: Settings) -> str:
    """The folder of `demo:NAME`.

    Raises:
        MergingError: there is no such demo model.
    """
    name = typed.removeprefix(DEMO).strip()
    known = sorted(path.name for path in settings.demo.glob("*/") if (path / "config.json").is_file())
    if name not in known:
        offer = ", ".join(DEMO + other for other in known) or "none; run examples/demo/train.py"
        raise MergingError(f"There is no demo model '{name}'. Those that exist: {offer}.")
    return str(settings.demo / name)


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False
