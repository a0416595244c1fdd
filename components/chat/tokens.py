"""The token view of the Chat tab: each token of a reply, coloured by how differently another column predicts it."""

from __future__ import annotations

import html
import logging
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from components.chat.heard import (
    ANALYSIS,
    PRIVATE,
    Columns,
    Page,
    column_of,
    column_options,
    model_of,
    names,
    problem_html,
)
from components.chat.models import Visit
from components.late_choice import LateDropdown
from components.tables import Table, csv_link, html_table
from merging import MergingError
from merging.answering.token_view import ComparedToken, Prediction, TokenView, token_view

CSS = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
DIVERGENCES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)
"""Where each shade begins, in nats: the same for every reply, so that two can be compared."""
RANKS = {0: "1", 2: "2", 4: "3 to 5", 6: "6 to 20", 8: "beyond 20"}
"""Shades of ranks, by number."""
RANKS_END = (1, 2, 5, 20)
ABOUT = (
    "<p>Two models read the same question and the same reply. A strong shade is a place where the other model would have "
    "gone on differently: its distribution over the next token is far from that of the model which replied "
    "(KL divergence, in nats; 0 = the same). Underlined: the other model's first choice was another token. Temperature and "
    "other rules of drawing play no part.</p>"
)
NOTHING_SAID = "This column has not replied yet. Ask something above, then press Show tokens."
SAME = "These two columns hold the same model. Choose another to compare with."
UNEXPECTED = "Something went wrong while the tokens were compared; the server's log has the details."
TEMPLATE = """
<div class="tk-view" hidden>
  <h3 class="chart-title"></h3>
  <div class="tk-by" role="radiogroup" aria-label="Shade by"></div>
  <div class="tk-legend"></div>
  <div class="tk-body">
    <div class="tk-tokens" role="group"></div>
    <div class="tk-card" role="status"></div>
  </div>
</div>
<p class="tk-empty"></p>
"""
EMPTY = "No tokens yet: ask something above, choose a reply and another column, and press Show tokens."

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenPanel:
    """The components of the panel."""

    reply: gr.Dropdown
    judge: gr.Dropdown
    show: gr.Button
    said: gr.HTML
    view: gr.HTML
    table: gr.HTML


def build_tokens() -> TokenPanel:
    """Build the panel; `wire_tokens` brings it to life."""
    with gr.Accordion(
        "Token view: where another model would have gone on differently",
        open=False,
        elem_classes="mg-more",
        elem_id="chat-tokens",
    ):
        gr.HTML(ABOUT, elem_classes="ch-about")
        with gr.Row(elem_classes="ch-choice"):
            reply = LateDropdown(
                [], label="Reply of column", filterable=False, min_width=220, elem_id="tokens-reply"
            )
            judge = LateDropdown(
                [], label="Compared with column", filterable=False, min_width=220, elem_id="tokens-judge"
            )
            show = gr.Button(
                "Show tokens",
                variant="primary",
                scale=0,
                min_width=140,
                interactive=False,
                elem_id="tokens-show",
            )
        said = gr.HTML(elem_classes="status", elem_id="tokens-said")
        view = gr.HTML(
            {"empty": EMPTY},
            html_template=TEMPLATE,
            js_on_load=SCRIPT,
            apply_default_css=False,
            elem_id="tokens-view",
        )
        table = gr.HTML(elem_id="tokens-table")
    return TokenPanel(reply, judge, show, said, view, table)


def wire_tokens(panel: TokenPanel, page: Page) -> None:
    """Connect the panel's events."""
    chosen = [panel.reply, panel.judge]
    fields = [*page.known, *chosen]
    gr.on(
        page.changes,
        page.answers(follow),
        fields,
        [*chosen, panel.show],
        trigger_mode="always_last",
        **PRIVATE,
    )
    shown = [panel.said, panel.view, panel.table, panel.show]
    panel.show.click(page.streams(show), fields, shown, **ANALYSIS)


def follow(visit: Visit, columns: Columns, reply: object, judge: object) -> list[Any]:
    """The panel's dropdowns and button once the columns hold something else.

    A choice stays while it means something; else the first column that replied, and the first other model.
    """
    options = column_options(visit, columns)
    known = [value for _, value in options]
    replied = [str(column) for column in columns.heard if str(column) in known]
    if reply not in replied:
        reply = next(iter(replied), None)
    if judge not in known or judge == reply:
        judge = next((value for value in known if value != reply), None)
    ready = bool(replied) and judge is not None
    return [
        gr.update(choices=options, value=reply),
        gr.update(choices=options, value=judge),
        gr.update(interactive=ready),
    ]


