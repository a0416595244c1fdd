"""mergekit-yaml's flags: each does what it does there, or is answered in one line."""

from __future__ import annotations

import json

import pytest
import torch

from merging import Checkpoint, MergingError, Recipe
from merging.commands.mergekit_flags import SWITCHES, VALUES, known, shard_bytes, take
from merging.errors import ParameterError

MERGEKITS = [
    "allow-crimes",
    "unsafe-truncate-embeddings",
    "transformers-cache",
    "lora-merge-cache",
    "lora-merge-dtype",
    "cuda",
    "low-cpu-memory",
    "out-shard-size",
    "copy-tokenizer",
    "clone-tensors",
    "trust-remote-code",
    "random-seed",
    "lazy-unpickle",
    "write-model-card",
    "safe-serialization",
    "quiet",
    "read-to-gpu",
    "multi-gpu",
    "num-threads",
    "gpu-rich",
    "async-write",
    "write-threads",
]
"""The options of mergekit 0.1.5, less `device`, which is ours as well, and `-v`."""


def test_every_flag_of_mergekits_is_known():
    assert set(MERGEKITS) == set(known()) - {"verbose"}
    for name in MERGEKITS:
        value = ["1"] if name in VALUES or name in ("out-shard-size", "random-seed") else []
        flags, rest = take([f"--{name}", *value, "a.yaml", "out"])
        assert rest == ["a.yaml", "out"]
        assert len(flags.notes) == (name in SWITCHES or name in VALUES or name == "gpu-rich")


def test_what_the_flags_ask_for():
    flags, rest = take(
        [
            "--cuda",
            "a.yaml",
            "--no-copy-tokenizer",
            "out",
            "--out-shard-size=500M",
            "-vv",
            "-j",
            "4",
            "--quiet",
        ]
    )
    assert rest == ["a.yaml", "out"]
    assert (flags.device, flags.quiet, flags.files.tokenizer, flags.files.card) == ("cuda", True, False, True)
    assert flags.files.shard_bytes == 500_000_000
    assert [note.partition(":")[0] for note in flags.notes] == ["-v", "--num-threads"]
    assert take(["--no-cuda"])[0].device == "cpu"
    assert take(["--no-lazy-unpickle", "--no-allow-crimes"])[0].notes == ()
    recipe = Recipe.from_yaml("merge_method: dare_ties\nseed: 3")
    assert take(["--random-seed", "7"])[0].seeded(recipe).seed == 7
    assert take([])[0].seeded(recipe).seed == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--random-seed"], "needs a value"),
        (["--random-seed", "-1"], "no seed"),
        (["--out-shard-size", "5GB"], "is no size"),
        (["--no-safe-serialization"], "only safetensors"),
    ],
)
def test_what_cannot_be_is_one_sentence(words, said):
    with pytest.raises((ParameterError, MergingError), match=said):
        take(words)


def test_our_own_options_and_unknown_ones_are_left():
    words = ["a.yaml", "out", "--device", "cpu", "--json", "--no-health", "--crimes", "--", "--cuda"]
    assert take(words)[1] == words


@pytest.mark.parametrize(
    ("text", "number"), [("5B", 5_000_000_000), ("20k", 20_000), ("7", 7), ("0", 1 << 62)]
)
def test_sizes_of_files(text, number):
    assert shard_bytes(text) == number


def test_the_command_takes_them(family, write_recipe, tmp_path, command_line):
    recipe = write_recipe(family, "dare_linear", parameters={"density": 0.5})
    flags = [
        "--lazy-unpickle",
        "--allow-crimes",
        "--copy-tokenizer",
        "--random-seed",
        "7",
        "--out-shard-size",
        "20K",
    ]
    done = command_line("merge", *flags, recipe, tmp_path / "out", "--no-health", "--no-cuda")
    assert done.returncode == 0
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert [note.split(":")[1].strip() for note in notes] == ["--lazy-unpickle", "--allow-crimes"]
    assert (
        f"python convert_hf_to_gguf.py {tmp_path}/out --outfile {tmp_path}/out.gguf --outtype f32"
        in done.stdout
    )

    out = Checkpoint.open(tmp_path / "out")
    files = {info.file.name for info in out.tensors.values()}
    assert len(files) > 2
    assert Recipe.load(tmp_path / "out" / "mergescope.yaml").seed == 7
    from transformers import AutoModelForCausalLM

    state = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True).state_dict()
    assert all(torch.equal(state[name], out.read(name)) for name in out.tensors)

    whole = tmp_path / "seeded.yaml"
    whole.write_text(json.dumps({**json.loads(recipe.read_text()), "seed": 7}))
    done = command_line(
        "merge", whole, tmp_path / "one", "--no-copy-tokenizer", "--no-write-model-card", "--quiet"
    )
    assert (done.returncode, done.stdout) == (0, "")
    one = Checkpoint.open(tmp_path / "one")
    assert all(torch.equal(one.read(name), out.read(name)) for name in out.tensors)
    assert {file.name for file in one.folder.iterdir()} >= {"model.safetensors", "config.json"}
    assert not {"README.md", "tokenizer.json"} & {file.name for file in one.folder.iterdir()}


def test_a_flag_nobody_knows_is_wrong_usage(tmp_path, command_line):
    done = command_line("merge", "a.yaml", tmp_path / "out", "--lazy-unpickel")
    assert done.returncode == 2
    assert "--lazy-unpickel" in done.stderr
