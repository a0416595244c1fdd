"""The maps of a merge as pictures for its card: drawn with Pillow from what was measured, in the page's colours.

They are drawn on white, so that they read the same on a light and a dark page.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from merging.anatomy import block_name
from merging.cards.colours import BLUE_RED, CIVIDIS, Colour, colour_at, ink_on, percentile
from merging.cards.fate_words import WORDS
from merging.inspecting.sums import total
from merging.reports.report import Grid, Preview, Report

FOLDER = "pictures"
WIDTH = 1400
"""Pixels; the Hub shows them about half as wide."""
EDGE, GAP = 40, 48
TITLE, TEXT, SMALL = 34, 24, 20
"""Heights of letters."""
WHITE, INK, QUIET, BAR = (255, 255, 255), (23, 32, 51), (84, 96, 119), (79, 91, 201)
TALLEST, LOWEST, MAP = 46, 8, 900
"""Most and least pixels of a cell's height, and about those of a map of many blocks."""
WIDEST = 150
"""Most pixels of a cell's width."""
LEAST_LIMIT = 0.02
"""The colours around the chance level reach at least this far."""
LEAST_TOLD = 0.005
"""A smaller share is not spoken of."""
MOST_NAME = 30
LLAMA = {"q", "k", "v", "o", "gate", "up", "down"}
"""The modules of most language models of today."""
_MODULES = " The attention consists of q, k, v and o, the feed-forward layer of gate, up and down."
NOT_LATIN = 0x250
"""The first letter that Pillow's own font lacks for sure."""


@dataclass(frozen=True)
class Picture:
    """A PNG file and the words around it; `alt` says the same to those who cannot see it."""

    name: str
    title: str
    note: str
    alt: str
    png: bytes


@dataclass(frozen=True)
class _Panel:
    """A small map: what colours a cell from 0 to 1, and what is written in it; None is a gap."""

    name: str
    grid: Grid
    place: Callable[[int, int], float]
    word: Callable[[float], str]


def card_pictures(report: Report, names: Sequence[str]) -> list[Picture]:
    """Every picture that a report has something for; `names` are what its experts are called."""
    found = [_change(report, names), _conflict(report)]
    if report.preview is not None:
        found.append(_fate(report.preview, names))
    return [one for one in found if one is not None]


def _change(report: Report, names: Sequence[str]) -> Picture | None:
    grids = [report.grid(lambda one, t=t: one.relative_change(t)) for t in range(len(names))]  # type: ignore[misc]
    values = sorted(value for grid in grids for value in _known(grid))
    if not values:
        return None
    low, high = percentile(values, 0.02), percentile(values, 0.98)
    spread = (high - low) or 1.0

    def panel(name: str, grid: Grid) -> _Panel:
        return _Panel(
            name, grid, lambda row, column: (_at(grid, row, column) - low) / spread, "{:#.2g}".format
        )

    title = "How far each expert moved from the base"
    return Picture(
        name="change.png",
        title=title,
        note="Length of the change beside the length of the base's weights, block by block and module by module; the "
        "brighter, the larger. A gap: no such module." + (_MODULES if {*grids[0].columns} >= LLAMA else ""),
        alt=" ".join([f"{title}.", *(_told(name, grid) for name, grid in zip(names, grids, strict=True))]),
        png=_maps(
            title,
            [panel(name, grid) for name, grid in zip(_drawable(names), grids, strict=True)],
            CIVIDIS,
            [f"{low:.3g} or less", f"{(low + high) / 2:.3g}", f"{high:.3g} or more"],
        ),
    )


def _conflict(report: Report) -> Picture | None:
    if not report.pairs:
        return None
    grid = report.grid(lambda one: one.signs.split_share())
    chance = report.grid(lambda one: one.signs.split_chance())
    if not _known(grid):
        return None

    def apart(row: int, column: int) -> float:
        return _at(grid, row, column) - _at(chance, row, column)

    cells = [(r, c) for r in range(len(grid.rows)) for c in range(len(grid.columns))]
    measured = [(r, c) for r, c in cells if None not in (grid.values[r][c], chance.values[r][c])]
    limit = max(LEAST_LIMIT, percentile(sorted(abs(apart(r, c)) for r, c in measured), 0.98))
    title = "Where the experts pull the same weights in opposite directions"
    panel = _Panel("all experts", grid, lambda r, c: 0.5 + apart(r, c) / (2 * limit), "{:.2f}".format)
    level = total(report.tensors.values()).signs.split_chance()
    by_chance = (
        f" Experts that have nothing to do with each other would show about {level:.2f}." if level else ""
    )
    return Picture(
        name="conflict.png",
        title=title,
        note="Share of the weights that some raised and others lowered, among those that at least two changed."
        f"{by_chance} Red is more than that, blue is less.",
        alt=f"{title}. {_told('All experts', grid)}",
        png=_maps(title, [panel], BLUE_RED, [f"{limit:.2f} below chance", "chance", f"{limit:.2f} above"]),
    )


