"""A report's page opened from the disk, offline, by Chromium."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect
from safetensors.torch import load_file, save_file

import merging
from components.figures.page import page_html
from merging.inspecting.advice import advice
from tests.browser.test_axe import violations
from tests.conftest import tune

pytestmark = pytest.mark.browser


@pytest.fixture
def open_report(new_window):
    """Open a page from the disk and answer no request: `open_report(file, width=390, dark=True)` gives the page, what it
    asked for, and what it complained of."""

    def open_one(file, width: int = 1280, *, dark: bool = False):
        page, asked, errors = new_window(width, dark=dark), [], []

        def answer(route):
            if route.request.url == file.as_uri():
                route.continue_()
            else:
                asked.append(route.request.url)
                route.abort()

        page.route("**/*", answer)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console", lambda said: errors.append(said.text) if said.type in {"error", "warning"} else None
        )
        page.goto(file.as_uri())
        return page, asked, errors

    return open_one


def walk(page) -> None:
    """Scroll over the whole page, so that every chart is drawn."""
    number = page.locator("figure.chart").count()
    for place in range(number):
        figure = page.locator("figure.chart").nth(place)
        figure.scroll_into_view_if_needed()
        figure.locator(".plot svg").first.wait_for(timeout=60_000)


def write_page(tmp_path, recipe) -> tuple:
    report = merging.inspect(recipe, device="cpu")
    file = tmp_path / "report.html"
    file.write_text(page_html(report, advice(report), recipe.to_yaml()), encoding="utf-8")
    return file, report


def recipe_of(folder, names, **keys) -> merging.Recipe:
    models = tuple({"model": str(folder / name)} for name in names)
    return merging.Recipe(
        **{"merge_method": "ties", "profile": "paper", **keys}, base_model=str(folder / "base"), models=models
    )


@pytest.fixture(scope="module")
def trimmed_page(family, tmp_path_factory):
    recipe = recipe_of(family, ("one", "two", "three"), parameters={"density": 0.4})
    return write_page(tmp_path_factory.mktemp("page"), recipe)


def test_all_maps_are_drawn_without_a_request_with_table_csv_and_the_switch(trimmed_page, open_report):
    file, report = trimmed_page
    page, asked, errors = open_report(file)
    walk(page)
    number = page.locator("figure.chart").count()
    assert number > 20
    assert page.locator("figure.chart .heatmaplayer image").count() > 30
    first = page.locator("figure.chart").first
    assert first.locator(".heatmaplayer").count() == 3, "a map for each expert"
    shown = first.locator(".heatmap-label text").all_text_contents()
    value = report.tensors["model.layers.0.self_attn.q_proj.weight"].relative_change(0)
    assert any(text == f"{value:.{len(text.partition('.')[2])}f}" for text in shown)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    first.get_by_text("As a table").click()
    expect(first.locator("tbody tr")).to_have_count(21)
    page.get_by_label("Norms and embeddings").check()
    first.get_by_role("cell", name="embedding").wait_for()
    assert first.locator("tbody tr").count() > 21
    with page.expect_download() as download:
        first.get_by_role("button", name="Save as CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0] == "block,module,one,two,three"
    assert len(lines) == 1 + first.locator("tbody tr").count()
    with page.expect_download() as picture:
        first.get_by_role("button", name="Save as PNG").click()
    assert Path(picture.value.path()).read_bytes()[:4] == b"\x89PNG"
    first.get_by_text("What am I looking at?").click()
    expect(first.get_by_text("relative Frobenius norm")).to_be_visible()
    assert (asked, errors) == ([], [])


def test_dark_narrow_and_light_axe_finds_nothing_to_object_to(trimmed_page, open_report):
    page, asked, errors = open_report(trimmed_page[0], 390, dark=True)
    walk(page)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(11, 17, 32)"
    ink = page.locator("figure.chart .xtick text").first.evaluate("node => getComputedStyle(node).fill")
    assert ink == "rgb(148, 163, 184)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "no sideways scroll"
    assert (asked, errors) == ([], [])
    page.locator("figure.chart").first.get_by_text("As a table").click()
    page.locator("figure.chart").first.get_by_text("What am I looking at?").click()
    assert violations(page) == []
    page.emulate_media(color_scheme="light")
    ticks = page.locator("figure.chart .xtick text")
    expect(ticks.first).to_have_css("fill", "rgb(71, 85, 105)")
    assert violations(page, "color-contrast") == []


def test_eight_experts_with_hostile_names_and_nan_open(family, tmp_path, open_report):
    folder = tmp_path / "f"
    shutil.copytree(family / "base", folder / "base")
    names = ["</script><script>document.title='owned'<", "<img src=x onerror=alert(1)>", "%{z}", "a" * 120]
    names = [name.replace("/", "∕") if "/" in name else name for name in names] + [
        "五",
        "=1+1",
        "${title}",
        "nan",
    ]
    for seed, name in enumerate(names, 1):
        tune(family / "base", folder / name, seed=seed)
    tensors = load_file(folder / "nan" / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"][0] = torch.nan
    save_file(tensors, folder / "nan" / "model.safetensors", {"format": "pt"})
    file, report = write_page(tmp_path, recipe_of(folder, names))
    page, asked, errors = open_report(file)
    walk(page)
    assert (asked, errors) == ([], [])
    assert page.title().startswith("Mergescope: base: ")
    assert page.locator("img").count() == 0
    expect(page.get_by_text("nan holds NaN or infinite values")).to_be_visible()
    page.locator("figure.chart").first.locator(".heatmaplayer image").nth(7).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert len(report.experts) == 8


def test_two_hundred_blocks_and_one(tmp_path, open_report):
    for blocks in (1, 200):
        folder = tmp_path / str(blocks)
        for seed, name in enumerate(("base", "one", "two")):
            (folder / name).mkdir(parents=True)
            generator = torch.Generator().manual_seed(seed)
            save_file(
                {
                    f"model.layers.{block}.{module}.weight": torch.randn(4, 4, generator=generator)
                    for block in range(blocks)
                    for module in ("self_attn.q_proj", "mlp.up_proj")
                },
                folder / name / "model.safetensors",
                {"format": "pt"},
            )
            (folder / name / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
        file, _ = write_page(folder, recipe_of(folder, ("one", "two"), merge_method="task_arithmetic"))
        page, asked, errors = open_report(file)
        first = page.locator("figure.chart").first
        first.locator(".plot svg").first.wait_for(timeout=60_000)
        expect(first.locator(".heatmaplayer image")).to_have_count(2)
        first.get_by_text("As a table").click()
        expect(first.locator("tbody tr")).to_have_count(2 * blocks)
        assert (asked, errors) == ([], [])
