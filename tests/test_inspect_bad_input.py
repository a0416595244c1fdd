"""Families that are odd on the Inspect tab: one block or 200, unknown names, empty tensors, NaN, twins of the base, eight
experts, a vocabulary of 256k, and two visitors at once."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import components.inspect.events as events
from components.family import Family
from components.figures.metrics import METRICS
from components.inspect.detail import show_inside, show_spectrum
from components.inspect.reports import Reports, Stops
from components.inspect.trim import TrimmedReports, trim
from components.inspect.views import NOT_SHOWN
from components.models.opening import explained
from components.server.settings import Settings

SETTINGS = Settings(device="cpu")
NAMES = ("one", "two", "three")
WIDTH = 8


def llama(blocks: int, vocabulary: int = 12) -> dict[str, torch.Tensor]:
    """The base of a small family in the shapes of Llama."""
    shapes = {"model.embed_tokens.weight": (vocabulary, WIDTH), "model.norm.weight": (WIDTH,)}
    for block in range(blocks):
        for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"):
            shapes[f"model.layers.{block}.{module}.weight"] = (WIDTH, WIDTH)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def tuned(base: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.02 * torch.randn(value.shape, generator=generator) for name, value in base.items()
    }


def saved(folder: Path, base: dict[str, torch.Tensor], models: list[dict[str, torch.Tensor]]) -> Family:
    names = [f"expert{number}" for number in range(len(models))]
    for name, tensors in zip(("base", *names), (base, *models), strict=True):
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return Family.demo(folder, names)


@dataclass
class Looked:
    """What a visitor sees of a family: the reports, the key of the one that is shown, and the family."""

    reports: TrimmedReports
    key: str
    family: Family

    def map(self, metric: str, *, everything: bool = False) -> dict:
        return events.show_metric(self.reports, self.key, metric, everything, None)[0]

    @property
    def report(self):
        return self.reports.get(self.key)


def look(family: Family, reports: TrimmedReports | None = None) -> Looked:
    reports = reports or TrimmedReports(Reports())
    *_, measured = events.measure(reports.plain, Stops(), SETTINGS, family)
    assert measured[4], measured[0]
    *_, trimmed = trim(reports, Stops(), SETTINGS, family, (measured[4], 0.25, "tensor"), False)
    key = trimmed[3] if isinstance(trimmed[3], str) else measured[4]
    return Looked(reports, key, family)


def every_map(seen: Looked) -> None:
    """Draws everything there is for this family; none of it may fail."""
    for everything in (False, True):
        shown = events.show_report(seen.reports, seen.key, "change", everything, None)
        assert shown[0].startswith('<dl class="tiles">')
        for metric in METRICS:
            for suffix in ("", "+trimmed"):
                seen.map(metric + suffix, everything=everything)
    assert events.show_advice(seen.reports, seen.family, seen.key).startswith('<section class="advice"')


def test_one_block_is_one_row(tmp_path):
    base = llama(1)
    seen = look(saved(tmp_path, base, [tuned(base, 1), tuned(base, 2)]))
    every_map(seen)
    drawn = seen.map("conflict")
    assert drawn["data"][0]["y"] == ["0"]
    assert drawn["data"][0]["x"] == ["q", "o", "up"]


def test_two_hundred_blocks_stay_readable(tmp_path):
    base = llama(200)
    seen = look(saved(tmp_path, base, [tuned(base, 1), tuned(base, 2)]))
    layout = seen.map("change")["layout"]
    assert layout["height"] < 1000
    rows = len(seen.map("change")["data"][0]["y"])
    shown, label = rows / layout["yaxis"]["dtick"], 14
    assert shown * label <= layout["height"], "labels do not overlap"
    assert len(seen.map("change", everything=True)["data"][0]["y"]) == 201


def test_names_never_seen_and_empty_tensors_have_cells(tmp_path):
    base = {
        "tower.0.odd_thing.weight": torch.randn(4, 4),
        "tower.1.odd_thing.weight": torch.randn(4, 4),
        "nothing.weight": torch.zeros(0, 3),
        "<b>scalar</b>": torch.tensor(2.0),
    }
    seen = look(saved(tmp_path, base, [tuned(base, 1), tuned(base, 2)]))
    every_map(seen)
    drawn = seen.map("change")["data"][0]
    assert drawn["x"][drawn["z"][0].index(next(v for v in drawn["z"][0] if v))] == "odd_thing"
    assert "<b>" not in json.dumps([drawn["x"], drawn["customdata"]])
    outside = seen.report.frame()[0].index(None)
    assert drawn["z"][outside][drawn["x"].index("nothing")] is None
    inside = show_inside(seen.reports, SETTINGS, seen.family, seen.key, (None, "nothing"))
    assert "No weights here" in str(inside)


def test_a_cell_of_a_model_that_is_gone_is_said_to_be_unread_not_empty(tmp_path):
    base = llama(2)
    seen = look(saved(tmp_path, base, [tuned(base, 1), tuned(base, 2)]))
    Path(seen.family.experts[1]).rename(tmp_path / "elsewhere")
    inside = show_inside(seen.reports, SETTINGS, seen.family, seen.key, (0, "q"))
    assert_names_the_model(inside[1], seen.family.experts[1])
    assert "expert0" not in inside[1]
    assert inside[4] == inside[5] == {"empty": "Not read: the line above says why."}
    assert "No weights here" not in str(inside)


def assert_names_the_model(status: str, folder: str) -> None:
    """One sentence on the model that is gone; nobody wrote a recipe here."""
    assert 'role="alert"' in status
    assert f"The expert expert1 cannot be read. {folder}: there is no such folder." in status
    assert "Put it back, or choose another expert on the Models tab." in status
    assert "recipe" not in status


def test_every_part_of_the_tab_says_which_model_is_gone(tmp_path):
    base = llama(2)
    seen = look(saved(tmp_path, base, [tuned(base, 1), tuned(base, 2)]))
    gone = seen.family.experts[1]
    Path(gone).rename(tmp_path / "elsewhere")
    reports, stops = seen.reports, Stops()
    (measured,) = events.measure(reports.plain, stops, SETTINGS, seen.family, True)
    (spectrum,) = show_spectrum(reports, stops, SETTINGS, seen.family, seen.key, (0, "q"))
    trims = [
        list(trim(reports, stops, SETTINGS, seen.family, (seen.key, 0.5, "tensor"), asked))
        for asked in (False, True)
    ]
    for status in (measured[0], spectrum[0], *(steps[0][0] for steps in trims)):
        assert_names_the_model(status, gone)
    Path(seen.family.base).rename(tmp_path / "base gone")
    (measured,) = events.measure(reports.plain, stops, SETTINGS, seen.family, True)
    assert "The base base cannot be read." in measured[0]
    assert_names_the_model(measured[0], gone)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    base = llama(2)
    family = saved(tmp_path, base, [tuned(base, 1), tuned(base, 2)])
    damaged = Path(family.experts[0]) / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    (measured,) = events.measure(Reports(), Stops(), SETTINGS, family, True)
    assert "The expert expert0 cannot be read." in measured[0]
    assert str(damaged) in measured[0]
    refused = PermissionError(13, "Permission denied", str(damaged))
    damaged.write_bytes(damaged.read_bytes() + b"\0" * 4)
    assert explained(family, refused) == f"{damaged} could not be read: Permission denied. Try again."


def test_models_that_do_not_fit_are_told_without_a_recipe(tmp_path):
    base = llama(2)
    wide = {**tuned(base, 2), "model.norm.weight": torch.zeros(WIDTH + 1)}
    family = saved(tmp_path, base, [tuned(base, 1), wide])
    (measured,) = events.measure(Reports(), Stops(), SETTINGS, family, True)
    assert "These models cannot be read together." in measured[0]
    assert "model.norm.weight" in measured[0]
    assert "recipe" not in measured[0]


def test_experts_equal_to_the_base_show_zeros_and_gaps(tmp_path):
    base = llama(2)
    seen = look(saved(tmp_path, base, [base, base]))
    every_map(seen)
    assert {value for row in seen.map("change")["data"][0]["z"] for value in row} == {0.0}
    assert {value for row in seen.map("conflict")["data"][0]["z"] for value in row} == {None}
    assert {value for row in seen.map("coverage")["data"][0]["z"] for value in row} == {0.0}
    assert "equals the base" in events.show_advice(seen.reports, seen.family, seen.key)


@pytest.fixture
def damaged(tmp_path) -> Looked:
    """The first expert has a NaN and an infinity in block 1, q; the second a NaN in the embedding."""
    base = llama(3)
    models = [tuned(base, 1), tuned(base, 2), tuned(base, 3)]
    models[0]["model.layers.1.self_attn.q_proj.weight"][0, :2] = torch.tensor([torch.nan, torch.inf])
    models[1]["model.embed_tokens.weight"][3, 3] = torch.nan
    return look(saved(tmp_path, base, models))


def test_nan_is_a_marked_gap_and_a_sentence(damaged):
    every_map(damaged)
    drawn = damaged.map("change")["data"]
    assert len(drawn) == 2 * 3, "each small map has a second layer with the marks"
    values, marks = drawn[0], drawn[3]
    assert values["z"][1][0] is None
    assert marks["text"][1][0] == "NaN"
    assert "2 values of these models are NaN or infinite" in marks["customdata"][1][0]
    assert [cell for row in marks["text"] for cell in row if cell] == ["NaN"]
    assert not any(cell for mark in drawn[4:] for row in mark["text"] for cell in row)
    advice = events.show_advice(damaged.reports, damaged.family, damaged.key)
    assert "expert0 holds NaN or infinite values" in advice
    assert "2 values in &#x27;model.layers.1.self_attn.q_proj.weight&#x27;" in advice
    assert "1 values in &#x27;model.embed_tokens.weight&#x27;" in advice


def test_the_top_of_the_tab_says_which_tensors_of_which_model_are_damaged(damaged):
    tiles, *_ = events.show_report(damaged.reports, damaged.key, "change", False, None)
    wanted = (
        "expert0 holds NaN or infinite values in 'model.layers.1.self_attn.q_proj.weight'; expert1 holds NaN or infinite "
        "values in 'model.embed_tokens.weight'. These tensors are left out of the figures above."
    )
    assert tiles.endswith(f'<p class="problem">{html.escape(wanted)}</p>')


def test_the_story_of_a_damaged_cell_says_so_and_claims_nothing(damaged):
    shown = events.show_report(damaged.reports, damaged.key, "change", False, (1, "q"))
    story, _, histogram, agreement, pairs = shown[9:]
    assert "Values that are NaN or infinite here: expert0 2. What needs them is left out below." in story
    assert "Unchanged: expert0 –, expert1 0.00, expert2 0.00" in histogram["note"]
    assert [trace["name"] for trace in histogram["data"]] == ["expert1", "expert2"]
    assert agreement["data"][0]["text"][:2] == ["NaN", "NaN"]
    assert 0 < float(agreement["data"][0]["text"][2]) < 1
    assert "<td>–</td><td>–</td><td>–</td>" in pairs
    assert "All experts but expert0: 100 % of the weights changed by two or more" in pairs
    intact = events.show_report(damaged.reports, damaged.key, "change", False, (0, "q"))
    assert "NaN" not in str(intact[9:])


def test_two_experts_of_which_one_is_damaged_are_not_said_to_have_nothing_in_common(tmp_path):
    base = llama(1)
    models = [tuned(base, 1), tuned(base, 2)]
    models[1]["model.layers.0.self_attn.q_proj.weight"][0, 0] = torch.nan
    seen = look(saved(tmp_path, base, models))
    *_, histogram, agreement, pairs = events.show_report(seen.reports, seen.key, "change", False, (0, "q"))
    assert [trace["name"] for trace in histogram["data"]] == ["expert0"]
    assert histogram["layout"]["showlegend"] is True, "which of the two is drawn"
    assert agreement == {"empty": NOT_SHOWN}
    assert "<td>–</td><td>–</td><td>–</td>" in pairs


def test_a_map_over_all_experts_says_what_it_leaves_out(damaged):
    drawn = damaged.map("split")["data"][0]
    assert drawn["text"][1][0], "the other two experts still have a number"
    assert "2 values are NaN or infinite; that part is left out" in drawn["hovertext"][1][0]
    assert "NaN" not in drawn["hovertext"][0][0]


def test_the_inside_of_a_damaged_tensor_says_so(damaged):
    cell = (1, "q")
    inside = show_inside(damaged.reports, SETTINGS, damaged.family, damaged.key, cell)
    assert "not finite" in str(inside)
    *_, ended = show_spectrum(damaged.reports, Stops(), SETTINGS, damaged.family, damaged.key, cell)
    assert "is not finite" in ended[0]
    assert 'role="alert"' in ended[0]


def test_eight_experts_are_eight_maps_and_one_map_of_28_pairs(tmp_path):
    base = llama(2)
    seen = look(saved(tmp_path, base, [tuned(base, seed) for seed in range(8)]))
    every_map(seen)
    assert len(seen.map("change")["data"]) == 8
    assert len(seen.map("conflict")["data"]) == 1
    assert len(seen.map("conflict+trimmed")["data"]) == 2
    assert len(seen.map("block_cosine")["data"][0]["x"]) == 1 + 28
    shown = events.show_report(seen.reports, seen.key, "change", False, (0, "q"))
    assert len(shown[12]["data"][0]["z"]) == 8, "the pairs of a cell are a matrix"
    assert shown[13].count("<tr>") == 1 + 28


def test_a_vocabulary_of_256k_lists_its_tokens_by_number(tmp_path):
    base = llama(1, 256 * 1024)
    expert = {name: value.clone() for name, value in base.items()}
    expert["model.embed_tokens.weight"][200_000] += 1.0
    seen = look(saved(tmp_path, base, [expert, tuned(base, 2)]))
    inside = show_inside(seen.reports, SETTINGS, seen.family, seen.key, (None, "embedding"), True)
    tokens = inside[7]
    assert "expert0 1, expert1 262,144" in tokens
    assert "#200000" in tokens
    assert "has neither tokenizer.json nor vocab.json" in tokens
    assert len(json.dumps(inside[5])) < 500_000, "rows of a large tensor are thinned out"


def test_two_visitors_see_their_own_family(tmp_path):
    one, other = llama(1), llama(2)
    reports = TrimmedReports(Reports())
    first = look(saved(tmp_path / "a", one, [tuned(one, 1), tuned(one, 2)]), reports)
    second = look(saved(tmp_path / "b", other, [tuned(other, 3), tuned(other, 4), tuned(other, 5)]), reports)
    assert len(first.map("change")["data"][0]["y"]) == 1
    assert len(second.map("change")["data"][0]["y"]) == 2
    assert first.report.trim.density == second.report.trim.density == 0.25
    assert len(first.report.trim.tensors) < len(second.report.trim.tensors)
    wrong = list(trim(reports, Stops(), SETTINGS, first.family, (second.key, 0.5, "tensor"), True))
    assert all(isinstance(part, dict) for step in wrong for part in step), (
        "a key of another family is left alone"
    )
    hidden = show_inside(reports, SETTINGS, first.family, second.key, (1, "q"))
    assert hidden[0]["visible"] is False