def show(visit: Visit, columns: Columns, reply: object, judge: object) -> Iterator[list[Any]]:
    """Compare the tokens of a column's last reply.

    Yields:
        What is said, the view, its table, the button.
    """
    busy = gr.update(interactive=False)
    yield ['<p class="quiet">Reading the reply with both models …</p>', gr.skip(), gr.skip(), busy]
    again = gr.update(interactive=True)
    try:
        yield ["", *_compared(visit, columns, reply, judge), again]
    except MergingError as error:
        yield [problem_html(str(error)), {"empty": EMPTY}, "", again]
    except Exception:
        _log.exception("the token view failed")
        yield [problem_html(UNEXPECTED), {"empty": EMPTY}, "", again]


def _compared(visit: Visit, columns: Columns, reply: object, judge: object) -> list[Any]:
    column, other = column_of(reply, columns), column_of(judge, columns)
    said = columns.last(column)
    if said is None:
        raise MergingError(NOTHING_SAID)
    keys = columns.chosen[column], columns.chosen[other]
    if keys[0] == keys[1]:
        raise MergingError(SAME)
    own, second = model_of(visit, keys[0], said.recipe), model_of(visit, keys[1])
    found = token_view(own, second, said.ids.prompt, said.ids.reply)
    called = names(visit)
    pair = (
        f"{column + 1} · {called.get(keys[0], said.model)}",
        f"{other + 1} · {called.get(keys[1], 'model')}",
    )
    return [view_value(found, pair), table_html(found, pair)]


def view_value(view: TokenView, pair: tuple[str, str]) -> dict[str, Any]:
    """The tokens as the component's value; the page writes every text as text, never as HTML."""
    more = f" Only its first {len(view.tokens)} tokens; {view.left_out} follow." if view.left_out else ""
    return {
        "title": f"Reply of column {pair[0]}, beside column {pair[1]}.{more}",
        "names": list(pair),
        "by": [
            {"key": "divergence", "label": "KL divergence", "legend": _divergence_legend()},
            {
                "key": "rank",
                "label": "Rank in the other model",
                "legend": [[step, label] for step, label in RANKS.items()],
            },
        ],
        "tokens": [_token(token) for token in view.tokens],
    }


def _divergence_legend() -> list[list[Any]]:
    labels = [
        f"< {DIVERGENCES[0]:g}",
        *(f"{limit:g}" for limit in DIVERGENCES[:-1]),
        f"≥ {DIVERGENCES[-1]:g}",
    ]
    return [[step, label] for step, label in enumerate(labels)]


def _token(token: ComparedToken) -> dict[str, Any]:
    return {
        "text": token.text,
        "divergence": bisect_right(DIVERGENCES, token.divergence),
        "rank": list(RANKS)[sum(token.other.rank > end for end in RANKS_END)],
        "nats": nats(token.divergence),
        "models": [
            {
                "rank": token_prediction.rank,
                "share": share(token_prediction.probability),
                "best": [
                    [one.text, share(one.probability), one.probability] for one in token_prediction.best
                ],
            }
            for token_prediction in (token.own, token.other)
        ],
    }


def view_table(view: TokenView) -> Table:
    """Every token with what both models made of it."""
    headers = [
        "no.",
        "token",
        "KL (nats)",
        "probability here",
        "rank here",
        "probability there",
        "rank there",
    ]
    rows: list[list[str | int | float | None]] = []
    for number, token in enumerate(view.tokens, 1):
        row: list[str | int | float | None] = [number, token.text, token.divergence]
        for prediction in (token.own, token.other):
            row += [prediction.probability, prediction.rank]
        rows.append([*row, _best(token.own), _best(token.other)])
    return Table([*headers, "likeliest here", "likeliest there"], rows)


def table_html(view: TokenView, pair: tuple[str, str]) -> str:
    """The table behind a fold, with its CSV."""
    table = view_table(view)
    rows = [
        [
            str(number), token.text, nats(token.divergence),
            share(token.own.probability), str(token.own.rank), share(token.other.probability), str(token.other.rank),
            _best(token.own), _best(token.other),
        ]
        for number, token in enumerate(view.tokens, 1)
    ]  # fmt: skip
    caption = f"Tokens of column {pair[0]}; here is that model, there is column {pair[1]}"
    return (
        '<details class="fold"><summary>All tokens as a table</summary>'
        f"<p>Here: column {html.escape(pair[0])}. There: column {html.escape(pair[1])}.</p>"
        f"{html_table(caption, table.headers, rows, wide=True)}"
        f"<p>{csv_link(table, 'mergescope-tokens.csv')}</p></details>"
    )


def _best(prediction: Prediction) -> str:
    return ", ".join(f"‘{one.text}’ {share(one.probability)}" for one in prediction.best)


def nats(value: float) -> str:
    """Three significant digits; small ones only as far as they can mean something."""
    if math.isinf(value):
        return "∞"
    return "< 0.0001" if 0 < value < 1e-4 else f"{value:.3g}"


def share(probability: float) -> str:
    """A probability as per cent."""
    if 0 < probability < 1e-4:
        return "< 0.01 %"
    return f"{100 * probability:.2f} %" if probability < 0.1 else f"{100 * probability:.1f} %"
