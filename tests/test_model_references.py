"""What a model reference means: a path, a Hub id with a revision, an adapter on either."""

from __future__ import annotations

import pytest

from merging.references import Reference, is_hub_id


def parse(text: str, *here: str) -> Reference:
    return Reference.parse(text, lambda path: path in here)


def test_a_hub_id_with_revision_and_adapter():
    found = parse("org/name@v1+other/adapter@main")
    assert found == Reference("org/name", "v1", Reference("other/adapter", "main"))
    assert found.alone == Reference("org/name", "v1")


def test_a_path_that_exists_wins_over_a_hub_id():
    assert parse("models/a+b@c", "models/a+b@c") == Reference("models/a+b@c")
    assert parse("models/a+b+c/d", "models/a+b") == Reference("models/a+b", None, Reference("c/d"))
    assert parse("/data/x@y") == Reference("/data/x@y")


@pytest.mark.parametrize(
    "text", ["a/b", "a/b@r", "a/b@r+c/d@s", "./a/b", "/x+y/z", "../a+/b", "a/b@refs/pr/1"]
)
def test_a_reference_reads_back_as_it_was_written(text):
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text", ["a", "a/b/c", "./a/b", "~/a", "a--b/c", "a/..", "/a/b", "a/b.git", "a b/c", "ä/b"]
)
def test_what_is_no_hub_id(text):
    assert not is_hub_id(text)
