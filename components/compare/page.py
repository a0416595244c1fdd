"""What one page says when something happens in the Compare tab, and how it is told what went wrong."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import gradio as gr

from components.compare.board import Board
from components.compare.rows import make_board
from components.compare.suites import Ruler, chosen
from components.family import Family
from components.server.settings import Settings
from components.shared import owner_id
from merging import MergingError, Recipe


@dataclass(frozen=True)
class Asked:
    """What the page says: who looks, at which models and recipe, and what is chosen."""

    settings: Settings
    family: Family
    recipe: Recipe
    stored: Any
    own: Ruler
    what: Any
    split: Any

    @property
    def owner(self) -> str:
        return owner_id(self.settings, self.stored)

    @property
    def ruler(self) -> Ruler:
        """What is chosen to measure by."""
        return chosen(self.settings, self.family, self.own, self.what, self.split)

    def board(self) -> Board:
        """What is known; empty where the history or a model cannot be read, which is said in a toast."""
        try:
            return make_board(self.settings, self.owner, self.family, self.ruler)
        except (MergingError, OSError) as error:
            warn(error, "The scores cannot be shown")
            return Board((), ())


def warn(error: Exception, heading: str) -> None:
    """Say what went wrong, in a sentence."""
    gr.Warning(html.escape(said(error)), title=heading)


def said(error: Exception) -> str:
    """An error as a sentence."""
    if isinstance(error, OSError):
        return f"{error.filename or 'A file'} could not be read: {error.strerror or error}. Try again."
    return str(error)
