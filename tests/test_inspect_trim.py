"""What trimming and a closer look add to the Inspect tab, against numbers counted here."""

from __future__ import annotations

import csv
import io
from collections import defaultdict

import gradio as gr
import pytest
import torch
from safetensors.torch import load_file

import components.inspect.events as events
from components.family import Family
from components.figures.metrics import METRICS, panels, worded
from components.inspect.detail import build_detail, end, show_inside, show_spectrum, wire_detail
from components.inspect.maps import Shown, build_choice, choose_map, wire_choice
from components.inspect.reports import Reports, Stops
from components.inspect.trim import TrimmedReports, accept, plain_key, trim, trim_key
from components.inspect.views import TRIMMED
from components.server.settings import Settings
from components.shared import build_shared
from components.tables import csv_text, full_table, map_table

EXPERTS = ("one", "two", "three")
SETTINGS = Settings(device="cpu")
DENSITY = 0.25
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def chosen(family) -> Family:
    return Family.demo(family, EXPERTS)


@pytest.fixture(scope="module")
def kept(chosen):
    """Reports with that of the family, and its key with a trim."""
    reports = TrimmedReports(Reports())
    *_, measured = events.measure(reports.plain, Stops(), SETTINGS, chosen)
    *_, trimmed = trim(reports, Stops(), SETTINGS, chosen, (measured[4], DENSITY, "tensor"), False)
    return reports, trimmed[3]


@pytest.fixture(scope="module")
def largest(family) -> torch.Tensor:
    """The changes of one tensor, zero but for the largest quarter: [experts, n], float32."""
    base = load_file(family / "base" / "model.safetensors")[Q].float()
    deltas = torch.stack(
        [(load_file(family / name / "model.safetensors")[Q].float() - base).flatten() for name in EXPERTS]
    )
    keep = torch.zeros_like(deltas).scatter(1, deltas.abs().topk(int(DENSITY * base.numel())).indices, 1.0)
    return deltas * keep


def test_the_cut_in_the_histogram_is_the_smallest_change_that_stays(kept, largest):
    reports, key = kept
    story = events.choose_cell(reports, key, "change", False, "1", "q")
    histogram = story[6]
    smallest = largest.abs().where(largest != 0, torch.inf).amin(1).tolist()
    assert [line["x0"] for line in histogram["layout"]["shapes"]] == smallest
    assert f"one {smallest[0]:.3g}" in histogram["note"]
    assert "density of 25 %" in histogram["note"]


def test_pairs_of_a_cell_before_and_after(kept, largest):
    reports, key = kept
    story = events.choose_cell(reports, key, "change", False, "1", "q")
    both = (largest[0] != 0) & (largest[1] != 0)
    opposite = (largest[0] * largest[1] < 0).sum() / both.sum()
    assert f"<td>{opposite:.3f}</td><td>{int(both.sum()):,}</td>" in story[8]
    diamonds = story[7]["data"][1]
    assert diamonds["x"][0] == pytest.approx(float(opposite))
    assert diamonds["marker"]["symbol"] == "diamond"


def test_maps_before_and_after_share_a_scale_and_a_table(kept, largest):
    reports, key = kept
    report = reports.get(key)
    shown = panels(report, METRICS["split"], trimmed=True)
    assert [panel.name for panel in shown] == ["all changes", "largest 25 % in each tensor"]
    changed = (largest != 0).sum(0)
    split = ((largest > 0).any(0) & (largest < 0).any(0)).sum() / (changed >= 2).sum()
    assert shown[1].grid.values[1][0] == pytest.approx(float(split))
    by_chance = (1 - 2.0 ** (1 - changed[changed >= 2].double())).mean()
    assert shown[1].chance.values[1][0] == pytest.approx(float(by_chance))
    assert f"{float((changed >= 2).double().mean()):.3f} of all weights" in shown[1].told[1][0]
    table = map_table(report, METRICS["split"], trimmed=True)
    assert table.headers[2:] == [
        "all changes",
        "all changes: chance",
        "largest 25 % in each tensor",
        "largest 25 % in each tensor: chance",
    ]
    row = next(row for row in table.rows if row[:2] == [1, "q"])
    assert row[4:] == [pytest.approx(float(split), rel=1e-3), pytest.approx(float(by_chance), rel=1e-3)]


