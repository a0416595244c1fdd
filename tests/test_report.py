"""Reports: what their maps add up, and that they come back from disk as they were, or say why not."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import merging
from merging import MergingError, Report
from merging.inspecting.changes import TensorStatistics, measure
from merging.inspecting.sums import total
from merging.pieces import Piece
from merging.reports.report import Sample

EXPERTS = ("one", "two", "three")
KINDS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm")


def measured(experts: int, *, shape=(4, 3), seed: int = 0) -> TensorStatistics:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    models = base + torch.randn(experts, *shape, generator=generator) * 0.01
    return measure(Piece("w", 0, base, models, torch.ones(experts)))


@pytest.fixture(scope="module", params=["family", "bf16_family"])
def report(request, tmp_path_factory) -> Report:
    """A report with a trim and a preview whose weight differs between experts."""
    family = request.getfixturevalue(request.param)
    recipe = merging.Recipe(
        merge_method="ties",
        base_model=str(family / "base"),
        models=tuple(
            {"model": str(family / name), "parameters": {"weight": weight}}
            for name, weight in zip(EXPERTS, (1.0, 0.5, 0.25), strict=True)
        ),
        parameters={"density": 0.3},
    )
    return merging.inspect(recipe)


def same(one: Report, two: Report) -> bool:
    """Equality under which NaN equals itself."""
    return repr(one) == repr(two)


def test_a_report_comes_back_as_it_was(report, tmp_path):
    assert report.trim is not None
    assert report.preview is not None
    report.save(tmp_path / "new" / "folder")
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == [
        "report.json",
        "report.safetensors",
    ]
    loaded = Report.load(tmp_path / "new" / "folder")
    assert loaded == report
    assert same(loaded, report)
    name = next(iter(report.preview.tensors))
    assert isinstance(loaded.preview.effective[name]["weight"], tuple)


def test_the_files_say_what_they_hold(report, tmp_path):
    report.save(tmp_path)
    told = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    numbers = load_file(tmp_path / "report.safetensors")
    assert told["experts"] == list(report.experts)
    assert told["tensors"]["names"] == list(report.tensors)
    assert told["mergescope"] == merging.__version__
    assert told["preview"]["method"] == "ties"
    assert "merge_method: ties" in told["preview"]["recipe"]
    change = numbers["changes/change"]
    assert (change.dtype, change.shape) == (torch.float64, (len(report.tensors), 3))
    assert change.tolist() == [found.change for found in report.tensors.values()]
    assert numbers["changes/signs.opposite"].dtype == torch.int64
    lost = [found.casts["bfloat16"].lost for found in report.preview.tensors.values()]
    assert numbers["preview/casts.bfloat16.lost"].tolist() == lost


@pytest.mark.parametrize("experts", [1, 2, 8])
def test_nan_infinity_and_any_number_of_experts_come_back(experts, tmp_path):
    base = torch.zeros(4)
    models = torch.ones(experts, 4)
    models[-1, 0] = float("nan")
    broken = measure(Piece("w", 0, base, models, torch.ones(experts)))
    tensors = {"a": measured(experts), "b": broken, "c": TensorStatistics.nothing(experts)}
    report = Report("base", tuple(f"expert {n}" for n in range(experts)), tensors, warnings=("one", "zwei ü"))
    report.save(tmp_path)
    loaded = Report.load(tmp_path)
    assert same(loaded, report)
    assert np.isnan(loaded.tensors["b"].change[-1])
    assert loaded.broken == {"b": [0] * experts + [1]}


def test_a_report_of_nothing_comes_back(tmp_path):
    report = Report("base", ("one",), {})
    report.save(tmp_path)
    assert Report.load(tmp_path) == report
    assert report.total == TensorStatistics.nothing(1)
    assert report.grid(lambda found: found.relative_change(0)).values == []


def test_methods_that_are_no_sum_and_samples_come_back(family, write_recipe, tmp_path):
    report = merging.inspect(write_recipe(family, "slerp", ("one",), parameters={"t": 0.5}))
    assert report.preview is not None
    assert not report.preview.elementwise
    tensors = report.preview.tensors
    part = {name: replace(found, changed=found.changed + 0.5) for name, found in tensors.items()}
    estimated = replace(
        report, preview=replace(report.preview, tensors=part, sample=Sample(0.1, (tensors, part)))
    )
    for number, one in enumerate((report, estimated)):
        one.save(tmp_path / str(number))
        assert Report.load(tmp_path / str(number)) == one


def test_saving_again_replaces_and_leaves_no_litter(report, tmp_path):
    report.save(tmp_path)
    changed = replace(report, warnings=("new",))
    changed.save(tmp_path)
    assert Report.load(tmp_path) == changed
    assert len(list(tmp_path.iterdir())) == 2


def test_other_peoples_folders_are_refused(report, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(MergingError, match=r"model: holds 'config.json' and no report; choose"):
        report.save(tmp_path / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.json").write_text('{"rows": []}')
    with pytest.raises(MergingError, match="is not a report of ours"):
        report.save(tmp_path / "other")
    assert (tmp_path / "other" / "report.json").read_text() == '{"rows": []}'
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["report.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(MergingError, match="file: the report cannot be written"):
        report.save(tmp_path / "file")


def edit(folder, **changes) -> None:
    content = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**content, **changes}))


def test_what_is_no_report_says_so(report, tmp_path):
    with pytest.raises(MergingError, match=r"nowhere: holds no report; report.json is missing\.$"):
        Report.load(tmp_path / "nowhere")
    (tmp_path / "report.json").write_text("[1]")
    with pytest.raises(MergingError, match="is not a report of Mergescope"):
        Report.load(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(MergingError, match=r"damaged \(report.json is not JSON\)"):
        Report.load(tmp_path)
    (tmp_path / "report.json").unlink()
    report.save(tmp_path)
    edit(tmp_path, version=2)
    with pytest.raises(MergingError, match="a newer Mergescope wrote this report; update"):
        Report.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"experts": ["one"]},
        {"experts": "one"},
        {"digest": "0" * 32},
        {"tensors": {"names": ["a", "a"], "columns": []}},
        {"tensors": {"names": ["a"], "columns": ["change"]}},
        {"unknown": 1},
        {"version": "1"},
        {"trim": {"density": 0.5}},
        {"bin_edges": [1.0]},
        {"experts": ["x"] * 20_000},
    ],
)
def test_a_document_that_does_not_fit_is_damaged(report, tmp_path, changes):
    report.save(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(MergingError, match=r"the report is damaged .* Inspect the models again"):
        Report.load(tmp_path)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("changes/change", torch.zeros(3, 3, dtype=torch.float64)),
        ("changes/change", torch.zeros(0)),
        ("changes/histogram", None),
        ("changes/signs.covered", -torch.ones(0, 2, dtype=torch.int64)),
        ("changes/nonzero", "negative"),
        ("changes/change", "negative"),
        ("changes/signs.gross", "negative"),
        ("preview/energy", "negative"),
        ("preview/casts.bfloat16.energy", "negative"),
        ("changes/elements", "float32"),
    ],
)
def test_numbers_that_do_not_fit_are_damaged(report, tmp_path, column, values):
    report.save(tmp_path)
    numbers = load_file(tmp_path / "report.safetensors")
    if values is None:
        del numbers[column]
    elif isinstance(values, str):
        numbers[column] = -numbers[column] - 1 if values == "negative" else numbers[column].float()
    else:
        numbers[column] = values
    save_file(numbers, tmp_path / "report.safetensors")
    content = (tmp_path / "report.safetensors").read_bytes()
    edit(tmp_path, digest=hashlib.blake2b(content, digest_size=16).hexdigest())
    with pytest.raises(MergingError, match=rf"the report is damaged \('{column}' "):
        Report.load(tmp_path)


def test_numbers_that_cannot_be_read_are_damaged(report, tmp_path):
    report.save(tmp_path)
    file = tmp_path / "report.safetensors"
    os.truncate(file, file.stat().st_size - 8)
    with pytest.raises(
        MergingError, match=r"damaged \(report.safetensors is not the file that report.json desc"
    ):
        Report.load(tmp_path)
    file.write_bytes(b"no numbers")
    edit(tmp_path, digest=hashlib.blake2b(b"no numbers", digest_size=16).hexdigest())
    with pytest.raises(MergingError, match=r"damaged \(report.safetensors is no safetensors file\)"):
        Report.load(tmp_path)
    file.unlink()
    with pytest.raises(
        MergingError, match=r"damaged \(report.safetensors is missing\)\. Inspect the models again"
    ):
        Report.load(tmp_path)
    file.mkdir()
    with pytest.raises(MergingError, match=r"damaged \(report.safetensors cannot be read: Is a directory\)"):
        Report.load(tmp_path)


def test_a_long_list_of_experts_takes_no_memory(report, tmp_path):
    report.save(tmp_path)
    edit(tmp_path, experts=["x"] * 20_000)
    tracemalloc.start()
    with pytest.raises(MergingError, match="which does not fit"):
        Report.load(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_cells_add_up_their_tensors():
    names = [f"model.layers.0.block_sparse_moe.experts.{n}.w1.weight" for n in range(5)]
    tensors = {name: measured(3, seed=n) for n, name in enumerate(names)}
    report = Report("base", EXPERTS, tensors)
    (cell,) = report.cells(everything=True).values()
    assert cell == total(tensors.values()) == report.total
    assert cell.change == pytest.approx(np.sum([found.change for found in tensors.values()], axis=0))
    assert cell.largest == np.max([found.largest for found in tensors.values()], axis=0).tolist()
    assert cell.histogram == np.sum([found.histogram for found in tensors.values()], axis=0).tolist()
    assert cell.signs.opposite == np.sum([f.signs.opposite for f in tensors.values()], axis=0).tolist()
    ((block, kind),) = report.cells(everything=True)
    assert report.names_at(block, kind) == names
    assert report.names_at(1, kind) == []


def test_broken_tensors_are_left_out_of_the_sums_unless_all_are():
    models = torch.full((1, 4), float("nan"))
    broken = measure(Piece("w", 0, torch.ones(4), models, torch.ones(1)))
    some = Report("base", ("one",), {"a": measured(1), "b": broken})
    assert some.intact is some.total
    assert some.total == measured(1)
    none = Report("base", ("one",), {"b": broken})
    assert none.intact is None
    assert np.isnan(none.total.change[0])
    assert none.total.broken == [0, 4]
    assert Report("base", ("one",), {}).intact is None


def test_another_trim_is_not_taken_for_the_first(report):
    cells = report.by_cell(report.trim.tensors)
    other = replace(
        report.trim, tensors={n: replace(t, kept=[7] * 3) for n, t in report.trim.tensors.items()}
    )
    changed = replace(report, trim=other)
    assert all(cell.kept == [7] * 3 for cell in changed.by_cell(other.tensors).values())
    assert changed.by_cell(report.trim.tensors) == cells
    assert changed.total is report.total
    assert changed.cells() is report.cells()
    assert replace(report, tensors=dict(list(report.tensors.items())[:1])).total != report.total


def test_two_hundred_blocks_and_eight_experts_are_added_up_once():
    some = [measured(8, seed=n) for n in range(16)]
    names = [f"model.layers.{block}.{kind}.weight" for block in range(200) for kind in KINDS]
    tensors = {name: some[n % 16] for n, name in enumerate(names)}
    report = Report("base", tuple("abcdefgh"), tensors)
    whole, cells = report.total, report.cells(everything=True)
    grids = [report.grid(lambda found, p=p: found.signs.opposite_share(p)) for p in range(28)]
    assert report.total is whole
    assert report.cells(everything=True) is cells
    assert len(cells) == 200 * 5
    assert whole.elements == 200 * 5 * 12
    assert whole.histogram[3] == np.sum([found.histogram[3] for found in tensors.values()], axis=0).tolist()
    assert len(grids[27].values) == 200
