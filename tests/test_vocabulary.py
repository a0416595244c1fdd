"""Token texts from tokenizer files of every kind, sound and broken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from merging.tokenizing import vocabulary
from merging.tokenizing.vocabulary import Token, read_vocabulary, readable

DEMO = Path(__file__).parent.parent / "examples" / "demo"


def write(folder: Path, **files) -> Path:
    """A folder with these files: `tokenizer={...}` is tokenizer.json, a text is written as it is."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        suffix = "jinja" if name == "chat_template" else "json"
        file = folder / f"{name}.{suffix}"
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def added(number, content, special=True):
    return {"id": number, "content": content, "special": special}


def tokens(found, *numbers):
    return [(found.token(number).text, found.token(number).mark) for number in numbers]


def test_the_demo_s_letters_and_marks():
    found = read_vocabulary(DEMO / "base")
    assert found.problem is None
    assert found.size == 100
    assert tokens(found, 0, 1, 2, 4) == [
        ("<pad>", "special"),
        ("<end>", "special, chat template"),
        ("<user>", "special, chat template"),
        ("<unknown>", "special"),
    ]
    assert tokens(found, 5, 38, 99) == [("␣", ""), ("A", ""), ("~", "")]
    assert found.token(100) == Token(100, "#100", "padding row")
    assert found.marked == [0, 1, 2, 3, 4]


def test_byte_level_bpe(tmp_path):
    """As GPT-2, Llama 3 and Qwen write theirs; added tokens are plain text even there."""
    vocab = {"Ġhello": 0, "Ċ": 1, "ĉ": 2, "Ã©": 3, "âĤ": 4, "a": 5, "ĠĠĠ": 6}
    found = read_vocabulary(
        write(
            tmp_path,
            tokenizer={
                "model": {"type": "BPE", "vocab": vocab, "merges": []},
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "Split"}, {"type": "ByteLevel"}],
                },
                "added_tokens": [added(7, "<|im_start|>"), added(8, "Ġplain", special=False)],
            },
        )
    )
    assert [text for text, _ in tokens(found, *range(9))] == [
        "␣hello",
        "↵",
        "⇥",
        "é",
        "<0xE2><0x82>",
        "a",
        "␣␣␣",
        "<|im_start|>",
        "Ġplain",
    ]
    assert found.byte_level


def test_unigram_and_metaspace(tmp_path):
    """As T5, XLM-R and Llama 2 write theirs."""
    content = {
        "model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["▁the", -3.0], ["<0x0A>", -4.0], ["s", -5]]}
    }
    found = read_vocabulary(write(tmp_path, tokenizer={**content, "decoder": {"type": "Metaspace"}}))
    assert tokens(found, 0, 1, 2, 3, 4) == [
        ("<unk>", ""),
        ("␣the", ""),
        ("<0x0A>", ""),
        ("s", ""),
        ("#4", "padding row"),
    ]


def test_wordpiece(tmp_path):
    vocab = {"[PAD]": 0, "play": 1, "##ing": 2, "[CLS]": 5}
    found = read_vocabulary(
        write(
            tmp_path,
            tokenizer={"model": {"type": "WordPiece", "vocab": vocab}, "added_tokens": [added(0, "[PAD]")]},
            tokenizer_config={"cls_token": {"content": "[CLS]"}},
        )
    )
    assert tokens(found, 0, 2, 3, 5, 6) == [
        ("[PAD]", "special"),
        ("##ing", ""),
        ("#3", "unused row"),
        ("[CLS]", "special"),
        ("#6", "padding row"),
    ]


def test_vocab_json_where_there_is_no_tokenizer_json(tmp_path):
    found = read_vocabulary(
        write(
            tmp_path,
            vocab={"Ġa": 0, "b": 1, "<|endoftext|>": 2},
            added_tokens={"<tool>": 3},
            tokenizer_config={
                "eos_token": "<|endoftext|>",
                "added_tokens_decoder": {"4": {"content": "<think>", "special": True}, "x": {}, "5": None},
            },
        )
    )
    assert tokens(found, 0, 1, 2, 3, 4) == [
        ("␣a", ""),
        ("b", ""),
        ("<|endoftext|>", "special"),
        ("<tool>", ""),
        ("<think>", "special"),
    ]
    assert found.problem is None


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}[INST]{{ bos_token }}"
VOCAB = {"m": 0, "for": 1, "[INST]": 2, "<s>": 3, "<unused>": 4, "<|im_start|>": 5, "\n": 7}
ADDED = [
    added(6, "<|im_end|>", special=False),
    added(7, "\n", special=False),
    added(8, "role", special=False),
]


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template": TEMPLATE},
        {"tokenizer_config": {"chat_template": TEMPLATE}},
        {"tokenizer_config": {"chat_template": [{"name": "default", "template": TEMPLATE}]}},
    ],
    ids=["jinja", "config", "named"],
)
def test_tokens_of_the_chat_template(tmp_path, files):
    """Marks and added tokens that it writes, bos by its name; no ordinary word, and no line break."""
    write(tmp_path, tokenizer={"model": {"vocab": VOCAB}, "added_tokens": ADDED})
    found = read_vocabulary(write(tmp_path, special_tokens_map={"bos_token": "<s>"}, **files))
    assert sorted(found.template) == [2, 3, 5, 6, 8]
    assert sorted(found.special) == [3]
    assert found.token(3).mark == "special, chat template"
    assert found.token(6).mark == "chat template"