@pytest.mark.parametrize(
    ("scope", "where"), [("tensor", "each tensor"), ("layer", "each block"), ("model", "the whole model")]
)
def test_columns_after_a_trim_name_its_scope(kept, chosen, scope, where):
    reports, key = kept
    *_, trimmed = trim(reports, Stops(), SETTINGS, chosen, (key, 0.2, scope), True)
    report = reports.get(trimmed[3] if isinstance(trimmed[3], str) else key)
    headers, *_ = csv.reader(io.StringIO(csv_text(full_table(report))))
    columns = ["coverage", "opposite signs", "not unanimous", "not unanimous by chance"]
    columns += ["mass conflict", "mass conflict by chance"]
    assert headers[-6:] == [f"{column}, density 0.2 in {where}" for column in columns]
    assert map_table(report, METRICS["coverage"], trimmed=True).headers[-1] == f"largest 20 % in {where}"


def test_words_say_what_is_shown(kept):
    reports, key = kept
    report = reports.get(key)
    chart, *_ = events.show_metric(reports, key, "mass" + TRIMMED, False, None)
    assert chart["title"].endswith("before and after trimming")
    assert "the largest 25 % of each expert's changes in each tensor" in chart["note"]
    assert "not trimmed" in worded(report, METRICS["cosine"], True).note
    assert worded(report, METRICS["change"], True) == METRICS["change"]
    plain = reports.get(plain_key(key))
    assert plain.trim is None
    assert worded(plain, METRICS["mass"], True) == METRICS["mass"]


def test_the_colours_of_a_mass_conflict_are_centred_on_chance(kept):
    reports, key = kept
    chart, *_ = events.show_metric(reports, key, "mass", False, None)
    signs = reports.get(key).tensors[Q].signs
    assert chart["data"][0]["z"][1][0] == pytest.approx(signs.mass() - signs.mass_chance())
    axis = chart["layout"]["coloraxis"]
    assert axis["cmin"] == -axis["cmax"]
    assert axis["colorbar"]["ticktext"][1] == "chance"
    assert float(chart["data"][0]["text"][1][0]) == pytest.approx(signs.mass(), abs=0.006)


def test_cosine_of_whole_blocks(kept, family):
    reports, key = kept
    base, one, two = (load_file(family / name / "model.safetensors") for name in ("base", "one", "two"))
    main = [name for name in base if ".layers.1." in name and "norm" not in name]
    a, b = (torch.cat([(m[n].float() - base[n].float()).flatten() for n in main]) for m in (one, two))
    drawn, _, table = events.show_metric(reports, key, "block_cosine", False, (1, "q"))
    wanted = float(torch.nn.functional.cosine_similarity(a, b, 0))
    assert drawn["data"][0]["z"][1][1] == pytest.approx(wanted, rel=1e-4)
    assert drawn["picked"] is None
    assert table["headers"] == ["block", "mean of all pairs", "one · two", "one · three", "two · three"]
    rows = list(csv.DictReader(io.StringIO(csv_text(full_table(reports.get(key))))))
    found = [float(row["one · two cosine of the whole block"]) for row in rows if row["block"] == "1"]
    assert found == pytest.approx([wanted] * 7, rel=1e-4)


def test_a_click_on_a_whole_block_keeps_the_module(kept):
    import gradio as gr

    reports, key = kept
    click = gr.EventData(None, {"index": [2, 3]})
    assert events.pick_cell(reports, click, key, False, "block_cosine", (0, "v"))[0] == (2, "v")
    gone = gr.EventData(None, {"index": [9, 0]})
    assert events.pick_cell(reports, gone, key, False, "block_cosine", (0, "v")) == [gr.skip()] * 8


