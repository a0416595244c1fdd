"""What keeps visitors of a shared server apart from its owner, and all of them from files that are nobody's business."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import constants

from components.settings import Settings
from merging.hub_cache import cache_folder

CACHE_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME")


def keep_apart(settings: Settings) -> None:
    """On a shared server: the owner's token is used for nobody, and what visitors upload or download lies in folders of its
    own. To be called before the page is built."""
    if settings.single_owner:
        return
    os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    constants.HF_HUB_DISABLE_IMPLICIT_TOKEN = True
    if not any(os.environ.get(name) for name in CACHE_VARIABLES):
        constants.HF_HUB_CACHE = str(settings.hub_cache)
    os.environ.setdefault("GRADIO_TEMP_DIR", str(settings.kept / "uploads"))


def private_paths(settings: Settings) -> list[str]:
    """Folders of which the server sends no file: runs, inspections, models of the Hub, and where a token lies."""
    folders = (settings.runs, settings.reports, cache_folder(), Path(constants.HF_TOKEN_PATH).parent)
    return [str(folder.resolve()) for folder in folders]
