"""Reports with what trimming leaves of them, for the density and scope that a visitor asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, get_args

import gradio as gr

import merging
from components.family import Family
from components.inspect import views
from components.inspect.reports import Reports, Stops, report_key
from components.models.opening import explained, unreadable
from components.newest import Newest
from components.server.settings import Settings
from merging import MergingError, Plan, Progress, Report
from merging.memory.whatif import Residents, trim_steps
from merging.methods import Scope
from merging.reports.report import Trim

FIRST_DENSITY = 0.2
SCOPES = [("each tensor", "tensor"), ("each block", "layer"), ("the whole model", "model")]
MOST_TRIMS = 64
MOST_UNASKED = 1 << 28
"""Bytes of the models up to which they are trimmed without being asked to."""


class TrimmedReports:
    """Reports by their keys, and the same with a trim by keys that say which; shared by all visitors, and bounded."""

    def __init__(self, reports: Reports, residents: Residents | None = None, most: int = MOST_TRIMS):
        self.plain = reports
        self._residents = residents or Residents()
        self._trims: Newest[Trim] = Newest(most)

    def get(self, key: object) -> Report | None:
        """A report that is still kept, with its trim where the key names one."""
        if not isinstance(key, str):
            return None
        report = self.plain.get(plain_key(key))
        trim = self._trims.get(key)
        return replace(report, trim=trim) if report is not None and trim is not None else report

    def has(self, key: str) -> bool:
        """Whether the trim of this key is kept."""
        return self._trims.get(key) is not None

    def measure(self, plan: Plan, key: str, density: float, scope: Scope, device: str) -> Iterator[Progress]:
        """Make the trim of a key unless it is kept already; closing the iterator stops the reading."""
        if self.has(key):
            return
        for event in trim_steps(plan, density, scope, self._residents, device=device):
            if not isinstance(event, Trim):
                yield event
                continue
            self._trims.keep(key, event)


def plain_key(key: str) -> str:
    """The key of the report without a trim."""
    return key.partition("@")[0]


def has_trim(key: object) -> bool:
    """Whether a key names a trim."""
    return isinstance(key, str) and "@" in key


def trim_key(key: str, density: float, scope: str) -> str:
    """The key of a report with a trim."""
    return f"{plain_key(key)}@{density:g} {scope}"


def accept(shown: str, made: str) -> Any:
    """The report with its trim, unless another report is shown by the time the trim is made."""
    return made if made and plain_key(made) == plain_key(shown) else gr.skip()


def trim(
    reports: TrimmedReports,
    stops: Stops,
    settings: Settings,
    family: Family,
    wanted: tuple[object, object, object],
    asked: bool,
) -> Iterator[list[Any]]:
    """Status line, the button Stop, the token that stops this, and in the end the key of the report with its
    trim; `wanted` are the key that is shown, a density and a scope. Nothing happens for a key of another family."""
    key, density, scope = wanted
    if not isinstance(family, Family) or not isinstance(key, str) or not _is_trim(density, scope):
        yield [gr.skip()] * 4
        return
    shown, hidden = gr.update(visible=True), gr.update(visible=False)
    name = trim_key(key, density, scope)
    try:
        if reports.get(key) is None or (name == key and reports.has(name)):
            yield [gr.skip()] * 4
            return
        plan = merging.check(family.recipe())
        too_large = plan.bytes_to_read > MOST_UNASKED and not asked and not reports.has(name)
        if too_large or report_key(plan) != plain_key(key):
            yield [gr.skip()] * 4
            return
        told = 0.0
        with (
            stops.running(family) as (token, stop),
            closing(reports.measure(plan, name, density, scope, settings.device)) as steps,
        ):
            for progress in steps:
                if stop.is_set():
                    yield [views.STOPPED, hidden, "", gr.skip()]
                    return
                if progress.seconds - told > 0.3:
                    told = progress.seconds
                    yield [views.progress_status(progress), shown, token, gr.skip()]
        yield ["", hidden, "", name]
    except (MergingError, OSError) as error:
        known = isinstance(error, MergingError) and not unreadable(family)
        # what is wrong with the weights themselves stands in the advice
        status = "" if known and not asked else views.error_status(explained(family, error))
        yield [status, hidden, "", gr.skip()]


def _is_trim(density: object, scope: object) -> bool:
    return isinstance(density, int | float) and 0 < density <= 1 and scope in get_args(Scope)