def test_the_model_s_tiles_and_pairs(kept):
    reports, key = kept
    shown = events.show_report(reports, key, "change", False, None)
    whole = reports.get(key).total
    assert f"<dd>{whole.signs.mass():.2f}</dd>" in shown[0]
    assert f"{whole.signs.split_chance():.2f} by chance" in shown[0]
    assert f"<td>{whole.cosine(0):.4f}</td><td>{whole.pearson(0):.4f}</td>" in shown[1]
    assert "nearly unrelated directions" in shown[1]


@pytest.mark.parametrize(
    ("said", "key", "visible"),
    [
        (("change", "changed", "split", "owner", ""), "changed", [True, False, False, False]),
        (("conflict", "changed", "split", "owner", ""), "split", [False, True, False, True]),
        (("conflict", "changed", "split", "owner", TRIMMED), "split" + TRIMMED, [False, True, False, True]),
        (("importance", "changed", "split", "owner", TRIMMED), "owner", [False, False, True, False]),
        (("odd", "x", "split", "owner", TRIMMED), "change", [True, False, False, False]),
        (("conflict", "x", "owner", "split", "odd"), "conflict", [False, True, False, True]),
    ],
)
def test_a_group_and_its_map_are_one_key(said, key, visible):
    found, *rows = choose_map(*said)
    assert found == key
    assert [row["visible"] for row in rows] == visible


@pytest.mark.parametrize(
    "wanted",
    [(0.0, "tensor"), (1.5, "tensor"), ("0.2", "tensor"), (0.2, "odd"), (0.2, ["tensor"]), (None, None)],
)
def test_a_trim_that_means_nothing_changes_nothing(kept, chosen, wanted):
    reports, key = kept
    (step,) = trim(reports, Stops(), SETTINGS, chosen, (key, *wanted), True)
    assert all(isinstance(part, dict) and "value" not in part for part in step)


def test_heads_rows_and_spectra_of_a_cell(kept, chosen):
    reports, key = kept
    shown, status, read, decompose, heads, rows, tables, tokens, *_ = show_inside(
        reports, SETTINGS, chosen, key, (1, "q")
    )
    assert (shown["visible"], status, read["visible"], decompose["interactive"]) == (True, "", False, True)
    assert len(heads["data"][0]["x"]) == 4
    assert len(rows["data"][0]["y"]) == 32
    assert tables.count("<tr>") == 1 + 4
    assert tokens == ""
    *steps, (status, button, stop, token, chart, ranks) = show_spectrum(
        reports, Stops(), SETTINGS, chosen, key, (1, "q")
    )
    assert "spectrum 1 of 3" in steps[0][0]
    assert (status, button["interactive"], stop["visible"], token) == ("", True, False, "")
    assert len(chart["data"]) == 3
    assert ranks.count("<tr>") == 1 + 3


def test_a_spectrum_is_stopped_for_that_visitor(kept, chosen):
    reports, key = kept
    stops = Stops()
    running = show_spectrum(reports, stops, SETTINGS, chosen, key, (1, "q"))
    token = next(running)[3]
    stops.stop(token)
    *_, ended = running
    assert "Stopped" in ended[0]
    assert ended[1]["interactive"]
    stops.stop(token)


def test_another_cell_stops_the_spectrum(kept, chosen):
    reports, key = kept
    stops = Stops()
    running = show_spectrum(reports, stops, SETTINGS, chosen, key, (1, "q"))
    begun = next(running)
    assert "spectrum 1 of 3" in begun[0]
    button, token = end(stops, begun[3])
    assert (button["visible"], token) == (False, "")
    *_, ended = running
    assert ended[0] == "", "what became of it is not told under the name of another cell"
    assert ended[1] == gr.skip(), "whether the button works is up to the cell that is shown"
    assert ended[2]["visible"] is False
    assert ended[3:] == ["", gr.skip(), gr.skip()]


