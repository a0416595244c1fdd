"""What becomes of an expert's change in a merge, in words and colours: on the page and in a card's pictures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FateWords:
    """What one fate is called, its colour and hatching in bars, and what it means."""

    label: str
    colour: str
    pattern: str
    meaning: str


WORDS = {
    "kept": FateWords("kept", "#117a4f", "", "points where the merged model really moved"),
    "dropped": FateWords(
        "dropped", "#667085", "", "was trimmed, dropped at random, or belongs to an expert of weight 0"
    ),
    "outvoted": FateWords(
        "out-voted", "#2a6fc0", "/", "survived the trimming, but lost the election of a sign"
    ),
    "rounded": FateWords(
        "rounded away",
        "#7a6a10",
        ".",
        "leaves the base's value in the output: too small for the number format, or nothing is left of it",
    ),
    "cancelled": FateWords(
        "cancelled", "#b93a33", "x", "was added, but the sum of all experts went the other way"
    ),
}
"""Every fate, in the order of the bars; colours reach a contrast of 4.5 against white text and 3 on the dark page."""
