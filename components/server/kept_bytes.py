"""How much disk visitors take, and whether there is room for more under the settings' limits."""

from __future__ import annotations

from components.downloads import ZIPS, zip_folder
from components.hub.kept_models import make_room
from components.numbers import size
from components.server.backend import job_store
from components.server.folders import folder_bytes, inside
from components.server.settings import Settings
from merging import MergingError
from merging.hub.cache import cache_folder

MOST_UPLOADS = 100
"""Files as large as they may be that lie here before they are swept."""


def require_room(settings: Settings, nbytes: int, what: str, owner: str = "") -> None:
    """See that what is about to be kept stays within the limits of its owner and of all.

    Args:
        owner: whose it will be; empty for what belongs to all, such as a downloaded model.

    Raises:
        MergingError: it does not; says the limit and what to do.
    """
    if owner and settings.owner_disk is not None:
        held = owner_bytes(settings, owner)
        if held + nbytes > settings.owner_disk:
            raise MergingError(
                f"{what} takes {size(nbytes)}, what you keep here takes {size(held)}, and this server allows "
                f"{size(settings.owner_disk)} to each visitor. Delete merges that you no longer need, under Merge."
            )
    if settings.disk is not None:
        held = all_bytes(settings)
        if settings.disk >= nbytes > settings.disk - held:
            held -= make_room(settings, held + nbytes - settings.disk)
        if held + nbytes > settings.disk:
            raise MergingError(
                f"{what} takes {size(nbytes)}, and of the {size(settings.disk)} of this server {size(held)} are taken. Delete "
                "merges that you no longer need, or try again later, when what others left is gone."
            )


def require_room_to_upload(settings: Settings, nbytes: int) -> None:
    """See that there are not more uploads than all visitors together need: they stay for an hour.

    Raises:
        MergingError: there are.
    """
    if settings.ttl is None or settings.single_owner:
        return
    uploads = [one for one in inside(zip_folder("").parent) if not one.name.startswith(ZIPS)]
    if sum(map(folder_bytes, uploads)) + nbytes > MOST_UPLOADS * settings.largest_upload:
        raise MergingError("Others have uploaded much within this hour. Try again later.")
    require_room(settings, nbytes, "This upload")


def owner_bytes(settings: Settings, owner: str) -> int:
    """What the jobs of an owner and their zips take."""
    store = job_store(settings)
    zips = (zip_folder(job.id) for job in store.list(owner))
    return sum(map(folder_bytes, (store.folder / owner, *zips)))


def all_bytes(settings: Settings) -> int:
    """What all visitors together made the server keep; downloads of this machine's user count only where they lie within."""
    folders = {settings.runs.resolve(), settings.kept.resolve(), zip_folder("").parent.resolve()}
    if not settings.single_owner:
        folders.add(cache_folder().resolve())
    outermost = [one for one in folders if not any(other in one.parents for other in folders)]
    return sum(map(folder_bytes, outermost))
