"""The colours of the maps, on the page and in a card's pictures: Cividis for sizes, red and blue around a middle.

Source: the stops of plotly's scales of these names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Colour = tuple[int, int, int]

CIVIDIS = ["00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "e1cc55", "fee838"]
"""From the least to the most."""
BLUE_RED = [
    "053061",
    "2166ac",
    "4393c3",
    "92c5de",
    "d1e5f0",
    "f7f7f7",
    "fddbc7",
    "f4a582",
    "d6604d",
    "b2182b",
    "67001f",
]
"""From below the middle to above it."""


def colour_at(stops: Sequence[str], share: float) -> Colour:
    """The colour at a place from 0 to 1 of a scale; beyond its ends the last one."""
    place = min(1.0, max(0.0, share)) * (len(stops) - 1)
    below = min(int(place), len(stops) - 2)
    low, high = (bytes.fromhex(stops[number]) for number in (below, below + 1))
    red, green, blue = (round(a + (b - a) * (place - below)) for a, b in zip(low, high, strict=True))
    return red, green, blue


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever is easier to read on a colour (relative luminance of WCAG 2)."""
    linear = [
        (part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4) for part in colour
    ]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if light > 0.179 else (255, 255, 255)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between the values of an ascending list; 0 for an empty one."""
    if not ordered:
        return 0.0
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