def _fate(preview: Preview, names: Sequence[str]) -> Picture | None:
    if not preview.tensors:
        return None
    whole = total(preview.tensors.values())
    experts = range(len(names))
    if whole.energy is not None:
        title = "What became of each expert's change"
        rows = [[(words, whole.share(t, key) or 0.0) for key, words in WORDS.items()] for t in experts]
        shares = [[(words.label, _colour(words.colour), share) for words, share in row] for row in rows]
        note = "Share of the change by energy, large changes weigh more than many tiny ones. " + " ".join(
            f"{words.label.capitalize()}: {words.meaning}."
            for number, words in enumerate(WORDS.values())
            if any(row[number][2] >= LEAST_TOLD for row in shares)
        )
    else:
        title = "How much of each expert's change is in the merge"
        shares = [[("present", BAR, whole.projection(t) or 0.0)] for t in experts]
        note = "Projection of the merged change on the expert's: 100 % is fully present, 0 % is absent."
    told = "; ".join(
        f"{name} "
        + ", ".join(f"{label} {100 * share:.0f} %" for label, _, share in row if abs(share) >= LEAST_TOLD)
        for name, row in zip(names, shares, strict=True)
    )
    return Picture("fate.png", title, note, f"{title}: {told}.", _bars(title, _drawable(names), shares))


