"""How replies are drawn: the system prompt and the numbers of the Chat tab, and what a question makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from components.server.settings import Settings
from merging.answering.drawing import LIMITS, Sampling

NUMBERS = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed")
"""The fields of `Sampling` in the order of their widgets, which follow the system prompt's."""


def build_sampling(settings: Settings) -> tuple[gr.components.Component, ...]:
    """The widgets: system prompt, then `NUMBERS`."""
    system = gr.Textbox(
        label="System prompt",
        info="Stands before every conversation, where a model's chat template takes one.",
        placeholder="None",
        lines=1,
        max_lines=6,
        max_length=settings.longest_prompt,
        elem_id="chat-system",
    )
    with gr.Row(elem_classes="ch-sampling"):
        numbers = (
            _slider("temperature", 0.05, "Temperature", "0 takes the likeliest token."),
            _slider("top_p", 0.05, "Top-p", "Draw among the likeliest tokens with this share.", low=0.05),
            _slider("top_k", 1, "Top-k", "Draw among so many of the likeliest; 0: all.", high=200),
            _slider("repetition_penalty", 0.05, "Repetition penalty", "Above 1: fewer repetitions."),
            _slider("max_new_tokens", 1, "Length", "Most tokens of a reply.", high=settings.longest_reply),
            gr.Number(
                Sampling().seed,
                label="Seed",
                info="Same seed, same reply.",
                precision=0,
                minimum=0,
                min_width=140,
                elem_id="chat-seed",
            ),
        )
    return system, *numbers


def _slider(
    name: str, step: float, label: str, info: str, *, low: float | None = None, high: float | None = None
) -> gr.Slider:
    least, most = LIMITS[name]
    return gr.Slider(
        least if low is None else low,
        most if high is None else high,
        value=min(getattr(Sampling(), name), most if high is None else high),
        step=step,
        label=label,
        info=info,
        min_width=200,
        elem_id=f"chat-{name.replace('_', '-')}",
    )


def system_of(drawn: tuple[Any, ...]) -> str:
    """The system prompt among what the widgets hold; empty where there is none."""
    return drawn[0].strip() if isinstance(drawn[0], str) else ""


def sampling_of(settings: Settings, drawn: tuple[Any, ...]) -> Sampling:
    """The numbers among what the widgets hold, brought into their limits."""
    sampling = Sampling.within_limits(**dict(zip(NUMBERS, drawn[1:], strict=True)))
    return replace(sampling, max_new_tokens=min(sampling.max_new_tokens, settings.longest_reply))
