"""The Inspect tab: measuring, choosing a cell, and what clients may send."""

from __future__ import annotations

import shutil

import gradio as gr
import pytest

import components.inspect.events as tab
import merging
from components.clickable_plot import clicked_cell, payload
from components.family import Family
from components.figures.metrics import METRICS
from components.inspect.reports import Reports, Stops, report_key
from components.inspect.views import settle, show_cell, show_map
from components.server.settings import Settings
from components.shared import LOCAL_OWNER, owner_id

EXPERTS = ("one", "two", "three")


@pytest.fixture
def settings(family, tmp_path):
    return Settings(demo=family, runs=tmp_path / "runs", device="cpu")


@pytest.fixture(scope="module")
def kept(family):
    """Reports with that of the whole family, and its key."""
    reports = Reports()
    *_, last = tab.measure(reports, Stops(), Settings(device="cpu"), Family.demo(family, EXPERTS))
    return reports, last[4]


def event(data: object) -> gr.EventData:
    return gr.EventData(None, data)


def test_a_family_is_measured_and_the_second_time_remembered(family, settings, monkeypatch):
    reports = Reports()
    chosen = Family.demo(family, EXPERTS)
    *_, last = tab.measure(reports, Stops(), settings, chosen)
    report = reports.get(last[4])
    assert report.tensors == merging.inspect(chosen.recipe()).tensors
    monkeypatch.setattr(
        "components.inspect.reports.inspect_plan", lambda *a, **k: pytest.fail("measured twice")
    )
    *_, again = tab.measure(reports, Stops(), settings, chosen)
    assert again[4] == last[4]


def test_the_key_follows_contents_and_names(family, tmp_path):
    def key(folder, experts):
        return report_key(merging.check(Family.demo(folder, experts).recipe()))

    copy = shutil.copytree(family, tmp_path / "copy")
    before = key(copy, ("one", "two"))
    assert key(copy, ("one", "two")) == before
    assert key(copy, ("two", "one")) != before
    shutil.copy(copy / "three" / "model.safetensors", copy / "two" / "model.safetensors")
    assert key(copy, ("one", "two")) != before


def test_reports_are_bounded_and_the_latest_used_stay():
    reports = Reports(most=2)
    report = merging.Report("base", ("a",), {})
    reports.keep("first", report)
    reports.keep("second", report)
    assert reports.get("first") is report
    reports.keep("third", report)
    assert reports.get("second") is None
    assert reports.get("first") is report
    assert reports.get(["third"]) is None


def test_a_large_family_is_read_only_when_asked(family, settings, monkeypatch):
    monkeypatch.setattr(tab, "MOST_UNASKED", 1000)
    chosen = Family.demo(family, EXPERTS)
    (status, measure, stop, _, key) = next(tab.measure(Reports(), Stops(), settings, chosen))
    assert "Measuring reads all of it" in status
    assert measure["visible"]
    assert not stop["visible"]
    assert key == ""
    *_, last = tab.measure(Reports(), Stops(), settings, chosen, asked=True)
    assert last[4]


@pytest.fixture
def one_second_a_tensor(monkeypatch):
    """Measurements that tell their progress after every tensor."""
    real = Reports.measure

    def slowly(self, plan, key, device):
        for progress in real(self, plan, key, device):
            yield merging.Progress(**{**progress.__dict__, "seconds": progress.tensors_done})

    monkeypatch.setattr(Reports, "measure", slowly)


@pytest.mark.usefixtures("one_second_a_tensor")
def test_progress_has_units_and_a_stop(family, settings):
    status, _, stop, *_ = next(tab.measure(Reports(), Stops(), settings, Family.demo(family, EXPERTS)))
    assert "1 / 30 tensors" in status
    assert "/s" in status
    assert "left" in status
    assert stop["visible"]


@pytest.mark.usefixtures("one_second_a_tensor")
def test_stop_ends_the_reading_of_that_visitor_only(family, settings):
    reports, stops = Reports(), Stops()
    mine, other = (tab.measure(reports, stops, settings, Family.demo(family, EXPERTS)) for _ in range(2))
    token = next(mine)[3]
    assert next(other)[3] not in {"", token}
    stops.stop(token)
    (status, measure, stop, _, key) = next(mine)
    assert "Stopped" in status
    assert measure["visible"]
    assert not stop["visible"]
    assert key == ""
    assert list(mine) == []
    *_, last = other
    assert reports.get(last[4]) is not None
    for gone in (token, "unknown", None, ["x"]):
        stops.stop(gone)


def test_a_family_that_cannot_be_read_is_one_sentence(family, settings, tmp_path):
    broken = shutil.copytree(family, tmp_path / "broken")
    (broken / "two" / "model.safetensors").write_bytes(b"short")
    (result,) = tab.measure(Reports(), Stops(), settings, Family.demo(broken, EXPERTS))
    assert 'role="alert"' in result[0]
    assert "Traceback" not in result[0]
    assert result[4] == ""