def _maps(title: str, panels: Sequence[_Panel], stops: Sequence[str], ticks: Sequence[str]) -> bytes:
    """Small maps side by side on one scale, which is drawn below."""
    grid = panels[0].grid
    across = min(len(panels), 3 if len(grid.columns) <= 8 else 2 if len(grid.columns) <= 14 else 1)
    left = max(_wide(word, SMALL) for word in ("block", *map(_row, grid.rows))) + 16
    room = (WIDTH - 2 * EDGE - left - GAP * (across - 1)) // across
    cell = min(WIDEST, max(1, room // len(grid.columns))), max(LOWEST, min(TALLEST, MAP // len(grid.rows)))
    turned = max(_wide(column, SMALL) for column in grid.columns) > cell[0] - 6
    under = (max(_wide(column, SMALL) for column in grid.columns) if turned else SMALL) + 18
    step = TEXT + 16 + cell[1] * len(grid.rows) + under + 22
    top = EDGE + TITLE + 26
    height = top + math.ceil(len(panels) / across) * step + 2 * SMALL + 34 + EDGE // 2
    image, draw = _canvas(height, title)
    for number, panel in enumerate(panels):
        x = EDGE + left + (number % across) * (room + GAP)
        y = top + (number // across) * step
        draw.text((x, y + TEXT), panel.name, fill=INK, font=_font(TEXT), anchor="ls")
        _cells(draw, panel, (x, y + TEXT + 16), cell, stops)
        _columns(image, grid, (x, y + TEXT + 16 + cell[1] * len(grid.rows) + 8), cell[0], turned)
        if number % across == 0:
            _rows(draw, grid, (x - 10, y + TEXT + 16), cell[1])
    _scale(draw, height - 2 * SMALL - 14 - EDGE // 2, stops, ticks)
    return _png(image)


def _cells(
    draw: ImageDraw.ImageDraw,
    panel: _Panel,
    corner: tuple[int, int],
    cell: tuple[int, int],
    stops: Sequence[str],
) -> None:
    font, gap = _font(SMALL), 2 if cell[1] >= 12 else 0
    for row, line in enumerate(panel.grid.values):
        for column, value in enumerate(line):
            if value is None:
                continue
            colour = colour_at(stops, panel.place(row, column))
            x, y = corner[0] + column * cell[0], corner[1] + row * cell[1]
            draw.rectangle((x, y, x + max(0, cell[0] - 3), y + cell[1] - 1 - gap), fill=colour)
            word = panel.word(value)
            if cell[1] >= SMALL + 8 and _wide(word, SMALL) <= cell[0] - 8:
                middle = (x + cell[0] / 2 - 1, y + (cell[1] - gap) / 2)
                draw.text(middle, word, fill=ink_on(colour), font=font, anchor="mm")


def _rows(draw: ImageDraw.ImageDraw, grid: Grid, corner: tuple[int, int], height: int) -> None:
    """Names of the blocks, as many as have room, and above them what they are."""
    draw.text((corner[0], corner[1] - 16), "block", fill=QUIET, font=_font(SMALL), anchor="rs")
    every = next(step for step in (1, 2, 4, 5, 10, 20, 50) if step * height >= SMALL + 4 or step == 50)
    for number, row in enumerate(grid.rows):
        if number % every == 0:
            place = (corner[0], corner[1] + (number + 0.5) * height)
            draw.text(place, _row(row), fill=QUIET, font=_font(SMALL), anchor="rm")


def _columns(image: Image.Image, grid: Grid, corner: tuple[int, int], width: int, turned: bool) -> None:
    """Names of the modules below their column, upright where they are too long."""
    for number, name in enumerate(grid.columns):
        label = Image.new("RGB", (_wide(name, SMALL) + 2, SMALL + 8), WHITE)
        ImageDraw.Draw(label).text((1, 0), name, fill=QUIET, font=_font(SMALL))
        if turned:
            label = label.rotate(90, expand=True)
        middle = corner[0] + number * width + width // 2 - 1
        image.paste(label, (middle - label.width // 2, corner[1]))


def _scale(draw: ImageDraw.ImageDraw, y: int, stops: Sequence[str], ticks: Sequence[str]) -> None:
    """The colours from low to high over the whole width, and what low, middle and high mean."""
    wide = WIDTH - 2 * EDGE
    for x in range(wide):
        draw.line((EDGE + x, y, EDGE + x, y + 14), fill=colour_at(stops, x / (wide - 1)))
    for share, tick, anchor in zip((0, 0.5, 1), ticks, ("la", "ma", "ra"), strict=True):
        draw.text((EDGE + share * wide, y + 22), tick, fill=QUIET, font=_font(SMALL), anchor=anchor)


def _bars(title: str, names: Sequence[str], rows: Sequence[Sequence[tuple[str, Colour, float]]]) -> bytes:
    """A stacked bar for each expert, its parts named where they have room; a legend below."""
    step, thick = 74, 50
    top = EDGE + TITLE + 30
    image, draw = _canvas(top + step * len(rows) + SMALL + 30 + EDGE // 2, title)
    left = EDGE + max(_wide(name, TEXT) for name in names) + 22
    most = max(1.0, *(sum(max(0.0, share) for _, _, share in row) for row in rows))
    room = (WIDTH - EDGE - left) / most
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        y, x = top + number * step, float(left)
        draw.text((left - 16, y + thick / 2), name, fill=INK, font=_font(TEXT), anchor="rm")
        draw.rectangle((left, y, left + room, y + thick), outline=(205, 211, 222))
        for label, colour, share in row:
            end = x + max(0.0, share) * room
            if end - x >= 1:
                draw.rectangle((x, y, max(x, end - 2), y + thick), fill=colour)
            words = (f"{label} {100 * share:.0f} %", f"{100 * share:.0f} %")
            if word := next((one for one in words if _wide(one, SMALL) <= end - x - 12), ""):
                draw.text(((x + end) / 2, y + thick / 2), word, fill=WHITE, font=_font(SMALL), anchor="mm")
            x = end
    _legend(draw, top + step * len(rows) + 4, [(label, colour) for label, colour, _ in rows[0]])
    return _png(image)


def _legend(draw: ImageDraw.ImageDraw, y: int, entries: Sequence[tuple[str, Colour]]) -> None:
    x = EDGE
    for label, colour in entries:
        draw.rectangle((x, y, x + SMALL, y + SMALL), fill=colour)
        draw.text((x + SMALL + 10, y + SMALL / 2), label, fill=QUIET, font=_font(SMALL), anchor="lm")
        x += SMALL + 10 + _wide(label, SMALL) + 34


def _canvas(height: int, title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (WIDTH, height), WHITE)
    draw = ImageDraw.Draw(image)
    draw.text((EDGE, EDGE - 8), title, fill=INK, font=_font(TITLE))
    return image, draw


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The letters that come with Pillow, so that every machine draws the same."""
    return ImageFont.load_default(size)


def _wide(text: str, size: int) -> int:
    return math.ceil(_font(size).getlength(text))


def _drawable(names: Sequence[str]) -> list[str]:
    """Names as the letters that come with Pillow can write them; one in another script is told by its number."""
    return [
        f"expert {number}"
        if any(ord(letter) >= NOT_LATIN for letter in name)
        else name
        if len(name) <= MOST_NAME
        else f"{name[: MOST_NAME - 1]}…"
        for number, name in enumerate(names, 1)
    ]


def _row(block: int | str | None) -> str:
    return "outside" if block is None else str(block)


def _known(grid: Grid) -> list[float]:
    return [value for line in grid.values for value in line if value is not None]


def _at(grid: Grid, row: int, column: int) -> float:
    return grid.values[row][column] or 0.0


def _told(name: str, grid: Grid) -> str:
    """The least and the most of a map, and where."""
    cells = [
        (value, f"{kind} outside the blocks" if block is None else f"{block_name(block)}, {kind}")
        for block, line in zip(grid.rows, grid.values, strict=True)
        for kind, value in zip(grid.columns, line, strict=True)
        if value is not None
    ]
    if not cells:
        return f"{name}: nothing."
    (low, where_low), (high, where_high) = min(cells), max(cells)
    return f"{name}: from {low:.3g} ({where_low}) to {high:.3g} ({where_high})."


def _colour(text: str) -> Colour:
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue
