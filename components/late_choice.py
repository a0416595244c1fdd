"""Choices whose list the server renews, as a radio, as checkboxes and as a dropdown.

A visitor's click may be on its way while the list changes. Gradio answers a choice of the older list with an error;
here it is handed on, and who reads it checks it.
"""

from __future__ import annotations

from typing import Any

import gradio as gr


class LateRadio(gr.Radio):
    """A radio that hands on any choice."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """What the browser sent."""
        return payload


class LateCheckboxGroup(gr.CheckboxGroup):
    """Checkboxes that hand on any choice."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """What the browser sent."""
        return payload


class LateDropdown(gr.Dropdown):
    """A dropdown that hands on any choice."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """What the browser sent."""
        return payload
