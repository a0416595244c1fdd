"""Choosing the map of the Inspect tab: groups of maps, and what trimming leaves of the changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from components.family import Family
from components.figures.conflict_metrics import CONFLICT_METRICS
from components.figures.importance_maps import MAPS
from components.figures.metrics import CHANGE_METRICS
from components.figures.words import MapWords
from components.inspect import trim as trims
from components.inspect.reports import Stops
from components.inspect.trim import FIRST_DENSITY, SCOPES, TrimmedReports, has_trim
from components.inspect.views import TRIMMED
from components.server.settings import Settings
from components.shared import Shared

GROUPS = [("Change", "change"), ("Conflict", "conflict"), ("Importance (APL)", "importance")]


@dataclass(frozen=True)
class MapChoice:
    """Which map is shown: a group of maps, a map of each group, and for conflicts what is left after trimming."""

    group: gr.Radio
    maps: tuple[gr.Radio, ...]
    trim: gr.Row
    trimmed: gr.Radio
    density: gr.Slider
    scope: gr.Dropdown

    @property
    def inputs(self) -> list[gr.Radio]:
        """What `choose_map` takes."""
        return [self.group, *self.maps, self.trimmed]


def build_choice(group: gr.Radio) -> MapChoice:
    """The maps of each group, and the trim behind the maps of conflict."""
    with gr.Row(elem_classes="controls"):
        maps = tuple(
            gr.Radio(
                [(words.label, words.key) for words in found],
                value=found[0].key,
                label="Map",
                visible=number == 0,
                elem_classes="segments",
                elem_id=f"maps-{key}",
            )
            for number, (key, found) in enumerate(_maps().items())
        )
    with gr.Row(visible=False, elem_classes="controls trim") as row:
        trimmed = gr.Radio(
            [("all changes", ""), ("before and after trimming", TRIMMED)],
            value="",
            label="Signs of",
            elem_classes="segments",
            elem_id="map-trimmed",
            min_width=330,
        )
        density = gr.Slider(
            0.01,
            1,
            value=FIRST_DENSITY,
            step=0.01,
            label="Density: share of the largest changes that trimming leaves",
            elem_id="map-density",
            min_width=280,
        )
        scope = gr.Dropdown(
            SCOPES, value="tensor", label="Ranked in", filterable=False, elem_id="map-scope", min_width=170
        )
    return MapChoice(group, maps, row, trimmed, density, scope)


def _maps() -> dict[str, list[MapWords]]:
    """The maps of each group, in the order of `GROUPS`."""
    return {"change": [*CHANGE_METRICS], "conflict": [*CONFLICT_METRICS], "importance": [*MAPS.values()]}


def choose_map(group: str, *chosen: str) -> list[Any]:
    """The key of the map that is meant, which of the rows of maps is there, and whether that on trimming is."""
    *maps, trimmed = chosen
    groups = list(_maps())
    place = groups.index(group) if group in groups else 0
    known = [words.key for words in _maps()[groups[place]]]
    key = maps[place] if maps[place] in known else known[0]
    conflict = groups[place] == "conflict"
    key += TRIMMED if conflict and trimmed == TRIMMED else ""
    visible = [gr.update(visible=number == place) for number in range(len(groups))]
    return [key, *visible, gr.update(visible=conflict)]


@dataclass(frozen=True)
class Shown:
    """What the tab shows: the key of the map, the key of the report, and where a trim tells of itself: status, the
    button Stop, the token that stops it."""

    metric: gr.State
    report: gr.State
    measured: list[Any]


def wire_choice(
    choice: MapChoice, shown: Shown, settings: Settings, shared: Shared, reports: TrimmedReports, stops: Stops
) -> None:
    """The rows of maps follow their group; a trim is made for small models at once, for large ones when asked.

    Once one is shown, it follows its slider however that is moved: keys and typed numbers release nothing.
    """
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    latest: dict[str, Any] = {"trigger_mode": "always_last", **quiet}
    gr.on(
        [part.input for part in choice.inputs],
        choose_map,
        choice.inputs,
        [shown.metric, *choice.maps, choice.trim],
        **latest,
    )

    def trim(asked: bool, family: Family, *wanted: object) -> Iterator[list[Any]]:
        key, density, scope = wanted
        yield from trims.trim(reports, stops, settings, family, (key, density, scope), asked)

    def trim_if_shown(family: Family, trimmed: str, *wanted: object) -> Iterator[list[Any]]:
        yield from trim(trimmed == TRIMMED or has_trim(wanted[0]), family, *wanted)

    wanted = [shown.report, choice.density, choice.scope]
    made = gr.State("")
    outputs = [*shown.measured, made]
    asked = gr.on(
        [choice.density.release, choice.scope.input],
        partial(trim, True),
        [shared.family, *wanted],
        outputs,
        **latest,
    )
    unasked = gr.on(
        [shown.report.change, choice.trimmed.input, choice.density.change],
        trim_if_shown,
        [shared.family, choice.trimmed, *wanted],
        outputs,
        **latest,
    )
    for event in (asked, unasked):
        event.success(trims.accept, [shown.report, made], shown.report, **latest)
