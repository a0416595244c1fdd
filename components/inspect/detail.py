"""The inside of the chosen cell: heads and rows, spectra on demand, and the tokens of an embedding or head."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

import merging
from components.clickable_plot import clickable_plot, payload
from components.family import Family
from components.figures.detail import heads_chart, rows_chart, spectrum_chart
from components.figures.detail_tables import spectrum_rows, written
from components.figures.metrics import cell_name
from components.inspect import views
from components.inspect.events import Kept
from components.inspect.reports import Stops
from components.inspect.tables import detail_tables, token_tables
from components.inspect.trim import plain_key
from components.inspect.views import Cell
from components.models.opening import explained
from components.numbers import clock, size
from components.progress import bar_html
from components.server.settings import Settings
from components.shared import Shared
from components.tables import html_table
from merging import Checkpoint, MergingError, Plan
from merging.anatomy import locate
from merging.heartbeats import heartbeats
from merging.inspecting.detail import tensor_detail
from merging.inspecting.one_tensor import find_tensor
from merging.inspecting.spectra import Spectrum, spectrum
from merging.inspecting.tokens import token_changes
from merging.tokenizing.vocabulary import plan_vocabulary

MOST_UNASKED = 1 << 25
"""Bytes of one tensor in base and experts that are read without being asked to."""
NO_HEADS = "This tensor has no attention heads."
NO_ROWS = "No weights here."
STOPPED = '<p class="quiet">Stopped.</p>'
NOT_READ = {"empty": "Not read: the line above says why."}
NO_SPECTRUM = "Press “Spectrum” to see in how many directions each change lies."
WAITS = {"empty": "Press “Read heads and rows”."}
HIDDEN = gr.update(visible=False)


@dataclass(frozen=True)
class Detail:
    """The components of the section; `token` holds what stops a running spectrum, `seen` which cell is shown.

    `status` is about reading the cell, `progress` about its spectrum; a spectrum that ends late writes only the latter.
    """

    whole: gr.Column
    status: gr.HTML
    progress: gr.HTML
    read: gr.Button
    spectrum: gr.Button
    stop: gr.Button
    token: gr.State
    seen: gr.State
    heads: gr.HTML
    rows: gr.HTML
    tables: gr.HTML
    tokens: gr.HTML
    spectra: gr.HTML
    ranks: gr.HTML

    @property
    def inside(self) -> list[Any]:
        """What another cell sets."""
        return [
            self.whole, self.status, self.read, self.spectrum, self.heads, self.rows, self.tables, self.tokens,
            self.spectra, self.ranks, self.progress, self.seen,
        ]  # fmt: skip

    @property
    def computed(self) -> list[Any]:
        """What a spectrum sets."""
        return [self.progress, self.spectrum, self.stop, self.token, self.spectra, self.ranks]


def build_detail() -> Detail:
    """Build the section; it fills itself when a cell is chosen."""
    parts: dict[str, Any] = {"token": gr.State(""), "seen": gr.State(None)}
    with gr.Column(visible=False, elem_id="detail") as whole:
        with gr.Row(elem_classes="section-head"):
            gr.HTML("<h2>Inside this tensor</h2>")
            parts["read"] = gr.Button("Read heads and rows", scale=0, min_width=180, visible=False)
            parts["spectrum"] = gr.Button("Spectrum", scale=0, min_width=120, elem_id="detail-spectrum")
            parts["stop"] = gr.Button("Stop", scale=0, min_width=90, visible=False, elem_id="detail-stop")
        parts["status"] = gr.HTML(elem_classes="status", elem_id="detail-status")
        parts["progress"] = gr.HTML(elem_classes="status", elem_id="detail-progress")
        with gr.Row(elem_classes="pair"):
            with gr.Column(min_width=320, elem_classes="beside"):
                parts["heads"] = clickable_plot(
                    empty=NO_HEADS, name="mergescope-heads", elem_id="detail-heads"
                )
            with gr.Column(min_width=320):
                parts["rows"] = clickable_plot(empty=NO_ROWS, name="mergescope-rows", elem_id="detail-rows")
        parts["tables"] = gr.HTML(elem_id="detail-tables")
        parts["tokens"] = gr.HTML(elem_id="detail-tokens")
        parts["spectra"] = clickable_plot(
            empty=NO_SPECTRUM, name="mergescope-spectrum", elem_id="detail-spectra"
        )
        parts["ranks"] = gr.HTML(elem_id="detail-ranks")
    return Detail(whole=whole, **parts)


def wire_detail(
    detail: Detail, report: gr.State, cell: gr.State, settings: Settings, shared: Shared, reports: Kept
) -> None:
    """Another cell is read at once where it is small; a spectrum is computed when asked, and stopped by another cell."""
    stops = Stops()
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    chosen = [shared.family, report, cell]

    def show(asked: bool, seen: object, family: Family, key: str, cell: Cell | None) -> list[Any]:
        if not asked and seen == (plain_key(key), cell):
            return [gr.skip()] * len(detail.inside)
        inside = show_inside(reports, settings, family, key, cell, asked)
        return [*inside, None if inside[0] is HIDDEN else (plain_key(key), cell)]

    detail.spectrum.click(partial(show_spectrum, reports, stops, settings), chosen, detail.computed, **quiet)
    detail.stop.click(stops.stop, detail.token, None, **quiet)
    detail.read.click(partial(show, True), [detail.seen, *chosen], detail.inside, **quiet)
    others = [cell.change, shared.family.change]
    gr.on(others, partial(end, stops), detail.token, [detail.stop, detail.token], **quiet)
    gr.on(
        [cell.change, report.change],
        partial(show, False),
        [detail.seen, *chosen],
        detail.inside,
        trigger_mode="always_last",
        **quiet,
    )


def end(stops: Stops, token: str) -> list[Any]:
    """Leave the spectrum that is being computed, if one is; its button and its token go with it."""
    stops.leave(token)
    return [HIDDEN, ""]


def show_inside(
    reports: Kept, settings: Settings, family: Family, key: str, cell: Cell | None, asked: bool = False
) -> list[Any]:
    """The section with heads, rows, tables and tokens of the first tensor of a cell; hidden without one."""
    shown, nothing = gr.update(visible=True), [None, None, "", "", None, "", ""]
    try:
        found = _tensor(reports, family, key, cell)
        if found is None:
            return [HIDDEN, "", HIDDEN, gr.update(interactive=False), *nothing]
        plan, name = found
        info = find_tensor(plan, name).info
        can_decompose = gr.update(interactive=len(info.shape) == 2 and info.elements > 0)
        nbytes = info.nbytes * (1 + len(plan.experts))
        if nbytes > MOST_UNASKED and not asked:
            told = (
                f"<p>This tensor has {size(nbytes)} in base and experts; it is read when you ask for it.</p>"
            )
            return [shown, told, shown, can_decompose, None, WAITS, "", "", None, "", ""]
        inside = _inside(plan, name, settings.device, cell)
        return [shown, "", HIDDEN, can_decompose, *inside, None, "", ""]
    except (MergingError, OSError) as error:
        problem = explained(family, error)
    unread = [NOT_READ, NOT_READ, "", "", None, "", ""]
    return [shown, views.error_status(problem), HIDDEN, gr.update(interactive=False), *unread]


def _inside(plan: Plan, name: str, device: str, cell: Cell | None) -> list[Any]:
    """Charts of heads and rows, their table, and the tokens."""
    names, where = _names(plan), cell_name(*cell) if cell else name
    base = plan.reference
    detail = tensor_detail(plan, name, base.config if isinstance(base, Checkpoint) else {}, device=device)
    tokens = ""
    if locate(name).kind in {"embedding", "head"} and len(detail.shape) == 2:
        vocabulary = plan_vocabulary(plan)
        tokens = token_tables(token_changes(plan, name, vocabulary, device=device), names, vocabulary.problem)
    return [
        payload(heads_chart(detail, names, where), empty=NO_HEADS),
        payload(rows_chart(detail, names, where), empty=NO_ROWS),
        detail_tables(detail, names, where),
        tokens,
    ]


def show_spectrum(
    reports: Kept, stops: Stops, settings: Settings, family: Family, key: str, cell: Cell | None
) -> Iterator[list[Any]]:
    """Progress, the buttons Spectrum and Stop, the token that stops this; in the end the chart and its table."""
    ready, busy = gr.update(interactive=True), gr.update(interactive=False)
    keep = [gr.skip(), gr.skip()]
    try:
        found = _tensor(reports, family, key, cell)
        if found is None:
            yield [gr.skip()] * 6
            return
        plan, name = found
        names, where = _names(plan), cell_name(*cell) if cell else name
        spectra: dict[int, Spectrum] = {}
        begun = time.perf_counter()
        ended = threading.Event()
        with stops.running() as (token, stop):
            yield [_progress(names, 0, begun), busy, gr.update(visible=True), token, *keep]
            with closing(heartbeats(_spectra(plan, name, settings.device, ended), ended)) as beats:
                for beat in beats:
                    if beat is not None:
                        spectra[beat[0]] = beat[1]
                    if stop.is_set():
                        break
                    yield [
                        _progress(names, len(spectra), begun),
                        gr.skip(),
                        gr.update(visible=True),
                        token,
                        *keep,
                    ]
            if stop.is_set():
                yield ["", gr.skip(), HIDDEN, "", *keep] if stop.left else [STOPPED, ready, HIDDEN, "", *keep]
                return
        headers, rows = spectrum_rows(spectra, names)
        table = html_table(f"Ranks of the changes in {where}", headers, written(rows), wide=True)
        chart = payload(spectrum_chart(spectra, names, where), empty=views.NO_CHANGE)
        yield ["", ready, HIDDEN, "", chart, table]
    except (MergingError, OSError) as error:
        yield [views.error_status(explained(family, error)), ready, HIDDEN, "", *keep]


def _spectra(plan: Plan, name: str, device: str, ended: threading.Event) -> Iterator[tuple[int, Spectrum]]:
    """The spectrum of every expert, one after another."""
    for expert in range(len(plan.names)):
        yield expert, spectrum(plan, name, expert, device=device, stop=ended.is_set)


def _progress(names: Sequence[str], done: int, begun: float) -> str:
    passed = time.perf_counter() - begun
    left = f" · {clock(passed / done * (len(names) - done))} left" if done else ""
    return bar_html(
        done / len(names), f"spectrum {min(done + 1, len(names))} of {len(names)}{left}", "spectrum"
    )


def _tensor(reports: Kept, family: Family, key: str, cell: Cell | None) -> tuple[Plan, str] | None:
    """The plan of the family and the first tensor of a cell; None where the report is not on this family."""
    report = reports.get(key)
    if report is None or cell is None or not isinstance(family, Family):
        return None
    names = report.names_at(*cell)
    plan = merging.check(family.recipe())
    if not names or plan.names != report.experts or plan.reference.label != report.base:
        return None
    return plan, names[0]


def _names(plan: Plan) -> tuple[str, ...]:
    return Family("", plan.names).names
