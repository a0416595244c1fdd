"""What goes home of a merge beside its weights: the model card with everything that is known by now, and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

CARD = "README.md"


def parcel(folder: str | Path, *, scores: Sequence[object] | None = None) -> dict[str, bytes]:
    """Files by name that lie over a merge's own when it leaves this machine."""
    card = Path(folder) / CARD
    return {CARD: card.read_bytes()} if card.is_file() else {}
