"""A report as one self-contained page: it opens from a disk, offline, and asks nothing of anyone.

Text of models (names, recipe, advice) is escaped where it becomes HTML; charts and tables travel as JSON and are set as
text. A content security policy allows the two scripts of the page by their hashes and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import Template
from typing import Any

import plotly

from components.figures.metrics import expert_names, pair_names
from components.figures.page_sections import Group, Known, Section, groups
from merging import Report, __version__
from merging.inspecting.advice import Advice, Kinship, kinship

__all__ = ["Known", "page_html"]

PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
_HERE = Path(__file__).parent
_TEMPLATE = Template((_HERE / "page.html").read_text(encoding="utf-8"))
_STYLE = (_HERE / "page.css").read_text(encoding="utf-8")
_SCRIPT = (_HERE / "page.js").read_text(encoding="utf-8")


def page_html(
    report: Report,
    found: Sequence[Advice],
    recipe: str,
    *,
    known: Known | None = None,
) -> str:
    """The page: advice, kinship, every map with its table, the recipe and the versions.

    Args:
        recipe: its text, as the user wrote it.
        known: importance of the same experts, where it was measured.
    """
    plain = groups(report, known)
    library = PLOTLY_JS.read_text(encoding="utf-8")
    assert "</script" not in library.lower()
    charts = [_plain(one) for one in _sections(plain)]
    wide = [_plain(one) for one in _sections(groups(report, known, everything=True))]
    content = {"plain": charts, "wide": wide if len(wide) == len(charts) and wide != charts else []}
    title = f"{report.base}: {', '.join(expert_names(report))}"
    return _TEMPLATE.substitute(
        policy=f"default-src 'none'; script-src {_hash(library)} {_hash(_SCRIPT)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
        title=html.escape(title),
        style=_STYLE,
        heading=_heading(report),
        tiles=_tiles(report),
        links="".join(f'<a href="#{group.key}">{html.escape(group.title)}</a>' for group in plain),
        advice=_advice(found),
        kinship=_kinship(report, kinship(report)),
        groups=_groups(plain),
        recipe=html.escape(recipe),
        versions=html.escape(_versions()),
        content=_json(content),
        library=library,
        script=_SCRIPT,
    )


def _sections(shown: Sequence[Group]) -> list[Section]:
    return [section for group in shown for section in group.sections]


def _plain(section: Section) -> dict[str, Any]:
    """A section as JSON for the page's script."""
    figure = json.loads(section.chart.figure.to_json())
    return {
        "data": figure["data"],
        "layout": figure["layout"],
        "narrow": section.chart.narrow,
        "title": section.chart.title,
        "note": section.chart.note,
        "alt": section.chart.alt,
        "about": section.explanation,
        "headers": section.table.headers,
        "rows": [[_finite(value) for value in row] for row in section.table.rows],
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(content: Any) -> str:
    """JSON that can stand inside a script element: no text in it can end the element, nor open a comment."""
    written = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _heading(report: Report) -> str:
    names = ", ".join(f"<b>{html.escape(name)}</b>" for name in expert_names(report))
    method = f", merged by {html.escape(report.preview.method)}" if report.preview is not None else ""
    return f"{names} beside their base <b>{html.escape(report.base)}</b>{method}"


def _tiles(report: Report) -> str:
    """Key figures over the tensors that hold no NaN."""
    whole, tiles = report.intact, []
    if whole is not None:
        for expert, name in enumerate(expert_names(report)):
            change = whole.relative_change(expert)
            tiles.append((name, "–" if change is None else f"{change:.3g}", "change, ‖δ‖ / ‖θ₀‖"))
        share, signs = whole.signs.opposite_share(), whole.signs
        if share is not None:
            tiles.append(("opposite signs", _share(share), "50 % by chance"))
        if (split := signs.split_share()) is not None and len(report.experts) > 2:
            tiles.append(("not unanimous", _share(split), f"{_share(signs.split_chance())} by chance"))
        if (mass := signs.mass()) is not None:
            tiles.append(("mass conflict", _share(mass), f"{_share(signs.mass_chance())} by chance"))
        if report.pairs and signs.coverage is not None:
            tiles.append(("coverage", _share(signs.coverage), "changed by two or more"))
    weights = sum(found.elements for found in report.tensors.values())
    tiles.append(("measured", f"{weights:,}", f"weights in {len(report.tensors)} tensors"))
    return "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
        f'<dd class="unit">{html.escape(unit)}</dd></div>'
        for name, value, unit in tiles
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _advice(found: Sequence[Advice]) -> str:
    if not found:
        return '<p class="quiet">Nothing stands out.</p>'
    items = "".join(
        f'<li class="{one.severity}"><span class="kind">{one.severity}</span><span>{html.escape(one.text)}</span>'
        f'<span class="evidence">{html.escape(one.evidence)}.</span></li>'
        for one in found
    )
    return f'<ul class="advice">{items}</ul>'


def _kinship(report: Report, found: Kinship) -> str:
    rows = [
        (name, *values)
        for name, *values in zip(
            pair_names(report), found.pearson, found.cosine, found.distance, strict=False
        )
    ]
    if len(rows) > 1:
        rows.append(("mean", *found.means))
    if not rows:
        return f'<p class="quiet">{html.escape(found.suggestion)}</p>'
    body = "".join(
        f'<tr><th scope="row">{html.escape(str(name))}</th>'
        + "".join("<td>–</td>" if value is None else f"<td>{value:.3g}</td>" for value in values)
        + "</tr>"
        for name, *values in rows
    )
    return (
        f"<p>{html.escape(found.suggestion)}</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Kinship of the experts"><table>'
        '<thead><tr><th scope="col">pair</th><th scope="col">Pearson</th><th scope="col">cosine</th>'
        f'<th scope="col">distance</th></tr></thead><tbody>{body}</tbody></table></div>'
        '<p class="quiet">Model kinship over the whole model, as in 2410.12613, with the signed cosine.</p>'
    )


def _groups(shown: Sequence[Group]) -> str:
    """A place for every chart; the script fills it."""
    parts, number = [], 0
    for group in shown:
        parts.append(f'<section id="{group.key}"><h2>{html.escape(group.title)}</h2>')
        parts.append(f"<p>{html.escape(group.lead)}</p>")
        for section in group.sections:
            parts.append(
                f'<figure class="chart" data-chart="{number}" style="--height: {_height(section)}px"></figure>'
            )
            number += 1
        parts.append("</section>")
    return "".join(parts)


def _height(section: Section) -> int:
    """Pixels to keep free for a chart until it is drawn, so that the page does not jump."""
    return int(section.chart.figure.layout.height or 300)


def _versions() -> str:
    def of(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"{package} (unknown)"

    return ", ".join(
        [f"Mergescope {__version__}", *map(of, ("torch", "plotly")), f"Python {platform.python_version()}"]
    )
