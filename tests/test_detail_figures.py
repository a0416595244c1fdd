"""Figures and tables of one tensor, beside the numbers they are made of."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import merging
from components.family import Family
from components.figures.chart import SERIES
from components.figures.detail import heads_chart, ranks_sentence, rows_chart, spectrum_chart
from components.figures.detail_tables import head_rows, row_rows, spectrum_rows, token_rows, written
from components.figures.importance import MOST_POINTS
from components.tables import html_table
from merging.checkpoint import StateDict
from merging.inspecting.detail import tensor_detail
from merging.inspecting.spectra import Spectrum, spectrum
from merging.inspecting.tokens import token_changes
from merging.plan import plan_sources
from merging.recipe import ModelEntry, Recipe
from merging.tokenizing.vocabulary import Vocabulary

NAMES = ("one", "two", "three")
Q, UP = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"


def drawn(chart):
    """The figure as the page gets it; NaN would be no JSON."""
    return json.loads(chart.figure.to_json(), parse_constant=lambda word: pytest.fail(word))


def detail_of(base, models, name=UP, config=None):
    sources = [StateDict({name: model}, f"e{number}") for number, model in enumerate(models)]
    entries = [ModelEntry(model=source.label) for source in sources]
    recipe = Recipe(merge_method="task_arithmetic", base_model="base", models=tuple(entries), profile="paper")
    plan = plan_sources(recipe, StateDict({name: base}, "base"), list(zip(entries, sources, strict=True)))
    return plan, tensor_detail(plan, name, config or {})


@pytest.fixture(scope="module")
def plan(family):
    return merging.check(Family.demo(family, NAMES).recipe())


@pytest.fixture(scope="module")
def detail(plan):
    return tensor_detail(plan, Q, plan.reference.config)


def close(values, wanted):
    return values == pytest.approx(wanted.tolist(), rel=1e-4)


def test_heads_are_bars_of_change_over_marks_of_conflict(detail):
    chart = heads_chart(detail, NAMES, "block 1, q")
    figure = drawn(chart)
    bars, marks = figure["data"][:3], figure["data"][3:]
    for expert, trace in enumerate(bars):
        assert (trace["type"], trace["name"]) == ("bar", NAMES[expert])
        assert trace["x"] == ["0", "1", "2", "3"]
        assert close(trace["y"], detail.heads.relative_change()[expert])
    assert len({trace["marker"]["pattern"]["shape"] for trace in bars}) == 3
    assert [(trace["name"], trace["yaxis"]) for trace in marks] == [
        ("opposite signs", "y2"),
        ("cancelled change", "y2"),
    ]
    assert close(marks[0]["y"], detail.heads.opposite_share())
    assert close(marks[1]["y"], detail.heads.mass_conflict())
    assert figure["layout"]["yaxis2"]["range"] == [0, 1]
    [chance] = figure["layout"]["shapes"]
    assert (chance["y0"], chance["yref"]) == (0.5, "y2")
    best = int(detail.heads.relative_change()[1].argmax())
    assert f"two changed head {best} most ({float(detail.heads.relative_change()[1, best]):.3g})" in chart.alt


def test_a_tensor_without_heads_has_no_chart_of_them(plan):
    detail = tensor_detail(plan, UP, plan.reference.config)
    assert heads_chart(detail, NAMES, "here") is None
    assert head_rows(detail, NAMES)[1] == []


def test_a_few_rows_are_all_drawn(detail):
    chart = rows_chart(detail, NAMES, "block 1, q")
    figure = drawn(chart)
    assert figure["data"][0]["x"] == list(range(32))
    for expert in range(3):
        assert close(figure["data"][expert]["y"], detail.rows.relative_change()[expert])
        assert figure["data"][expert]["line"]["color"] == SERIES[expert]
    assert close(figure["data"][3]["y"], detail.rows.opposite_share())
    assert "Each point" not in chart.note
    assert "row of the tensor" in figure["layout"]["xaxis"]["title"]["text"]


def test_many_rows_are_drawn_by_the_largest_of_a_run():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(16_385, 4, generator=generator)
    models = [base + 0.1 * torch.randn(base.shape, generator=generator) for _ in range(2)]
    models[0][16_384] += 9
    _, detail = detail_of(base, models)
    chart = rows_chart(detail, ("a", "b"), "here")
    trace = drawn(chart)["data"][0]
    run = math.ceil(16_385 / MOST_POINTS)
    assert "Each point is the largest of 33 rows." in chart.note
    relative = detail.rows.relative_change()[0].numpy()
    assert trace["x"] == list(range(0, 16_385, run))
    assert len(trace["x"]) <= MOST_POINTS
    assert trace["y"] == pytest.approx([relative[s : s + run].max() for s in trace["x"]], rel=1e-4)
    assert "a changed row 16384 most" in chart.alt


def test_columns_are_called_columns():
    name = "transformer.h.0.mlp.c_fc.weight"
    base = torch.ones(4, 12)
    _, detail = detail_of(base, [base + 1], name, {"model_type": "gpt2"})
    chart = rows_chart(detail, ("a",), "here")
    assert chart.title == "Change and conflict of each column"
    assert "inputs × outputs" in chart.note
    assert len(drawn(chart)["data"][0]["x"]) == 12
    assert row_rows(detail, ("a",))[0][0] == "column"


def test_one_expert_has_no_lower_panel():
    base = torch.ones(6, 4)
    _, detail = detail_of(base, [base + 1])
    chart = rows_chart(detail, ("a",), "here")
    figure = drawn(chart)
    assert len(figure["data"]) == 1
    assert "yaxis2" not in figure["layout"]
    assert "No weight was changed by two experts." in chart.note


def test_damaged_rows_are_gaps_and_are_told():
    base = torch.ones(6, 4)
    one, two = base + 1, base - 1
    one[2, 1] = float("nan")
    _, detail = detail_of(base, [one, two])
    chart = rows_chart(detail, ("a", "b"), "here")
    first, second, signs, _ = (trace["y"] for trace in drawn(chart)["data"])
    assert first == [1, 1, None, 1, 1, 1]
    assert second == [1] * 6
    assert signs == [1, 1, None, 1, 1, 1]
    assert "1 hold values that are not finite" in chart.note
    headers, rows = row_rows(detail, ("a", "b"))
    assert rows[2][headers.index("a relative")] == "not finite"
    assert rows[2][headers.index("b relative")] == 1.0
    assert rows[2][headers.index("opposite signs")] == "not finite"
    assert rows[1][headers.index("opposite signs")] == 1.0


def test_a_run_with_a_damaged_row_shows_the_others(monkeypatch):
    monkeypatch.setattr("components.figures.detail.MOST_POINTS", 2)
    base = torch.ones(4, 2)
    one = base * torch.tensor([[2.0], [3.0], [1.0], [1.0]])
    one[0], one[2:] = float("nan"), float("inf")
    _, detail = detail_of(base, [one])
    assert drawn(rows_chart(detail, ("a",), "here"))["data"][0]["y"] == [2, None]


def test_a_tensor_without_elements_has_no_rows_to_draw():
    _, detail = detail_of(torch.ones(0, 4), [torch.ones(0, 4)])
    assert rows_chart(detail, ("a",), "here") is None
    _, detail = detail_of(torch.ones(4, 0), [torch.ones(4, 0)])
    assert rows_chart(detail, ("a",), "here") is None


def test_a_spectrum_is_a_falling_line_with_its_ranks_beside_it(plan):
    spectra = {expert: spectrum(plan, Q, expert) for expert in (0, 2)}
    chart = spectrum_chart(spectra, NAMES, "block 1, q")
    figure = drawn(chart)
    assert [trace["name"] for trace in figure["data"]] == ["one", "three"]
    assert figure["data"][1]["line"]["color"] == SERIES[2]
    assert figure["data"][0]["x"] == list(range(1, 33))
    assert figure["data"][0]["y"] == spectra[0].values.tolist()
    assert figure["layout"]["yaxis"]["type"] == "log"
    found = spectra[2]
    assert (
        f"three: stable rank {found.stable_rank:.3g}, effective rank {found.effective_rank:.3g}, "
        f"0.9 of the energy in {found.rank_of(0.9)} of 32 directions." in chart.note
    )
    headers, rows = spectrum_rows(spectra, NAMES)
    assert rows[1][0] == "three"
    assert rows[1][headers.index("stable rank")] == found.stable_rank
    assert rows[1][headers.index("‖δ‖")] == pytest.approx(float(found.values.square().sum() ** 0.5))


def test_a_long_spectrum_is_thinned_and_zeros_are_left_out():
    values = torch.cat(
        [torch.logspace(0, -3, 5000, dtype=torch.float64), torch.zeros(100, dtype=torch.float64)]
    )
    found = Spectrum(values, float(values.square().sum()), (6000, 5100))
    trace = drawn(spectrum_chart({0: found}, ("a",), "here"))["data"][0]
    assert len(trace["x"]) == MOST_POINTS
    assert trace["x"][:64] == list(range(1, 65))
    assert trace["x"][-1] == 5000
    np.testing.assert_allclose(trace["y"], values[np.array(trace["x"]) - 1].numpy())


def test_words_for_spectra_that_are_no_numbers():
    nothing = Spectrum(torch.zeros(4, dtype=torch.float64), 0.0, (4, 4))
    assert spectrum_chart({0: nothing}, ("a",), "here") is None
    assert ranks_sentence(nothing, "a") == "a: no change."
    part = Spectrum(torch.tensor([2.0, 1.0], dtype=torch.float64), 10.0, (9000, 9001), complete=False)
    said = ranks_sentence(part, "a")
    assert "stable rank 2.5, 0.9 of the energy in more than 2 of 9,000 directions." in said
    assert "only the 2 largest values" in said
    assert written(spectrum_rows({0: part}, ("a",))[1]) == [["a", "3.16", "2.00", "2.50", "–", "–", "9000"]]


def test_tables_of_heads_and_rows_hold_the_numbers(detail):
    headers, rows = head_rows(detail, NAMES)
    assert headers[:3] == ["head", "one ‖δ‖", "one relative"]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert rows[2][headers.index("two ‖δ‖")] == pytest.approx(float(detail.heads.norm()[1, 2]), rel=1e-5)
    assert rows[3][headers.index("cancelled change")] == pytest.approx(
        float(detail.heads.mass_conflict()[3]), rel=1e-5
    )
    assert rows[1][headers.index("one · three opposite signs")] == pytest.approx(
        float(detail.heads.opposite_share(1)[1]), rel=1e-5
    )
    headers, rows = row_rows(detail, NAMES)
    assert len(rows) == 32
    assert rows[31][headers.index("three relative")] == pytest.approx(
        float(detail.rows.relative_change()[2, 31]), rel=1e-5
    )


def test_a_token_s_text_cannot_become_markup():
    name = "model.embed_tokens.weight"
    base = torch.ones(3, 4)
    plan, _ = detail_of(base, [base + torch.tensor([[0.0], [2.0], [1.0]])], name)
    texts = {0: "a", 1: "<img src=x onerror=alert(1)>", 2: "<end>"}
    found = token_changes(plan, name, Vocabulary(texts, special=frozenset({2})), 5)
    headers, rows = token_rows(found.changed[0], ("a",))
    assert headers == ["token", "id", "kind", "a ‖δ‖", "a relative"]
    assert rows == [["<img␣src=x␣onerror=alert(1)>", 1, None, 4.0, 2.0], ["<end>", 2, "special", 2.0, 1.0]]
    table = html_table("Tokens", headers, written(rows), wide=True)
    assert "<img" not in table
    assert "&lt;img␣src=x␣onerror=alert(1)&gt;" in table
    assert '<th scope="row">&lt;end&gt;</th><td>2</td><td>special</td><td>2.00</td><td>1.00</td>' in table


def test_a_model_s_name_cannot_become_markup(detail):
    spectra = {0: Spectrum(torch.tensor([1.0], dtype=torch.float64), 1.0, (1, 1))}
    hostile = ("<b>%{x}</b>", "two", "three")
    for chart in (
        heads_chart(detail, hostile, "here"),
        rows_chart(detail, hostile, "here"),
        spectrum_chart(spectra, hostile, "here"),
    ):
        trace = drawn(chart)["data"][0]
        assert trace["name"] == "&lt;b&gt;%&#123;x}&lt;/b&gt;"
        assert "<b>%{x}</b>" not in trace["hovertemplate"].replace("<b>%{y:.3r}</b>", "")


def test_eight_experts_are_told_apart():
    base = torch.ones(8, 8)
    generator = torch.Generator().manual_seed(0)
    models = [base + torch.randn(8, 8, generator=generator) for _ in range(8)]
    config = {"num_attention_heads": 4, "hidden_size": 8}
    _, detail = detail_of(base, models, Q, config)
    names = [f"e{number}" for number in range(8)]
    bars = drawn(heads_chart(detail, names, "here"))["data"][:8]
    looks = [(trace["marker"]["color"], trace["marker"]["pattern"]["shape"]) for trace in bars]
    assert len(set(looks)) == 8
    headers, _ = head_rows(detail, names)
    assert "opposite signs" in headers
    assert not any(" · " in header for header in headers)  # 28 pairs are too many columns
