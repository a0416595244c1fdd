"""Conversations as token ids: with a system prompt where the model takes one, and no template's failure as a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from merging import MergingError
from merging.inference import LoadedModel
from merging.tokenizing.prompts import prompt_of

PARTS = "{% for message in messages %}{{ message.content }}{% endfor %}+"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PARTS
DEMO = Path(__file__).parent.parent / "examples" / "demo"
TALK = [{"role": "system", "content": "xyz"}, {"role": "user", "content": "abc"}]


@pytest.fixture(scope="module")
def loaded(family) -> LoadedModel:
    return LoadedModel.load(family / "one")


@pytest.fixture
def tokenizer(loaded):
    loaded.tokenizer.chat_template = None
    return loaded.tokenizer


def read(tokenizer, messages=TALK) -> tuple[str, bool, bool]:
    prompt = prompt_of(tokenizer, messages)
    return tokenizer.decode(prompt.ids).replace(" ", ""), prompt.templated, prompt.system_left_out


def test_a_system_prompt_goes_through_the_template(tokenizer):
    tokenizer.chat_template = PARTS
    assert read(tokenizer) == ("xyzabc+", True, False)
    assert read(tokenizer, TALK[1:]) == ("abc+", True, False)


def test_a_template_that_refuses_a_system_prompt_goes_without(tokenizer):
    tokenizer.chat_template = NO_SYSTEM
    assert read(tokenizer) == ("abc+", True, True)
    assert read(tokenizer, TALK[1:]) == ("abc+", True, False)


def test_a_template_that_ignores_a_system_prompt_is_found_out():
    prompt = LoadedModel.load(DEMO / "base").prompt(TALK)
    assert prompt.templated
    assert prompt.system_left_out


def test_plain_completion_goes_without_a_system_prompt(tokenizer):
    assert read(tokenizer) == ("abc", False, True)
    assert read(tokenizer, TALK[1:]) == ("abc", False, False)


def test_only_role_and_content_reach_the_template(tokenizer):
    tokenizer.chat_template = "{{ messages[0].secret }}" + PARTS
    assert read(tokenizer, [{"role": "user", "content": "abc", "secret": "z"}])[0] == "abc+"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 // 0 }}",
        "{% for",
        "{{ raise_exception('no,\nnever') }}",
        "{{ messages.a.b }}",
        "{{ ''.__class__.mro() }}",
    ],
)
def test_a_template_that_fails_is_one_sentence(tokenizer, template):
    tokenizer.chat_template = template
    with pytest.raises(
        MergingError, match=r"^The model's chat template fails .* Mend its .*jinja\.$"
    ) as caught:
        prompt_of(tokenizer, TALK)
    assert "\n" not in str(caught.value)


def test_a_template_that_writes_nothing_is_explained(tokenizer):
    tokenizer.chat_template = "{# nothing #}"
    with pytest.raises(MergingError, match="makes no token"):
        prompt_of(tokenizer, TALK)
