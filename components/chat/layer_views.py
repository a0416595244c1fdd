"""What the Chat tab shows of a model whose parts are put back: the figure, its table, and how far it has come."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from components.clickable_plot import payload
from components.figures.layers import layers_chart, worded
from components.progress import bar_html
from components.tables import Table, csv_link, html_table
from merging.answering.put_back import EVERYTHING, PartPutBack


class Told:
    """What was measured so far, as the page is told it."""

    def __init__(self, called: tuple[str, str]):
        self.called = called
        self.parts: tuple[str, ...] = ()
        self.found: list[PartPutBack] = []

    @property
    def figure(self) -> dict[str, Any] | None:
        return payload(layers_chart(self.parts, self.found, *self.called))

    @property
    def done(self) -> int:
        return max(0, len(self.found) - 1)

    @property
    def complete(self) -> bool:
        return bool(self.found) and self.found[-1].part == EVERYTHING

    @property
    def progress(self) -> str:
        total = len(self.parts) + 1
        return bar_html(self.done / total, f"{self.done} of {total} measured", "Parts put back")

    @property
    def stopped(self) -> str:
        """What is said of a run that was cancelled."""
        if not self.found:
            return '<p class="quiet">Cancelled before anything was measured.</p>'
        return (
            f'<p class="quiet">Cancelled: {self.done} of {len(self.parts) + 1} measured. Their bars stay.</p>'
        )

    @property
    def table(self) -> str:
        return table_html(self.found, *self.called) if self.found else ""


def layer_table(found: Sequence[PartPutBack]) -> Table:
    """Every number, in the order of the model."""
    headers = ["put back", "log-likelihood (nats)", "change (nats)"]
    return Table(headers, [[one.part, one.log_likelihood, one.change] for one in found])


def table_html(found: Sequence[PartPutBack], model: str, donor: str) -> str:
    """The numbers behind a fold, with their CSV."""
    rows = [
        [
            f"{one.part} ({donor} itself)" if one.part == EVERYTHING else one.part,
            f"{one.log_likelihood:.4f}",
            f"{one.change:+.4f}" if number else "–",
            worded(one.change) if number else "",
        ]
        for number, one in enumerate(found)
    ]
    caption = f"The answer under {model}, with one part put back to {donor}"
    headers = ["put back", "log-likelihood (nats)", "change (nats)", "in words"]
    return (
        f'<details class="fold"><summary>All numbers as a table</summary><p>{html.escape(caption)}.</p>'
        f"{html_table(caption, headers, rows, wide=True)}"
        f"<p>{csv_link(layer_table(found), 'mergescope-layers.csv')}</p></details>"
    )
