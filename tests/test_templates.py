"""Chat templates: the prompts of transformers, and no template that holds up or fills the process of the app."""

from __future__ import annotations

import os
import time

import pytest

from merging import MergingError
from merging.inference import LoadedModel
from merging.tokenizing import templates
from merging.tokenizing.prompts import prompt_of
from merging.tokenizing.templates import TemplateError, render

TALK = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": 'What is "2+2"? <b>\n'},
    {"role": "assistant", "content": "4 é 😀"},
    {"role": "user", "content": "And\t3?"},
]
ORDINARY = [
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set first = messages[0]['content'] %}\n{%- endif %}\n"
    "  {%- for m in messages[1:] -%}\n  {{ loop.index }}{{ m | tojson(indent=2) }}\n  {%- endfor %}{{ first }}",
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}{% endfor %}"
    "{{ ns.n }}{{ strftime_now('%Y') }}{{ dict(a=1) }}{{ tools is none }}{{ documents is defined }}",
    "{% macro line(m) %}{{ m.role.upper() }}: {{ m['content'].split()[0] }}\n{% endmacro %}"
    "{% for m in messages %}{{ line(m) }}{% endfor %}{{ eos_token is defined }}",
]
NO_END = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(family):
    return LoadedModel.load(family / "one").tokenizer


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(templates, "_idle", [])
    monkeypatch.setattr(templates, "SECONDS", 0.1)


@pytest.mark.parametrize("template", ORDINARY)
def test_prompts_are_those_of_transformers(tokenizer, template):
    tokenizer.chat_template = template
    options = {"add_generation_prompt": True, "return_dict": False}
    assert render(template, TALK, tokenizer.special_tokens_map) == tokenizer.apply_chat_template(
        TALK, tokenize=False, add_generation_prompt=True
    )
    assert prompt_of(tokenizer, TALK[1:]).ids == tokenizer.apply_chat_template(TALK[1:], **options)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (NO_END, "was stopped after"),
        ("{{ 9 ** (9 ** 9) }}", "was stopped after"),
        ("{{ 'a' * 10 ** 10 }}", "MB of memory"),
        ("{{ messages[0].role | center(3 * 10 ** 6) }}", "more than 2,000,000 characters"),
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "recursion"),
        ("{{ " + "(" * 100_000, "recursion"),
        ("x" * (templates.MOST_TEMPLATE + 1), "characters"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception('no,\nnever.') }}", "^no,$"),
    ],
)
def test_templates_that_loop_explode_or_fail(hurried, template, reason):
    with pytest.raises(TemplateError, match=reason) as caught:
        render(template, TALK, {})
    assert "\n" not in str(caught.value)


def test_the_next_prompt_is_rendered_after_one_that_was_stopped(hurried, tokenizer):
    tokenizer.chat_template = NO_END
    started = time.monotonic()
    with pytest.raises(
        MergingError, match=r"^The model's chat template fails .*\(it was stopped after .*Mend its"
    ):
        prompt_of(tokenizer, TALK)
    assert time.monotonic() - started < 60
    assert render("{{ messages[1].role }}", TALK, {}) == "user"
    (renderer,) = templates._idle
    assert render("{{ messages[0].role }}", TALK, {}) == "system"
    assert templates._idle == [renderer]
    renderer.process.kill()
    renderer.process.wait()
    assert render("{{ messages[0].role }}", TALK, {}) == "system"
    (renderer,) = templates._idle
    renderer.process.kill()  # and nobody knows yet that it ended
    assert render("{{ messages[0].role }}", TALK, {}) == "system"


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="reads the environment of a process from /proc")
def test_a_template_does_not_run_beside_a_token(monkeypatch):
    monkeypatch.setattr(templates, "_idle", [])
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    render("", TALK, {})
    (renderer,) = templates._idle
    with open(f"/proc/{renderer.process.pid}/environ") as environment:
        assert "hf_secret" not in environment.read()
