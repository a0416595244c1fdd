"""The command line as its users meet it: an exit code and one message; a process where loading, signals or bytes matter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import merging
from merging import METHODS, Report
from merging.cli import app
from merging.commands.terminal import INTERRUPTED, bar, follow
from merging.events import Progress


def run(*arguments):
    command = [sys.executable, "-m", "merging", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_methods_are_listed(command_line):
    done = command_line("methods", "--json")
    assert done.returncode == 0
    assert list(json.loads(done.stdout)) == list(METHODS)
    assert "lambda" in json.loads(done.stdout)["ties"]["properties"]


def test_merge_and_merge_again_give_the_same_bytes(family, write_recipe, tmp_path, command_line):
    """Here, and in a process of its own."""
    recipe = write_recipe(family, "ties")
    for done in (
        command_line("merge", recipe, tmp_path / "a"),
        run("merge", recipe, tmp_path / "b", "--no-health"),
    ):
        assert done.returncode == 0, done.stderr
        assert "written in" in done.stdout
    files = sorted(f.name for f in (tmp_path / "a").iterdir())
    assert files == sorted(f.name for f in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_check_names_three_mistakes_and_exits_1(family, write_recipe, command_line):
    recipe = write_recipe(family, "ties", ["one", "missing"], merge_metod="x", parameters={"densty": 1})
    done = command_line("check", recipe)
    assert done.returncode == 1
    for part in ("merge_metod", "Did you mean 'density'", "missing"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    machine = command_line("check", recipe, "--json")
    assert machine.returncode == 1
    assert len(json.loads(machine.stdout)["problems"]) == 3


def test_check_of_a_good_recipe(family, write_recipe, command_line):
    done = command_line("check", write_recipe(family, "ties"))
    assert done.returncode == 0
    assert "can run" in done.stdout


def test_wrong_usage_exits_2(tmp_path, command_line):
    assert command_line("merge").returncode == 2
    assert command_line("nonsense").returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [["check", "none.yaml"], ["merge", "none.yaml", "out"], ["inspect", "none.yaml", "--out", "x"]],
)
def test_a_missing_recipe_is_one_sentence(arguments, tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    done = command_line(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: none.yaml: cannot be read")
    assert len(done.stderr.splitlines()) == 1


def test_inspect_writes_a_report(family, write_recipe, tmp_path, command_line):
    out = tmp_path / "report"
    done = command_line("inspect", write_recipe(family, "ties", parameters={"density": 0.5}), "--out", out)
    assert done.returncode == 0, done.stderr
    found = Report.load(out)
    assert found.experts == (str(family / "one"), str(family / "two"))
    assert found.preview.method == "ties"
    assert (found.trim.density, found.trim.scope) == (0.5, "tensor")
    assert len((out / "tensors.csv").read_text().splitlines()) == 31
    assert (out / "report.html").read_text().count("<figure") > 15
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "report"]


def test_inspect_prints_a_table_with_chance_kinship_and_advice(
    family, write_recipe, monkeypatch, command_line
):
    monkeypatch.setenv("COLUMNS", "160")
    done = command_line("inspect", write_recipe(family, "ties", ["one", "two", "three"]))
    assert done.returncode == 0, done.stderr
    report = merging.inspect(write_recipe(family, "ties", ["one", "two", "three"]))
    lines = done.stdout.splitlines()
    whole = next(line for line in lines if line.startswith("all")).split()
    assert float(whole[1]) == pytest.approx(report.total.relative_change(0), rel=0.01)
    conflict = next(line for line in lines if line.startswith("conflict:"))
    signs = report.total.signs
    assert f"opposite signs {100 * signs.opposite_share():.1f} % (chance 50.0 %)" in conflict
    assert f"(chance {100 * signs.mass_chance():.1f} %)" in conflict
    assert any(line.startswith("kinship: Pearson") for line in lines)
    assert any(line.startswith("ties makes of three: kept") for line in lines)
    assert any("nearly orthogonal" in line for line in lines)


def test_inspect_for_machines(family, write_recipe, command_line):
    done = command_line(
        "inspect", write_recipe(family, "ties"), "--json", "--density", "0.2", "--scope", "layer"
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    report = merging.inspect(write_recipe(family, "ties"))
    assert found["relative_change"] == pytest.approx([report.total.relative_change(t) for t in (0, 1)])
    assert found["trim"] == {"density": 0.2, "scope": "layer"}
    assert [found["base"], *found["experts"]] == [str(family / name) for name in ("base", "one", "two")]
    assert found["kinship"]["cosine"] == pytest.approx([report.total.cosine(0)])
    assert sum(found["fates"][0].values()) == pytest.approx(1, abs=1e-6)


def test_a_report_replaces_only_a_report(family, write_recipe, tmp_path, command_line):
    recipe, out = write_recipe(family, "ties"), tmp_path / "report"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    done = command_line("inspect", recipe, "--out", out)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "holds 'thesis.tex', which is no part of a report" in done.stderr
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    (out / "thesis.tex").unlink()
    assert command_line("inspect", recipe, "--out", out).returncode == 0
    (out / "report.html").write_text("old")
    assert command_line("inspect", recipe, "--out", out).returncode == 0
    assert "Mergescope" in (out / "report.html").read_text()
    assert "is a file" in command_line("inspect", recipe, "--out", recipe).stderr


def test_a_report_stays_out_of_the_models(family, write_recipe, tmp_path, command_line):
    recipe = write_recipe(family, "ties")
    done = command_line("inspect", recipe, "--out", family / "one" / "report")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert f"would overwrite or enclose the input {family / 'one'}; choose another" in done.stderr
    assert not (family / "one" / "report").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--density", "0"], "density: 0 is not above 0"),
        (["--scope", "galaxy"], "scope: 'galaxy' is unknown; write one of tensor, layer, model"),
        (["--sample", "2"], "sample"),
    ],
)
def test_wrong_options_of_inspect_are_one_sentence(family, write_recipe, options, said, command_line):
    done = command_line("inspect", write_recipe(family, "ties"), *options)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert said in done.stderr


def test_a_recipe_without_a_base_has_no_change_to_look_at(family, write_recipe, command_line):
    done = command_line("inspect", write_recipe(family, "linear", base_model=None))
    assert done.returncode == 1
    assert "base_model" in done.stderr


def test_events_for_machines(family, write_recipe, tmp_path, command_line):
    done = command_line("merge", write_recipe(family, "ties"), tmp_path / "out", "--json")
    told = json.loads(done.stdout)
    assert told["path"] == str(tmp_path / "out")
    assert told["health"]["checks"][0]["name"] == "weights"


@pytest.fixture(scope="module")
def slow_family(tmp_path_factory):
    """Large enough that a merge takes seconds, so that it can be killed in the middle."""
    folder, generator = tmp_path_factory.mktemp("slow"), torch.Generator().manual_seed(0)
    for name in ("base", "one", "two"):
        (folder / name).mkdir()
        tensors = {f"layers.{i}.w": torch.randn(1500, 1000, generator=generator) for i in range(16)}
        save_file(tensors, folder / name / "model.safetensors")
    return folder


@pytest.mark.parametrize("point", ["loading", "compiling", "merging"])
def test_an_interrupt_leaves_nothing(slow_family, write_recipe, tmp_path, point):
    """Ctrl-C while modules are loaded, while the first piece waits for its loops, and in the middle."""
    recipe = write_recipe(slow_family, "ties", scope="model", profile="paper", parameters={"density": 0.5})
    folder = tmp_path / "results"
    folder.mkdir()
    command = [sys.executable, "-m", "merging", "merge", str(recipe), str(folder / "out")]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "loops")} if point == "compiling" else None
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.time() + 60
    if point == "loading":
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text() and time.time() < deadline:
            time.sleep(0.01)
    else:
        while not (folder / ".out.partial").exists() and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    if point == "loading":
        assert (process.returncode, said) == (-signal.SIGINT, "")
    else:
        assert (process.returncode, said) == (130, "cancelled; nothing was written\n")
    assert list(folder.iterdir()) == []


def test_killed_in_the_middle_leaves_no_result(slow_family, write_recipe, tmp_path, command_line):
    recipe = write_recipe(slow_family, "ties", parameters={"density": 0.5})
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-m", "merging", "merge", str(recipe), str(out)])
    partial = tmp_path / ".out.partial"
    deadline = time.time() + 60
    while not partial.exists() and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert partial.exists()
    assert not out.exists()
    done = command_line("merge", recipe, out, "--no-health")
    assert done.returncode == 0, done.stderr
    assert len(load_file(out / "model.safetensors")) == 16
    assert not partial.exists()


def test_models_are_scored_in_one_table_and_looked_at(family, tmp_path):
    suite, text = tmp_path / "suite.jsonl", tmp_path / "text.txt"
    suite.write_text('{"prompt": "abc", "answer": "d"}\n' * 3)
    text.write_text("abc def " * 80)
    models = [family / "base", family / "one"]
    asked = ["evaluate", *models, "--suite", suite, "--text", text, "--json"]
    done = CliRunner().invoke(app, [str(one) for one in asked], catch_exceptions=False)
    base, base_text, one, _, both = map(json.loads, done.stdout.splitlines())
    assert (base["model"], one["model"], base["n"], base["plain"]) == ("base", "one", 3, True)
    assert base["low"] <= base["score"] <= base["high"]
    assert base_text["low"] < base_text["perplexity"] < base_text["high"]
    assert (both["before"], both["after"], both["p"]) == ("base", "one", 1.0)
    table = CliRunner().invoke(app, [str(one) for one in asked[:-1]], catch_exceptions=False).stdout
    assert "has no chat template" in table
    assert "McNemar's p = 1" in table
    done = CliRunner().invoke(app, ["health", str(family / "one")], catch_exceptions=False)
    assert done.exit_code == 0
    assert "weights: All weights of 30 tensors are finite." in done.stdout


def test_ctrl_c_closes_what_runs_and_ends_with_its_own_code(capsys):
    closed = []

    def events():
        try:
            yield Progress("math[b]", 0, 1, 0, 0.5, 1.0)
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    with pytest.raises(typer.Exit) as ended:
        follow(events())
    assert ended.value.exit_code == INTERRUPTED
    assert closed
    assert capsys.readouterr().err == "cancelled; nothing was written\n"


def test_a_bar_shows_names_as_they_are(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with bar() as show:
        show(0.5, "math[b]")
    assert "math[b]" in capsys.readouterr().err
