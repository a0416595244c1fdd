"""How the page writes counts, differences, bytes and times."""

from __future__ import annotations


def count(number: float) -> str:
    """1.24 M, 7.24 B."""
    return _short(number, (("B", 1e9), ("M", 1e6), ("k", 1e3))) or f"{number:.0f}"


def signed(difference: float) -> str:
    """+1.2, −0.4."""
    return f"{'−' if difference < 0 else '+'}{abs(difference):.1f}"


def size(nbytes: float) -> str:
    """2.49 MB, 14.5 GB."""
    return _short(nbytes, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))) or f"{nbytes:.0f} bytes"


def _short(number: float, units: tuple[tuple[str, float], ...]) -> str | None:
    """Three digits and a unit; None below the smallest unit."""
    for unit, factor in units:
        if number >= 0.9995 * factor:
            return f"{number / factor:#.3g}".rstrip(".") + f" {unit}"
    return None


def clock(seconds: float) -> str:
    """Minutes and seconds, hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
