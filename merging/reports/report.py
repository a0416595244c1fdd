"""What was measured on a family, and what one recipe makes of it: everything the maps show."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from merging.anatomy import Block, Place, block_order, kinds, locate
from merging.inspecting.changes import Conflict, TensorStatistics, pairs_of
from merging.inspecting.fate import TensorFate
from merging.inspecting.sums import Record, total
from merging.methods import Scope

Cell = tuple[Block | None, str]
"""Block (None outside the blocks) and kind of module: a place on every map."""
R = TypeVar("R", bound=Record)
T = TypeVar("T")


@dataclass(frozen=True)
class Trimmed(Record):
    """What is left of one tensor's changes after trimming: `kept` changes ≠ 0 of each expert, the smallest |δ| among them
    (infinite where there are none), and how their signs agree."""

    kept: list[int]
    threshold: list[float] = field(metadata={"combine": "smallest"})
    signs: Conflict


STUDENT_95 = 2.365
"""Standard errors to either side that cover 95 %: Student's t, seven degrees of freedom of eight groups."""


@dataclass(frozen=True)
class Sample:
    """How numbers were estimated that are not from all elements.

    `share` of the elements was looked at. `groups` are independent estimates of every tensor's record, of equal size;
    what is shown is their mean. A tensor that was read whole is the same in all of them.
    """

    share: float
    groups: tuple[Mapping[str, Any], ...]

    def error(self, value: Callable[[Any], float | None], tensors: Iterable[str]) -> float | None:
        """The standard error of a number of some tensors' added-up records; None where a group has no such number."""
        names = list(tensors)
        found = [value(total(group[name] for name in names)) for group in self.groups]
        known = [number for number in found if number is not None and math.isfinite(number)]
        if len(known) < len(found) or len(known) < 2:
            return None
        mean = sum(known) / len(known)
        spread = sum((number - mean) ** 2 for number in known) / (len(known) - 1)
        return (spread / len(known)) ** 0.5

    def margin(self, value: Callable[[Any], float | None], tensors: Iterable[str]) -> float | None:
        """Half the 95 % interval around a number, from its `error`."""
        error = self.error(value, tensors)
        return None if error is None else STUDENT_95 * error


@dataclass(frozen=True)
class Trim:
    """The largest |δ| of every expert, at one density over one scope; estimated where there is a `sample`."""

    density: float
    scope: Scope
    tensors: dict[str, Trimmed]
    sample: Sample | None = None


@dataclass(frozen=True)
class Preview:
    """What one recipe would make of the experts' changes, tensor by tensor; copied tensors are not in `tensors`.

    `effective` holds the parameters each tensor really gets, a list where every expert has its own; `dtypes` the
    output's dtype words. `elementwise`: whether the method is a sum of scaled changes, so that there are fates. With a
    `sample` all sums are estimates of those over the whole tensors.
    """

    recipe: str
    method: str
    elementwise: bool
    tensors: dict[str, TensorFate]
    effective: dict[str, dict[str, Any]]
    dtypes: dict[str, str]
    copied: tuple[str, ...] = ()
    sample: Sample | None = None


@dataclass(frozen=True)
class Grid:
    """A map: `values[row][column]`, None where the model has no such module. `rows` are block numbers, or None for
    what lies outside the blocks."""

    rows: list[Block | None]
    columns: list[str]
    values: list[list[float | None]]


