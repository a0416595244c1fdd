"""Settings by environment: one declaration each, wrong values in a sentence, and a server for many that is safe by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

import app
from components.server.settings import ROOT, Settings, settings_table
from merging import MergingError


def read(**variables: str) -> Settings:
    return Settings.from_environment({f"MERGESCOPE_{name}": text for name, text in variables.items()})


def test_every_setting_is_in_the_table_of_the_readme():
    table = settings_table()
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`{told.variable}`" in table for told in Settings.declared().values())


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("RUNS", "/somewhere", "runs", Path("/somewhere")),
        ("LARGEST_MODEL", "1.5e9", "largest_model", 1_500_000_000),
        ("LARGEST_DOWNLOAD", "0", "largest_download", 0),
        ("DISK", "any", "disk", None),
        ("TTL", "90m", "ttl", 5400),
        ("TTL", "any", "ttl", None),
        ("SHARED", "1", "single_owner", False),
        ("DEVICE", "cuda:1", "device", "cuda:1"),
        ("PORT", " 80 ", "port", 80),
    ],
)
def test_values(name, text, field, value):
    assert getattr(read(**{name: text}), field) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("PORT", "1" * 10_000),
        ("LARGEST_MODEL", "-1"),
        ("LARGEST_MODEL", "nan"),
        ("LARGEST_MODEL", "1e999"),
        ("LARGEST_DOWNLOAD", "1.5"),
        ("TTL", "0"),
        ("TTL", "soon"),
        ("SHARED", "yes"),
        ("DEVICE", "tpu"),
        ("RUNS", "a\0b"),
        ("RUNS", "~nosuchuser/x"),
        ("LONGEST_REPLY", "99999"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_says_what_may_be_written(name, text):
    with pytest.raises(MergingError) as caught:
        read(**{name: text})
    said = str(caught.value)
    assert said.startswith(f"MERGESCOPE_{name} is ")
    assert "; write " in said
    assert len(said) < 200


def test_a_misspelt_variable_is_named_beside_what_was_meant():
    with pytest.raises(
        MergingError, match=r"MERGESCOPE_TLL is no setting; did you mean MERGESCOPE_TTL\?.*PORT is"
    ):
        read(TLL="1h", PORT="x")


def test_a_space_is_shared_and_has_limits():
    space = Settings.from_environment({"SPACE_ID": "someone/mergescope", "OAUTH_CLIENT_ID": "x"})
    assert (space.single_owner, space.local_folders, space.sign_in, space.host) == (
        False,
        False,
        True,
        "0.0.0.0",
    )
    limits = (space.largest_model, space.largest_download, space.owner_disk, space.disk, space.ttl)
    assert None not in limits
    assert space.hub
    assert Settings.from_environment({"SPACE_ID": "x", "MERGESCOPE_SHARED": "0"}).single_owner
    alone = Settings.from_environment({})
    assert (alone.largest_model, alone.disk, alone.ttl, alone.local_folders) == (None, None, None, True)


def test_a_wrong_setting_is_no_start_and_no_traceback(monkeypatch):
    monkeypatch.setenv("MERGESCOPE_PORT", "http")
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == "MERGESCOPE_PORT is 'http'; write a whole number from 1 to 65535."