def test_the_experts_chat_templates_count_as_well(tmp_path):
    write(tmp_path / "base", tokenizer={"model": {"vocab": VOCAB}, "added_tokens": ADDED})
    write(tmp_path / "expert", chat_template=TEMPLATE, tokenizer_config={"eos_token": "<|im_end|>"})
    assert read_vocabulary(tmp_path / "base").marked == []
    found = read_vocabulary(tmp_path / "base", [tmp_path / "expert"])
    assert sorted(found.template) == [2, 5, 6, 8]
    assert sorted(found.special) == [6]


def test_lists_of_special_tokens(tmp_path):
    write(tmp_path, tokenizer={"model": {"vocab": {"a": 0, "<x>": 1, "<y>": 2, "<z>": 3, "<q>": 4}}})
    write(
        tmp_path,
        special_tokens_map={"additional_special_tokens": ["<x>", {"content": "<y>"}]},
        tokenizer_config={"extra_special_tokens": {"image_token": "<z>"}, "unk_token": None, "pad_token": 5},
    )
    assert sorted(read_vocabulary(tmp_path).special) == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("[1]", "holds no JSON table"),
        ('{"model": 3}', "its vocabulary is malformed"),
        ('{"model": {"vocab": 7}}', "its vocabulary is malformed"),
        ('{"model": {"vocab": {"a": "1", "b": true, "c": -1, "d": 1e3, "e": 99999999999}}}', "malformed"),
        ('{"model": {"vocab": [1, [], [2], {"a": 1}]}, "added_tokens": {"a": 1}}', "malformed"),
        ('{"a":' * 200_000, "not readable as JSON"),
        ('{"model": {"vocab": {"a": ' + "9" * 5000 + "}}}", "not readable as JSON"),
        ("\x00\xff", "not readable as JSON"),
    ],
    ids=["cut", "list", "number", "vocab", "ids", "entries", "deep", "long number", "bytes"],
)
def test_a_broken_tokenizer_costs_the_texts_and_says_why(tmp_path, content, message):
    found = read_vocabulary(write(tmp_path, tokenizer=content))
    assert message in found.problem
    assert found.problem.endswith("Tokens are called by their ids.")
    assert found.token(17) == Token(17, "#17")
    assert found.marked == []


def test_malformed_entries_are_passed_over(tmp_path):
    found = read_vocabulary(
        write(
            tmp_path,
            tokenizer={
                "model": {"vocab": {"a": 0, "b": None, "c": [1], "d": 2.5}},
                "added_tokens": [
                    added("1", "<x>"),
                    added(1, 5),
                    {"id": 2},
                    None,
                    added(3, "<ok>", special="yes"),
                ],
                "decoder": {"type": "Sequence", "decoders": 5},
                "pre_tokenizer": [],
            },
        )
    )
    assert dict(found.texts) == {0: "a", 3: "<ok>"}
    assert found.special == frozenset()
    assert found.problem is None


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("merging.folders.small_files.MOST_BYTES", 50)
    found = read_vocabulary(write(tmp_path, tokenizer={"model": {"vocab": {"a" * 40: 0}}}))
    assert "too many for a file of its kind" in found.problem
    assert found.token(0) == Token(0, "#0")


def test_a_file_of_nothing_but_lists_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("merging.folders.small_files.MOST_LISTS", 100)
    write(tmp_path, tokenizer={"model": {"vocab": {"a" * 200: 0}}})
    assert read_vocabulary(tmp_path).problem is None
    found = read_vocabulary(write(tmp_path, tokenizer='{"model": {"vocab": [' + "[]," * 200 + "[]]}}"))
    assert "more lists than a model's file can have" in found.problem


def test_a_broken_settings_file_costs_only_the_marks(tmp_path):
    write(tmp_path, tokenizer={"model": {"vocab": {"a": 0}}}, tokenizer_config="{", special_tokens_map="[]")
    found = read_vocabulary(tmp_path)
    assert found.token(0) == Token(0, "a")
    assert "tokenizer_config.json: not readable" in found.problem
    assert "ids" not in found.problem


def test_a_folder_without_a_tokenizer(tmp_path):
    found = read_vocabulary(tmp_path)
    assert "has neither tokenizer.json nor vocab.json" in found.problem
    assert found.token(3) == Token(3, "#3")
    assert str(tmp_path) not in found.problem  # the folder's name alone


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    (write(tmp_path, tokenizer={}) / "tokenizer.json").chmod(0)
    assert "permissions" in read_vocabulary(tmp_path).problem


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a␣b"),
        ("\r\n\t", "␍↵⇥"),
        ("\u202eevil", "<U+202E>evil"),
        ("\u200b", "<U+200B>"),
        ("\x1b[31m", "<U+001B>[31m"),
        ("\ud800", "<U+D800>"),
        ("", "(empty)"),
        ("<script>", "<script>"),  # escaped where it is written into a page
        ("é", "é"),
        ("字" * 48, "字" * 48),
        ("字" * 49, "字" * 48 + "…"),
        ("x" * 100_000, "x" * 48 + "…"),
    ],
)
def test_texts_are_shown_readably(text, shown):
    assert readable(text) == shown
    readable(text).encode("utf-8")


def test_every_byte_has_its_character():
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = "".join(ByteLevel.alphabet())
    assert set(vocabulary._BYTES) == set(alphabet)
    assert sorted(vocabulary._BYTES.values()) == list(range(256))
    spelled = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("Grüße,\n字 🙂")
    assert readable(spelled[0][0], byte_level=True) == "Grüße,↵字␣🙂"