@dataclass(frozen=True)
class Report:
    """What was measured on base and experts: everything the maps show.

    `tensors` are the experts' changes, whatever the recipe; `trim` the same after trimming, `preview` what a recipe makes
    of them, where these were asked for. `warnings` are what the models' headers say. With a `sample` all numbers are
    estimates, and it tells the error of the changes; those of `trim` and `preview` are told by their own.
    """

    base: str
    experts: tuple[str, ...]
    tensors: dict[str, TensorStatistics]
    trim: Trim | None = None
    preview: Preview | None = None
    warnings: tuple[str, ...] = ()
    sample: Sample | None = None
    _made: dict[Hashable, tuple[object, Any]] = field(default_factory=dict, repr=False, compare=False)
    """What was added up already, and of what; a report with another trim or preview shares it."""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return pairs_of(len(self.experts))

    @property
    def broken(self) -> dict[str, list[int]]:
        """Tensors with NaN or infinite values -> how many there are in the base, then in each expert."""
        return {name: found.broken for name, found in self.tensors.items() if any(found.broken)}

    @property
    def intact(self) -> TensorStatistics | None:
        """The sums over all tensors without NaN and infinite values; None where there are none."""

        def make() -> TensorStatistics | None:
            some = [found for found in self.tensors.values() if not any(found.broken)]
            return total(some) if some else None

        return self._remember("intact", self.tensors, make)

    @property
    def total(self) -> TensorStatistics:
        """`intact`; where no tensor is, the sums over all of them, which are NaN where they are broken."""
        if self.intact is not None:
            return self.intact
        return total(self.tensors.values()) if self.tensors else TensorStatistics.nothing(len(self.experts))

    def places(self, *, everything: bool = False) -> dict[str, Place]:
        """Tensors and their places; weight matrices of attention and MLP only, unless `everything` is asked for."""
        return self._remember(
            ("places", everything), self.tensors, lambda: placed(self.tensors, everything=everything)
        )

    def cells(self, *, everything: bool = False) -> dict[Cell, TensorStatistics]:
        """Block and kind -> the statistics of all tensors there."""
        return self.by_cell(self.tensors, everything=everything)

    def by_cell(self, records: Mapping[str, R], *, everything: bool = False) -> dict[Cell, R]:
        """Records by tensor added up by cell; tensors without a record are left out."""

        def make() -> dict[Cell, R]:
            return added_up(self.places(everything=everything), records)

        own = {
            "tensors": self.tensors,
            "trim": self.trim and self.trim.tensors,
            "preview": self.preview and self.preview.tensors,
        }
        for name, table in own.items():
            if records is table:
                return self._remember((name, everything), records, make)
        return make()

    def _remember(self, what: Hashable, source: object, make: Callable[[], T]) -> T:
        """What was made of `source` before, or is made now."""
        known = self._made.get(what)
        if known is None or known[0] is not source:
            known = self._made[what] = (source, make())
        found: T = known[1]
        return found

    def frame(self, *, everything: bool = False) -> tuple[list[Block | None], list[str]]:
        """The rows and columns that all maps of this report share."""
        return frame_of(self.places(everything=everything))

    def map_of(
        self,
        records: Mapping[str, R],
        value: Callable[[R], float | None],
        *,
        everything: bool = False,
    ) -> Grid:
        """A map of any number that follows from the sums of a cell; what is not finite is a gap."""
        cells = self.by_cell(records, everything=everything)
        rows, columns = self.frame(everything=everything)

        def at(row: Block | None, column: str) -> float | None:
            found = value(cells[row, column]) if (row, column) in cells else None
            return found if found is not None and math.isfinite(found) else None

        return Grid(rows, columns, [[at(row, column) for column in columns] for row in rows])

    def grid(self, value: Callable[[TensorStatistics], float | None], *, everything: bool = False) -> Grid:
        """A map of a number that follows from the experts' changes alone."""
        return self.map_of(self.tensors, value, everything=everything)

    def names_at(self, block: Block | None, kind: str) -> list[str]:
        """The tensors behind one cell of a map."""
        places = self.places(everything=True)
        return [name for name, place in places.items() if (place.block, place.kind) == (block, kind)]

    def save(self, folder: str | Path) -> None:
        """Write `report.safetensors` and `report.json` into a folder that is new, empty, or holds a report.

        Raises:
            OutputError: it holds something else, or cannot be written.
        """
        from merging.reports.files import save_report

        save_report(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """Read what `save` wrote; the files may come from anywhere.

        Raises:
            MergingError: there is no report, it is damaged, or a newer version wrote it.
        """
        from merging.reports.files import load_report

        return load_report(Path(folder))


def placed(names: Iterable[str], *, everything: bool = False) -> dict[str, Place]:
    """Tensors and their places; weight matrices of attention and MLP only, unless `everything` is asked for."""
    found = {name: locate(name) for name in names}
    if everything or not any(_is_main(place) for place in found.values()):
        return found
    return {name: place for name, place in found.items() if _is_main(place)}


def frame_of(places: Mapping[str, Place]) -> tuple[list[Block | None], list[str]]:
    """The rows and columns of a map of these places."""
    return sorted({place.block for place in places.values()}, key=block_order), kinds(places)


def added_up(places: Mapping[str, Place], records: Mapping[str, R]) -> dict[Cell, R]:
    """Records by tensor added up by cell; tensors without a record are left out."""
    cells: dict[Cell, list[R]] = {}
    for name, place in places.items():
        if name in records:
            cells.setdefault((place.block, place.kind), []).append(records[name])
    return {cell: total(some) for cell, some in cells.items()}


def _is_main(place: Place) -> bool:
    return place.block is not None and place.role in {"attention", "mlp"} and not place.kind.endswith(" bias")
