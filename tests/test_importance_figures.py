"""Maps and charts of importance, beside the artefact's own numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import merging
from components.family import Family
from components.figures.importance import curves_chart, head_chart, part_scores, row_chart
from components.figures.importance_maps import (
    MAPS,
    CellScores,
    cell_scores,
    contested,
    importance_chart,
    importance_panels,
    owner_table,
    short_signs,
)
from components.importance.views import agreement_html, recommendation
from merging.checkpoint import Checkpoint
from merging.importances.agreement import CHANGE, SIZE, Agreement, Correlation, ExpertAgreement, interval
from merging.importances.artefact import Description, ExpertFacts, Importance, Parent, head_settings
from merging.importances.attribution import carried
from merging.partitions import make_partitions

NAMES = ("one", "two", "three")


def artefact(family, partition: str) -> Importance:
    """Importance with known numbers: expert e and partition P have (e + 1)·(P + 1)/1000, alternating in sign."""
    base = Checkpoint.open(family / "base")
    shapes, config = carried(base), head_settings(base.config)
    count = len(make_partitions(shapes, config, partition))
    numbers = torch.arange(1, count + 1, dtype=torch.float64) / 1000
    numbers[1::2] *= -1
    description = Description(
        how="gradient",
        at="base",
        partition=partition,
        samples=4,
        base=Parent(name="base", fingerprint=base.fingerprint),
        experts=tuple(
            ExpertFacts(name=n, fingerprint=n, data="d", base_loss=2.0, expert_loss=1.0) for n in NAMES
        ),
        shapes=shapes,
        config=config,
    )
    signed = torch.stack([numbers * (expert + 1) for expert in range(3)])
    return Importance(description, signed, signed.square())


@pytest.fixture(scope="module")
def report(family):
    return merging.inspect(Family.demo(family, NAMES).recipe())


@pytest.fixture(scope="module")
def scores(family, report):
    return cell_scores(report, artefact(family, "module"), (2, 0, 1))


def number_of(known: Importance, key: str) -> int:
    return next(number for number, part in enumerate(known.partitions) if part.key == key)


def test_every_cell_has_its_module_s_score_in_the_family_s_order(family, report, scores):
    known = artefact(family, "module")
    number = number_of(known, "layers.1/gate")
    expected = [float(known.signed[place, number]) for place in (2, 0, 1)]
    assert list(scores.signed[1, "gate"]) == expected
    assert scores.sizes[1, "gate"] == 48 * 32
    panels = importance_panels(report, scores, "importance")
    assert [panel.name for panel in panels] == list(NAMES)
    column = panels[0].grid.columns.index("gate")
    assert [panel.grid.values[1][column] for panel in panels] == pytest.approx(
        [1e3 * abs(v) for v in expected]
    )
    per_weight = importance_panels(report, scores, "importance_per_weight")
    assert per_weight[1].grid.values[1][column] == pytest.approx(1e6 * abs(expected[1]) / (48 * 32))


def test_totals_are_over_attention_and_mlp_only(family, scores):
    known = artefact(family, "module")
    inside = ~known.partitions.outside
    assert int(inside.sum()) == 3 * 7
    assert scores.totals[0] == pytest.approx(float(known.values[2, inside].sum()))


def test_importance_times_conflict_counts_only_pairs_with_the_expert(report, scores):
    cell = report.cells()[2, "v"]
    opposite, shared = cell.signs.opposite, cell.signs.shared
    assert contested(cell, report.pairs, 1) == (opposite[0] + opposite[2]) / (shared[0] + shared[2])
    panel = importance_panels(report, scores, "conflict_importance")[1]
    value = panel.grid.values[2][panel.grid.columns.index("v")]
    assert value == pytest.approx(
        1e3 * abs(scores.signed[2, "v"][1]) * (opposite[0] + opposite[2]) / (shared[0] + shared[2])
    )


def test_one_expert_has_importance_but_no_conflict(family):
    alone = merging.inspect(Family.demo(family, ("one",)).recipe())
    scores = cell_scores(alone, artefact(family, "module"), (0,))
    assert importance_chart(alone, scores, "conflict_importance") is None
    assert len(importance_chart(alone, scores, "importance").figure.data) == 1


def test_the_owner_has_the_largest_share_of_its_own_total():
    scores = CellScores({(0, "q"): (0.1, -0.9), (0, "k"): (0.2, 0.2)}, {(0, "q"): 1, (0, "k"): 1}, (0.4, 1.8))
    assert scores.share((0, "q"), 1) == pytest.approx(0.5)
    assert scores.owner((0, "q")) == (1, pytest.approx(0.5 / 0.75))
    assert scores.owner((0, "k")) == (0, pytest.approx(0.5 / (0.5 + 0.2 / 1.8)))
    assert scores.owner((0, "gone")) is None


def test_a_tie_or_an_unneeded_cell_has_no_owner():
    scores = CellScores({(0, "q"): (0.2, 0.2), (0, "k"): (0.0, 0.0)}, {}, (1.0, 1.0))
    assert scores.owner((0, "q")) is None
    assert scores.owner((0, "k")) is None


def test_the_owner_map_is_painted_by_expert_and_written_as_a_table(report):
    cells = dict.fromkeys(report.cells(), (0.3, 0.2, 0.1))
    cells[1, "o"] = (0.1, 0.2, 0.3)
    cells[2, "k"] = (0.2, 0.2, 0.2)
    scores = CellScores(cells, dict.fromkeys(cells, 1), (1.0, 1.0, 1.0))
    trace = importance_chart(report, scores, "owner").figure.data[0]
    columns = list(trace.x)
    assert trace.z[1][columns.index("o")] == 2
    assert trace.z[0][columns.index("q")] == 0
    assert trace.z[2][columns.index("k")] is None, "a tie is a gap"
    assert trace.text[1][columns.index("o")] == "#3 50%"
    rows = owner_table(report, scores)
    assert [1, "o", "three", 50.0] in rows
    assert not any(row[:2] == [2, "k"] for row in rows)


def test_signs_of_owners_tell_them_apart():
    assert short_signs(["math", "code", "words"]) == ["M", "C", "W"]
    assert short_signs(["math", "music"]) == ["#1", "#2"]


@pytest.mark.parametrize("key", MAPS)
def test_maps_of_importance_keep_gaps_and_one_scale(report, scores, key):
    chart = importance_chart(report, scores, key, everything=True)
    for trace in json.loads(chart.figure.to_json())["data"]:
        assert trace["z"][0][trace["x"].index("embedding")] is None
        assert trace["coloraxis"] == "coloraxis"
    assert chart.title == MAPS[key].title


def test_heads_and_rows_of_a_cell(family, report):
    places = (2, 0, 1)
    heads = artefact(family, "head")
    labels, signed = part_scores(report, heads, places, (1, "q"))
    assert labels == ["head 0", "head 1", "head 2", "head 3"]
    first = number_of(heads, "layers.1/q/head 0")
    assert signed[0] == heads.signed[2, first : first + 4].tolist()
    assert part_scores(report, heads, places, (1, "k"))[0] == ["head 0", "head 1"]
    assert len(part_scores(report, heads, places, (1, "o"))[0]) == 4
    assert part_scores(report, heads, places, (1, "gate")) == ([], [])
    labels, signed = part_scores(report, artefact(family, "row"), places, (1, "gate"))
    assert len(labels) == 48
    bars = head_chart(["head 0", "head 1"], [[0.001, -0.002]], ["one"], (1, "k")).figure.data[0]
    assert list(bars.y) == [1.0, 2.0]
    assert list(bars.customdata) == ["the change raises the loss", "the change lowers the loss"]
    assert bars.marker.pattern.bgcolor == bars.marker.color, "a hatched bar is filled"
    assert head_chart([], [], ["one"], (1, "gate")) is None
    assert row_chart([], [], ["one"], (1, "gate")) is None


def test_many_rows_are_summed_in_runs():
    values = [0.001] * 1025
    chart = row_chart([f"row {n}" for n in range(1025)], [values], ["one"], (0, "up"))
    line = chart.figure.data[0]
    assert list(line.x[:2]) == [0, 3]
    assert len(line.x) == 342
    assert line.y[0] == pytest.approx(3.0)
    assert sum(line.y) == pytest.approx(1025.0)
    assert "sums 3 rows" in chart.note


def agreement(score: float | None, change: float) -> Agreement:
    rows = (
        Correlation("gradient at base", score, 0.1, 0.9),
        Correlation("shuffled answers at base", 0.0, None, None),
        Correlation("shuffled answers at expert", 0.0, None, None),
        Correlation(CHANGE, change, -0.1, 0.3),
        Correlation(SIZE, None, None, None),
    )
    better = score is not None and score > change
    curves = {"gradient at base": (1.0, 3.0), CHANGE: (1.0, 2.0), "random": (1.0, 1.5)}
    expert = ExpertAgreement("<one>", ("a", "b"), (), {}, rows, (0, 1), curves, 0.9, better)
    return Agreement("gradient at base", (expert,), 16, 200, 0, better)


def test_apl_is_recommended_only_where_it_beats_the_size_of_the_change():
    assert recommendation(agreement(0.6, 0.2)).startswith("APL is recommended here")
    assert recommendation(agreement(0.2, 0.6)).startswith("APL is not recommended here")
    assert "not recommended" in recommendation(None)
    assert "exact intervention itself" in recommendation(None, "exact")
    doubtful = recommendation(agreement(-0.1, -0.2))
    assert "shuffled answers at base, blind to the task, did at least as well" in doubtful


def test_the_advice_names_a_better_gradient_and_what_may_be_chance():
    used = agreement(0.4, 0.1).experts[0]
    doubtful = replace(
        used,
        expert="two",
        correlations=(replace(used.correlations[0], low=-0.05), *used.correlations[1:]),
    )
    experts = tuple(
        replace(e, correlations=(*e.correlations, Correlation("gradient at expert", 0.9, 0.8, 1.0)))
        for e in (used, doubtful)
    )
    told = recommendation(Agreement("gradient at base", experts, 16, 200, 0, True))
    assert "For two it could be chance" in told
    assert "Gradient at expert agrees better here (0.90 against 0.40)" in told
    assert "agrees better" not in recommendation(Agreement("gradient at expert", experts, 16, 200, 0, True))
    assert "chance" not in recommendation(agreement(0.4, 0.1))


def test_the_agreement_table_shows_intervals_and_null_predictors():
    text = agreement_html(agreement(0.6, 0.2))
    assert "0.60 (0.10 to 0.90)" in text
    assert "‖δ_P‖² (null)" in text
    assert "n_P, number of weights (null)" in text
    assert "shuffled answers at base (null)" in text
    assert "shuffled answers at expert" not in text, "only those of the score's own kind"
    assert "Reconstructed" in text
    assert "<one>" not in text
    assert interval(Correlation("x", None, None, None)) == "–"
    assert interval(Correlation("x", 0.5, None, None)) == "0.50"


def test_removal_curves_hold_the_measured_losses():
    figure = curves_chart(agreement(0.6, 0.2)).figure
    assert [list(trace.y) for trace in figure.data] == [[1.0, 3.0], [1.0, 2.0], [1.0, 1.5]]
    assert list(figure.data[0].x) == ["0", "1"]
    assert "<one>" not in figure.to_json()
