"""What the page says of a mistake in its corner."""

from __future__ import annotations

import html

import gradio as gr


def toast(text: str, heading: str) -> gr.Error:
    """An error as the page shows it; toasts take HTML, so the text is escaped."""
    return gr.Error(html.escape(text), title=heading, print_exception=False)
