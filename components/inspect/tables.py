"""The tables inside a cell: heads, rows, and the tokens of an embedding or head."""

from __future__ import annotations

import html
from collections.abc import Sequence

from components.figures.detail_tables import head_rows, row_rows, token_rows, written
from components.tables import Table, csv_link, html_table
from merging.inspecting.detail import TensorDetail
from merging.inspecting.tokens import TokenChanges, TokenRows

MOST_TOKENS = 12
"""Tokens of a list on the page; the CSV holds all that were ranked."""
MOST_CSV_ROWS = 8192
"""More rows of a tensor than these do not travel in the page; an embedding's tokens have lists of their own."""


def detail_tables(detail: TensorDetail, names: Sequence[str], where: str) -> str:
    """The heads as a table, and links to the numbers of heads and rows as CSV."""
    links, table = [], ""
    if detail.heads is not None:
        headers, rows = head_rows(detail, names)
        table = html_table(f"Heads of {where}", headers, written(rows), wide=True)
        table = f'<details class="fold"><summary>The heads as a table</summary>{table}</details>'
        links.append(csv_link(Table(headers, rows), "mergescope-heads.csv", "Save the heads as CSV"))
    if 0 < len(detail.rows) <= MOST_CSV_ROWS:
        headers, rows = row_rows(detail, names)
        links.append(csv_link(Table(headers, rows), "mergescope-rows.csv", "Save the rows as CSV"))
    return f'{table}<p class="links">{" ".join(links)}</p>'


def token_tables(found: TokenChanges, names: Sequence[str], problem: str | None) -> str:
    """The tokens each expert changed most, those where the experts conflict most, and the special ones."""
    changed = ", ".join(
        f"{name} {count:,}" for name, count in zip(names, found.changed_rows.tolist(), strict=True)
    )
    facts = f"Rows changed, of {found.rows:,}: {changed}; by two or more experts: {found.shared_rows:,}."
    if found.damaged_rows:
        facts += f" {found.damaged_rows:,} rows hold values that are not finite."
    missing = f'<p class="chart-note">{html.escape(problem)}</p>' if problem else ""
    lists: list[tuple[str, TokenRows, int | tuple[str, ...]]]
    lists = [
        (f"Changed most by {name}", rows, expert)
        for expert, (name, rows) in enumerate(zip(names, found.changed, strict=True))
    ]
    if len(names) > 1:
        lists.append(("Most conflict", found.conflicting, ("opposite signs", "cancelled change")))
    if found.marked.tokens:
        first = tuple(f"{name} relative" for name in names)
        lists.append(("Special and chat-template tokens: relative change", found.marked, first))
    parts = "".join(_list(title, rows, names, wanted) for title, rows, wanted in lists)
    return (
        f'<h3 class="chart-title">Tokens</h3><p class="chart-note">{html.escape(facts)}</p>{missing}'
        f'<div class="token-lists">{parts}</div>{_csv(lists, names)}'
    )


def _list(title: str, rows: TokenRows, names: Sequence[str], wanted: int | tuple[str, ...]) -> str:
    """One list: token, id and kind, then the numbers of one expert, or some columns by their names."""
    headers, cells = token_rows(rows, names)
    if isinstance(wanted, int):
        both = ["opposite signs"] if len(names) > 1 else []
        columns = {
            f"{names[wanted]} ‖δ‖": "‖δ‖",
            f"{names[wanted]} relative": "relative",
            **dict(zip(both, both, strict=True)),
        }
    else:
        columns = {one: one.removesuffix(" relative") for one in wanted}
    kinds = any(row[2] for row in cells[:MOST_TOKENS])
    places = [0, *([2] if kinds else []), *(headers.index(one) for one in columns)]
    shown = [[row[place] for place in places] for row in cells[:MOST_TOKENS]]
    titles = ["token", *(["kind"] if kinds else []), *columns.values()]
    table = html_table(title, titles, written(shown), wide=True) if shown else '<p class="quiet">None.</p>'
    more = f" (first {MOST_TOKENS} of {len(cells)})" if len(cells) > MOST_TOKENS else ""
    return f"<section><h4>{html.escape(title + more)}</h4>{table}</section>"


def _csv(lists: Sequence[tuple[str, TokenRows, int | tuple[str, ...]]], names: Sequence[str]) -> str:
    """All lists in one file."""
    rows = []
    headers: list[str] = []
    for title, found, _ in lists:
        headers, cells = token_rows(found, names)
        rows += [[title, *row] for row in cells]
    link = csv_link(Table(["list", *headers], rows), "mergescope-tokens.csv", "Save the tokens as CSV")
    return f'<p class="links">{link}</p>'
