"""Which questions a search asks: tasks, files and how many items of each; the same row of widgets in every part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from components.compare.suites import DEMO, Ruler, Split, chosen, demo_tasks, options
from components.family import Family
from components.late_choice import LateCheckboxGroup
from components.server.settings import Settings
from merging import MergingError
from merging.judging.suites import Suite

ITEMS = {"all": 0, "first 100": 100, "first 50": 50, "first 20": 20}
SPLITS = [("test files", "test"), ("validation files", "validation")]
NO_TASK = "Choose at least one task, or add a suite of your own under Scores."


@dataclass(frozen=True)
class Questions:
    """The widgets; `split` is None where only validation files are asked."""

    what: gr.CheckboxGroup
    split: gr.Radio | None
    items: gr.Radio

    @property
    def inputs(self) -> list[Any]:
        return [self.what, *([self.split] if self.split is not None else []), self.items]


def build_questions(
    settings: Settings, name: str, split: Split | None, info: str = "", items: str = "all"
) -> Questions:
    """The widgets in a row, over the demo's tasks.

    Args:
        name: begins the ids.
        split: the files that are chosen at first; None for validation files and nothing else.
    """
    tasks = [(task, DEMO + task) for task in demo_tasks(settings, Family.demo(settings.demo))]
    files = None
    with gr.Row(elem_classes="cm-questions"):
        what = LateCheckboxGroup(
            tasks, value=[key for _, key in tasks], label="Tasks", elem_id=f"{name}-what", min_width=260
        )
        if split is not None:
            files = gr.Radio(
                SPLITS,
                value=split,
                label="The demo's questions from",
                info=info,
                elem_classes="segments",
                elem_id=f"{name}-split",
                min_width=260,
            )
        count = gr.Radio(
            list(ITEMS),
            value=items,
            label="Items of each task",
            info="Fewer are quicker, and the intervals wider.",
            elem_classes="segments",
            elem_id=f"{name}-items",
            min_width=300,
        )
    return Questions(what, files, count)


def wire_questions(
    part: Questions, settings: Settings, family: gr.State, own: gr.State, came: Sequence[Any]
) -> None:
    """Offer the tasks of the family and what a visitor added to who comes to this part."""

    def renew(now: Family, uploads: Ruler, what: Any) -> Any:
        return offered(settings, now, uploads, what)

    gr.on(
        came,
        renew,
        [family, own, part.what],
        part.what,
        show_progress="hidden",
        api_visibility="private",
    )


def offered(settings: Settings, family: Family, own: Ruler, what: Any) -> Any:
    """The tasks there are; what was chosen stays, and what is new is chosen."""
    things = options(settings, family, Ruler(own.suites))
    keys = [key for _, key in things]
    kept = [key for key in keys if key in what] if isinstance(what, list) else []
    mine = [one.fingerprint for one in own.suites]
    fresh = [key for key in mine if key not in kept]
    return gr.update(choices=things, value=[*(kept or [k for k in keys if k.startswith(DEMO)]), *fresh])


def suites_of(
    settings: Settings, family: Family, own: Ruler, what: Any, split: Any, items: Any
) -> tuple[Suite, ...]:
    """The suites that are chosen, each as long as asked for.

    Raises:
        MergingError: none is chosen.
    """
    most = ITEMS.get(items, 0) if isinstance(items, str) else 0
    found = chosen(settings, family, Ruler(own.suites), what, split).suites
    if not found:
        raise MergingError(NO_TASK)
    return tuple(first(suite, most) for suite in found)


def first(suite: Suite, most: int) -> Suite:
    """The first items of a suite, which says so in its name; all of them for 0."""
    if not most or len(suite) <= most:
        return suite
    return replace(suite, name=f"{suite.name} (first {most})", items=suite.items[:most])