def test_what_was_said_of_a_spectrum_goes_when_another_cell_comes(kept, chosen):
    reports, key = kept
    with gr.Blocks():
        detail = build_detail()
    inside = show_inside(reports, SETTINGS, chosen, key, (2, "down"))
    assert dict(zip(detail.inside, [*inside, None], strict=True))[detail.progress] == ""
    assert detail.status not in detail.computed, "a spectrum that ends late says nothing of that cell"


def test_what_stops_a_spectrum_is_never_forgotten_before_it_is_read(kept):
    """Events of one trigger run in any order, so none may write a state that another reads."""
    with gr.Blocks() as page:
        detail, shared = build_detail(), build_shared(page, SETTINGS)
        wire_detail(detail, gr.State(""), gr.State(None), SETTINGS, shared, kept[0])
    readers, writers = defaultdict(set), defaultdict(set)
    for event in page.fns.values():
        for target in event.targets:
            readers[target] |= {event._id} if detail.token in event.inputs else set()
            writers[target] |= {event._id} if detail.token in event.outputs else set()
    shared_triggers = [target for target in readers if readers[target] and writers[target]]
    assert len(shared_triggers) == 2, "another cell and another family"
    assert all(readers[target] == writers[target] for target in shared_triggers)


def test_special_tokens_are_marked(kept, chosen):
    reports, key = kept
    tokens = show_inside(reports, SETTINGS, chosen, key, (None, "embedding"))[7]
    assert "Changed most by three" in tokens
    marked = tokens[tokens.index("Special and chat-template tokens") :]
    assert "&lt;eos&gt;" in marked
    assert "<td>special</td>" in marked


def test_a_large_tensor_waits_until_it_is_asked_for(kept, chosen, monkeypatch):
    monkeypatch.setattr("components.inspect.detail.MOST_UNASKED", 1000)
    reports, key = kept
    waiting = show_inside(reports, SETTINGS, chosen, key, (1, "q"))
    assert "it is read when you ask for it" in waiting[1]
    assert waiting[2]["visible"]
    assert "Read heads and rows" in waiting[5]["empty"]
    asked = show_inside(reports, SETTINGS, chosen, key, (1, "q"), True)
    assert len(asked[4]["data"][0]["x"]) == 4


def test_a_shown_trim_of_a_large_family_follows_its_slider(kept, chosen, monkeypatch):
    """Keys move the slider without releasing it."""
    monkeypatch.setattr("components.inspect.trim.MOST_UNASKED", 1000)
    reports, key = kept
    with gr.Blocks() as page:
        shared, parts = build_shared(page, SETTINGS), [gr.State("") for _ in range(4)]
        choice = build_choice(gr.Radio(["change"]))
        wire_choice(
            choice, Shown(parts[0], parts[1], [gr.HTML(), *parts[2:]]), SETTINGS, shared, reports, Stops()
        )
    moved = (choice.density._id, "change")
    (event,) = (one for one in page.fns.values() if moved in one.targets)
    *_, followed = event.fn(chosen, "", key, 0.35, "tensor")
    assert followed[3] == f"{plain_key(key)}@0.35 tensor"
    *_, unasked = event.fn(chosen, "", plain_key(key), 0.36, "tensor")
    assert unasked == [gr.skip()] * 4, "a large family is not trimmed as long as nobody asked for it"
    story = events.choose_cell(reports, followed[3], "conflict", False, "1", "q")
    assert "left by a density of 35 %" in story[6]["note"]
    assert "Trimmed: the largest 35 % of each expert&#x27;s changes in each tensor." in story[8]
    assert (
        "the largest 35 % of each expert&#x27;s"
        in events.show_report(reports, followed[3], "mass", False, None)[1]
    )


def test_a_trim_that_comes_late_does_not_bring_an_older_report_back():
    assert accept("new", trim_key("new", 0.2, "tensor")) == "new@0.2 tensor"
    assert accept("new@0.5 model", trim_key("new", 0.2, "tensor")) == "new@0.2 tensor"
    assert accept("new", trim_key("old", 0.2, "tensor")) == gr.skip()
    assert accept("new", "") == gr.skip()
