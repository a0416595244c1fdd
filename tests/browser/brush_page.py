"""A page with nothing but a map of the demo family, the bar that brushes it, and the recipe it changes."""

from __future__ import annotations

import os

import gradio as gr

from components.clickable_plot import HEAD as CHART_HEAD
from components.clickable_plot import clickable_plot, clicked_cell, payload
from components.family import Family
from components.figures.maps import map_chart
from components.figures.metrics import METRICS
from components.preview.brush_bar import CSS as BRUSH_CSS
from components.preview.brush_bar import Taken, build_brush_bar, wire_brush_bar
from components.preview.brush_choice import brush_source
from components.server.settings import ROOT
from components.theme import CSS, HEAD, build_theme
from merging import Report, inspect
from merging.plan import make_plan

FAMILY = Family.demo(ROOT / "examples" / "demo")


def build(report: Report, metric: str = "change") -> gr.Blocks:
    """The page: `density` trims with whole-model scope, so that a brush on it changes the scope."""
    recipe = FAMILY.recipe("ties", {"density": 0.5})
    names = [tensor.info.name for tensor in make_plan(recipe).tensors]
    grid = report.grid(lambda statistics: statistics.elements)
    filled = brush_source(recipe, grid.rows, grid.columns, names)
    with gr.Blocks(title="Brush") as page:
        source, state = gr.State(None), gr.State(recipe)
        plot = clickable_plot(empty="No map yet.", name="map", elem_id="map")
        bar = build_brush_bar("test")
        yaml = gr.Code(recipe.to_yaml(), language="yaml", label="Recipe (YAML)", elem_id="yaml")
        clicked = gr.Textbox(label="Clicked cell", elem_id="clicked")

        def click(event: gr.EventData) -> str:
            return str(clicked_cell(event))

        def fill():
            return payload(map_chart(report, METRICS[metric]), brush=True), filled

        plot.select(click, None, clicked)
        wire_brush_bar(
            bar, plot, source, state, Taken(lambda changed: [changed, changed.to_yaml()], [], [state, yaml])
        )
        page.load(fill, None, [plot, source])
    return page


if __name__ == "__main__":
    build(inspect(FAMILY.recipe())).launch(
        server_name="127.0.0.1",
        server_port=int(os.environ["MERGESCOPE_PORT"]),
        theme=build_theme(),
        css=CSS + BRUSH_CSS,
        head=HEAD + CHART_HEAD,
        quiet=True,
    )