@pytest.mark.parametrize("odd", [Family("", ()), None, "family", 3])
def test_nothing_chosen_is_quiet(settings, odd):
    (result,) = tab.measure(Reports(), Stops(), settings, odd)
    assert result[0] == ""
    assert result[4] == ""


def test_a_click_tells_the_story_of_that_cell(kept):
    reports, key = kept
    result = tab.pick_cell(reports, event({"index": [2, 6]}), key, False, "change", None)
    _, block, module, story, figures, histogram, agreement, pairs = result
    assert pairs.count("<tr>") == 1 + 3
    assert (block["value"], module["value"]) == ("2", "down")
    assert "model.layers.2.mlp.down_proj.weight" in story
    assert "Block 2, down" in story
    assert figures.count("<tr>") == 1 + 3
    assert len(histogram["data"]) == 3
    assert len(agreement["data"][0]["x"]) == 3


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "x",
        {},
        {"index": 3},
        {"index": [1]},
        {"index": [-1, 0]},
        {"index": [0, 99]},
        {"index": [99, 0]},
        {"index": [True, False]},
        {"index": ["0", "0"]},
        {"index": [0.0, 1.0]},
        {"index": [[0], [0]]},
        {"index": {"0": 1}},
    ],
)
def test_clicks_that_no_map_sends_change_nothing(kept, data):
    reports, key = kept
    assert tab.pick_cell(reports, event(data), key, False, "change", None) == [gr.skip()] * 8


def test_a_click_on_a_gap_or_after_the_report_is_gone_changes_nothing(kept):
    reports, key = kept
    assert clicked_cell(event({"index": [0, 0]})) == (0, 0)
    gap = tab.pick_cell(reports, event({"index": [0, 2]}), key, True, "change", None)
    assert gap == [gr.skip()] * 8, "block 0 has no final norm"
    assert (
        tab.pick_cell(reports, event({"index": [0, 0]}), "unknown", False, "change", None) == [gr.skip()] * 8
    )


def test_dropdowns_do_what_a_click_does(kept):
    reports, key = kept
    clicked = tab.pick_cell(reports, event({"index": [1, 3]}), key, False, "change", None)
    chart, *chosen = tab.choose_cell(reports, key, "change", False, "1", "o")
    assert chosen == clicked
    assert chart["picked"] == [1, 3]
    assert tab.choose_block(reports, key, "change", False, "1", (0, "o"))[1:] == clicked
    assert tab.choose_module(reports, key, "change", False, "o", (1, "down"))[1:] == clicked


def test_a_cell_that_does_not_exist_gives_way_to_one_that_does(kept):
    reports, key = kept
    report = reports.get(key)
    assert settle(report, "change", True, "outside", "q") == (None, "final norm")
    assert settle(report, "change", False, "7", "q") == settle(report, "change", False, None, None)
    block, kind = settle(report, "change", False, None, None)
    values = [report.cells()[cell].relative_change(0) for cell in report.cells()]
    assert report.cells()[block, kind].relative_change(0) == max(values)
    assert settle(None, "change", False, "0", "q") is None


def test_another_metric_keeps_the_outlined_cell(kept):
    reports, key = kept
    chart, explanation, table = tab.show_metric(reports, key, "conflict", False, (2, "v"))
    assert chart["picked"] == [2, 2]
    assert "chance" in explanation
    assert table["headers"][2:] == ["all pairs", "one · two", "one · three", "two · three"]


def test_norms_and_embeddings_come_on_request(kept):
    reports, key = kept
    short = tab.show_report(reports, key, "change", False, None)
    full = tab.show_report(reports, key, "change", True, (0, "gone"))
    assert len(full) == len(short) == 14
    assert "embedding" not in str(short[3]["data"][0]["x"])
    assert "embedding" in str(full[3]["data"][0]["x"])


def test_an_unknown_metric_shows_the_first(kept):
    reports, key = kept
    chart, *_ = tab.show_metric(reports, key, "nonsense", False, (0, "q"))
    assert chart["title"] == METRICS["change"].title


def test_without_a_report_everything_says_what_to_do():
    chart, _, table = show_map(None, "change", False, None)
    assert chart is None
    assert table["data"] == []
    *_, histogram, agreement, pairs = show_cell(None, False, None)
    assert pairs == ""
    assert histogram is None
    assert agreement is None
    assert payload(None, empty="Do this.") == {"empty": "Do this."}


def test_owners(settings):
    assert owner_id(settings, "f" * 32) == LOCAL_OWNER
    shared = Settings(single_owner=False)
    assert owner_id(shared, "0123456789abcdef" * 2) == "0123456789abcdef" * 2
    fresh = {owner_id(shared, stored) for stored in (None, "local", "../x", "F" * 32, 5, ["a"], "a" * 33)}
    assert len(fresh) == 7
    assert all(len(owner) == 32 for owner in fresh)
