"""The page of a report: complete, self-contained, and safe with names that strangers chose."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

import merging
from components.figures.page import Known, page_html
from components.figures.page_sections import groups
from merging.inspecting.advice import advice
from merging.reports.folder import rows, write_report
from tests.conftest import tune

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>%{z}"


def page_of(report, recipe="merge_method: ties\n", **options) -> str:
    return page_html(report, advice(report), recipe, **options)


def content_of(page: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


@pytest.fixture(scope="module")
def report(family):
    entries = tuple({"model": str(family / name)} for name in ("one", "two", "three"))
    recipe = merging.Recipe(
        merge_method="ties",
        base_model=str(family / "base"),
        models=entries,
        parameters={"density": 0.4},
        profile="paper",
    )
    return merging.inspect(recipe)


def test_every_map_has_its_title_note_explanation_and_table(report):
    content = content_of(page_of(report))
    titles = [chart["title"] for chart in content["plain"]]
    for words in (
        "How far each expert moved",
        "opposite directions, before and after trimming",
        "not unanimous",
        "cancels when all experts are added",
        "same direction",
        "is kept",
        "is out-voted",
        "is cancelled",
        "is present in the merged model",
        "belongs to no expert",
        "float16 would round away",
        "The density that every tensor gets",
    ):
        assert any(words in title for title in titles), words
    assert len(set(titles)) == len(titles)
    for chart in content["plain"]:
        assert all(chart[key] for key in ("note", "about", "alt")), chart["title"]
        assert chart["rows"], chart["title"]
        assert all(len(row) == len(chart["headers"]) for row in chart["rows"])
    assert len(content["wide"]) == len(content["plain"])


def test_the_numbers_are_the_reports(report):
    (change, *_) = content_of(page_of(report))["plain"]
    assert change["headers"] == ["block", "module", "one", "two", "three"]
    cell = report.tensors["model.layers.2.self_attn.v_proj.weight"]
    (row,) = [row for row in change["rows"] if row[:2] == [2, "v"]]
    assert row[2:] == [pytest.approx(cell.relative_change(t), rel=1e-3) for t in range(3)]


def test_nothing_outside_is_named_and_the_policy_allows_no_request(report):
    page = page_of(report)
    library = page.index("plotly.js v")
    outside = page[: page.rindex("<script>", 0, library)] + page[page.index("</script>", library) :]
    assert not re.findall(r'(?:src|href)\s*=\s*"?(?!#|data:)[^"> ]', outside)
    assert "://" not in re.sub(r'<script type="application/json".*?</script>', "", outside, flags=re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    for script in re.findall(r"<script>(.*?)</script>", page, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_hostile_names_stay_text(family, tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    for seed, name in enumerate(("base", "<b>x", 'a"onload="y')):
        if seed:
            tune(family / "base", folder / name, seed=seed)
        else:
            shutil.copytree(family / "base", folder / name)
    hostile = folder / "=1+1${script}<script>"
    shutil.copytree(folder / "<b>x", hostile)
    recipe = merging.Recipe(
        merge_method="task_arithmetic",
        base_model=str(folder / "base"),
        models=tuple({"model": str(one)} for one in (folder / "<b>x", folder / 'a"onload="y', hostile)),
        profile="paper",
    )
    found = merging.inspect(recipe)
    page = page_html(found, advice(found), f"# {HOSTILE}\n")
    assert page.count("<script") == 3, "plotly, our script and the numbers"
    assert page.count("</script>") == 3
    assert HOSTILE not in page
    assert "<b>x" not in page
    assert 'a"onload' not in re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    assert "are the same model" in page
    assert "${script}" in page, "the template does not fill in names"
    headings = content_of(page)["plain"][0]["headers"]
    assert headings[2:] == ["<b>x", 'a"onload="y', "=1+1${script}<script>"]
    lines = list(rows(found))
    assert not any(str(value).startswith("=") for line in lines for value in line)


def test_nan_is_shown_and_the_page_is_not_blank(family, tmp_path):
    for name in ("base", "one", "two"):
        shutil.copytree(family / name, tmp_path / "f" / name)
    file = tmp_path / "f" / "two" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    recipe = merging.Recipe(
        merge_method="ties",
        base_model=str(tmp_path / "f" / "base"),
        models=tuple({"model": str(tmp_path / "f" / name)} for name in ("one", "two")),
        parameters={"density": 0.5},
    )
    found = merging.inspect(recipe)
    assert (found.preview, found.trim) == (None, None)
    assert any("without a preview" in warning and "NaN" in warning for warning in found.warnings)
    page = page_of(found)
    assert "two holds NaN or infinite values" in page
    assert "There is no preview of this recipe" in page
    titles = [chart["title"] for chart in content_of(page)["plain"]]
    assert any("How far each expert moved" in title for title in titles)


def test_one_expert_has_no_maps_of_pairs_and_says_so(family):
    recipe = merging.Recipe(
        merge_method="task_arithmetic",
        base_model=str(family / "base"),
        models=({"model": str(family / "one")},),
        profile="paper",
    )
    found = merging.inspect(recipe)
    by_key = {group.key: group for group in groups(found)}
    assert by_key["conflict"].sections == []
    assert "this recipe has one" in page_of(found)
    assert len(by_key["fate"].sections) > 5


def test_methods_that_are_no_sum_show_what_is_present(family):
    recipe = merging.Recipe(
        merge_method="slerp",
        base_model=str(family / "one"),
        models=({"model": str(family / "two")},),
        parameters={"t": 0.3},
    )
    found = merging.inspect(recipe)
    titles = [section.chart.title for group in groups(found) for section in group.sections]
    assert "How much of each expert is present in the merged model" in titles
    assert not any("out-voted" in title for title in titles)


def test_linear_is_measured_from_the_base_it_names(family):
    recipe = merging.Recipe(
        merge_method="linear",
        base_model=str(family / "base"),
        models=tuple({"model": str(family / name), "parameters": {"weight": 0.5}} for name in ("one", "two")),
        profile="paper",
    )
    found = merging.inspect(recipe)
    same = merging.inspect(recipe.model_copy(update={"merge_method": "task_arithmetic"}))
    assert found.total.relative_change(0) == pytest.approx(same.total.relative_change(0))
    assert found.preview is not None


def test_importance_joins_where_the_recipe_has_it(demo_importance):
    report, known = demo_importance
    by_key = {group.key: group for group in groups(report, known)}
    assert by_key["importance"].sections[0].chart.title.startswith("Which changes each")
    assert len(by_key["importance"].sections) == 4


@pytest.fixture(scope="module")
def demo_importance(tmp_path_factory, report, family):
    """Importance of the family, measured with a few letters."""
    data = tmp_path_factory.mktemp("data") / "task.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{a}+{a}=", "answer": f"{a}"}) + "\n" for a in "abcdefgh"))
    recipe = merging.Recipe(
        merge_method="task_arithmetic",
        base_model=str(family / "base"),
        models=tuple({"model": str(family / name)} for name in ("one", "two", "three")),
        profile="paper",
    )
    measured = merging.importance(recipe, data, device="cpu")
    plan = merging.check(recipe)
    return report, Known(measured, tuple(measured.places(plan.base, plan.experts)))


def test_a_report_that_cannot_be_written_leaves_what_was_there(report, tmp_path, monkeypatch):
    out = tmp_path / "report"
    write_report(report, page_of(report), out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("csv.writer", full)
    with pytest.raises(merging.OutputError, match=r"cannot be written \(No space left"):
        write_report(report, "another page", out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_threads_write_one_folder_in_turn(report, tmp_path):
    out = tmp_path / "report"
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(lambda number: write_report(report, f"page {number}", out), range(12)))
    assert written == [["report.html", "report.json", "report.safetensors", "tensors.csv"]] * 12
    assert sorted(file.name for file in out.iterdir()) == written[0]
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert merging.Report.load(out) == report


def test_a_report_whose_writer_was_killed_between_the_renames_comes_back(report, tmp_path):
    out = tmp_path / "report"
    write_report(report, "old", out)
    out.rename(tmp_path / ".report.replaced")
    (tmp_path / ".report.partial").mkdir()
    with pytest.raises(AttributeError):
        write_report(None, "new", out)
    assert (out / "report.html").read_text() == "old"
    write_report(report, "new", out)
    assert (out / "report.html").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
