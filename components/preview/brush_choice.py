"""Which cells of a map are chosen, whether with the mouse or by their names. No widgets here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from components.clickable_plot import Rectangle
from components.merge.recipe import expert_names
from components.preview.brush import Cell, brushable, tensors_of
from components.preview.brush_globs import runs
from merging import METHODS, Recipe
from merging.anatomy import Block, block_order, block_words, locate
from merging.methods import get_method

EMPTY = (
    "No cells chosen. Drag over the map, click a name beside it, or choose here; one block and one module also show "
    "the bars of that cell. Escape clears."
)


@dataclass(frozen=True)
class BrushSource:
    """What turns cells of a map into tensors, and what can be set for them."""

    rows: tuple[Block | None, ...]
    """The map's blocks from top to bottom; None is what lies outside the blocks."""
    columns: tuple[str, ...]
    """The map's module kinds from left to right."""
    tensors: tuple[str, ...]
    """The names of all tensors of the plan."""
    method: str
    profile: str
    models: tuple[str, ...]
    """The experts as the recipe names them."""
    names: tuple[str, ...]
    """Their short names."""
    has_base: bool

    @property
    def parameters(self) -> list[str]:
        """What the method lets a tensor have for itself."""
        return brushable(METHODS[self.method])


def brush_source(
    recipe: Recipe, rows: Sequence[Block | None], columns: Sequence[str], tensors: Sequence[str]
) -> BrushSource:
    """What the bar must know of a recipe and the map above it: its rows and columns, and the plan's tensor names."""
    return BrushSource(
        rows=tuple(rows),
        columns=tuple(columns),
        tensors=tuple(tensors),
        method=get_method(recipe.merge_method).name,
        profile=recipe.profile,
        models=tuple(entry.model for entry in recipe.models),
        names=expert_names(recipe),
        has_base=recipe.base_model is not None,
    )


@dataclass(frozen=True)
class Chosen:
    """Every cell of some blocks and some module kinds, as far as there is one."""

    blocks: tuple[Block | None, ...] = ()
    kinds: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.blocks and self.kinds)


NOTHING = Chosen()


def of_rectangle(source: BrushSource | None, cells: Rectangle | None) -> Chosen:
    """What a rectangle on the map covers; nothing where it is no part of it."""
    if source is None or cells is None:
        return NOTHING
    top, bottom, left, right = cells
    if bottom >= len(source.rows) or right >= len(source.columns):
        return NOTHING
    return Chosen(source.rows[top : bottom + 1], source.columns[left : right + 1])


def of_names(source: BrushSource | None, blocks: Collection[Block | None], kinds: Collection[str]) -> Chosen:
    """Named blocks and kinds in the map's order; blocks alone mean all their modules, and the other way round."""
    if source is None or not (blocks or kinds):
        return NOTHING
    rows = tuple(block for block in source.rows if block in blocks or not blocks)
    columns = tuple(kind for kind in source.columns if kind in kinds or not kinds)
    return Chosen(rows, columns) if rows and columns else NOTHING


def tensors_chosen(source: BrushSource | None, chosen: Chosen) -> list[str]:
    """The tensors of the chosen cells, in the plan's order."""
    if source is None:
        return []
    cells: list[Cell] = [(block, kind) for block in chosen.blocks for kind in chosen.kinds]
    return tensors_of(cells, source.tensors)


def rectangles(source: BrushSource | None, chosen: Chosen) -> list[Rectangle]:
    """The chosen cells as rectangles of the map."""
    if source is None or not chosen:
        return []
    rows = runs(number for number, block in enumerate(source.rows) if block in chosen.blocks)
    columns = runs(number for number, kind in enumerate(source.columns) if kind in chosen.kinds)
    return [(top, bottom, left, right) for top, bottom in rows for left, right in columns]


def named(source: BrushSource, chosen: Chosen) -> tuple[tuple[Block | None, ...], tuple[str, ...]]:
    """Blocks and kinds as the dropdowns name them: whole rows name no kind, whole columns no block."""
    if chosen.kinds == source.columns:
        return chosen.blocks, ()
    return (() if chosen.blocks == source.rows else chosen.blocks), chosen.kinds


def in_words(source: BrushSource | None, chosen: Chosen) -> str:
    """`12 cells chosen: blocks 2–4 × q, k, v`."""
    tensors = tensors_chosen(source, chosen)
    if source is None or not chosen:
        return EMPTY
    if not tensors:
        return (
            "There is nothing at the chosen place: gaps in the map are modules that these blocks do not have."
        )
    cells = len({(place.block, place.kind) for place in map(locate, tensors)})
    many = f" ({len(tensors)} tensors)" if len(tensors) != cells else ""
    blocks = "all blocks" if chosen.blocks == source.rows else _blocks(chosen.blocks)
    kinds = "all modules" if chosen.kinds == source.columns else ", ".join(chosen.kinds)
    return f"{cells} cell{'s' if cells > 1 else ''} chosen{many}: {blocks} × {kinds}"


def _blocks(blocks: Sequence[Block | None]) -> str:
    named = sorted({block for block in blocks if block is not None}, key=block_order)
    inside = [block_words(named, "–")] if named else []
    return " and ".join(inside + (["outside the blocks"] if None in blocks else []))
