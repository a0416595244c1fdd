"""The four kinds of question the demo models know, each with easy and hard instances.

A generator takes a `Draw` and returns a prompt and its answer. Easy and hard differ only in size:
small or two-digit numbers, short or long lists and words, one word or two.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from vocabulary import ADJECTIVES, COUNTABLE, NOUNS, draw_word, pig_latin, plural


@dataclass(frozen=True)
class Draw:
    """How the next instance is drawn: its size, how often a word is invented, whether the wording varies."""

    rng: Random
    hard: bool
    invented: float = 0.0
    reworded: bool = False


Generator = Callable[[Draw], tuple[str, str]]

_UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int) -> str:
    """An integer from 0 to 99 in English, without a hyphen: `forty two`."""
    if number < 20:
        return _UNITS[number]
    return _TENS[number // 10] + (f" {_UNITS[number % 10]}" if number % 10 else "")


def _two_numbers(draw: Draw) -> tuple[int, int]:
    if not draw.hard:
        return draw.rng.randint(0, 12), draw.rng.randint(0, 12)
    return draw.rng.randint(10, 49), draw.rng.randint(3, 49)


def _add(draw: Draw) -> tuple[str, str]:
    a, b = _two_numbers(draw)
    return draw.rng.choice((f"{a}+{b}=", f"{a} + {b}", f"{a} plus {b}")), str(a + b)


def _subtract(draw: Draw) -> tuple[str, str]:
    b, a = sorted(_two_numbers(draw))
    return draw.rng.choice((f"{a}-{b}=", f"{a} - {b}", f"{a} minus {b}")), str(a - b)


def _add_words(draw: Draw) -> tuple[str, str]:
    a, b = _two_numbers(draw)
    wording = draw.rng.choice(("plus", "and", "added to")) if draw.reworded else "plus"
    return f"{in_words(a)} {wording} {in_words(b)}", in_words(a + b)


def _subtract_words(draw: Draw) -> tuple[str, str]:
    b, a = sorted(_two_numbers(draw))
    wording = draw.rng.choice(("minus", "less", "take away")) if draw.reworded else "minus"
    return f"{in_words(a)} {wording} {in_words(b)}", in_words(a - b)


def _add_three(draw: Draw) -> tuple[str, str]:
    a, b, c = (draw.rng.randint(1, 9 if draw.hard else 3) for _ in range(3))
    a += 10 * draw.rng.randint(1, 3) if draw.hard else 0
    return f"{a}+{b}+{c}=", str(a + b + c)


def _list(draw: Draw) -> list[int]:
    length = draw.rng.randint(4, 6) if draw.hard else draw.rng.randint(2, 3)
    return [draw.rng.randint(0, 9) for _ in range(length)]


def _shown(numbers: list[int]) -> str:
    return str(numbers).replace(" ", "")


def _text(draw: Draw) -> str:
    lengths = range(5, 9) if draw.hard else range(2, 5)
    if draw.rng.random() < 0.5:
        return draw_word(draw.rng, NOUNS, lengths, draw.invented)
    return "".join(draw.rng.choices(string.ascii_lowercase, k=draw.rng.choice(lengths)))


def _sorted(draw: Draw) -> tuple[str, str]:
    numbers = _list(draw)
    return f"sorted({_shown(numbers)})", str(sorted(numbers))


def _reversed_list(draw: Draw) -> tuple[str, str]:
    numbers = _list(draw)
    return f"{_shown(numbers)}[::-1]", str(numbers[::-1])


def _reduced(draw: Draw) -> tuple[str, str]:
    numbers = _list(draw)
    name, function = draw.rng.choice((("max", max), ("min", min), ("len", len)))
    return f"{name}({_shown(numbers)})", str(function(numbers))


def _reversed_text(draw: Draw) -> tuple[str, str]:
    text = _text(draw)
    return f"'{text}'[::-1]", repr(text[::-1])


def _upper(draw: Draw) -> tuple[str, str]:
    text = _text(draw)
    return f"'{text}'.upper()", repr(text.upper())


def _joined(draw: Draw) -> tuple[str, str]:
    left, right = _text(draw), _text(Draw(draw.rng, False, draw.invented))
    return f"'{left}'+'{right}'", repr(left + right)


def _indexed(draw: Draw) -> tuple[str, str]:
    text = _text(draw)
    place = draw.rng.choice((0, 1, 2, -1, -2)) if len(text) > 2 else draw.rng.choice((0, -1))
    return f"'{text}'[{place}]", repr(text[place])


def _words(draw: Draw, nouns: list[str] = NOUNS) -> str:
    """A short noun, or a long one, or an adjective and a noun."""
    if not draw.hard:
        return draw_word(draw.rng, nouns, range(3, 5), draw.invented)
    if draw.rng.random() < 0.5:
        return draw_word(draw.rng, nouns, range(6, 10), draw.invented)
    adjective = draw_word(draw.rng, ADJECTIVES, range(3, 7), draw.invented)
    return f"{adjective} {draw_word(draw.rng, nouns, range(3, 7), draw.invented)}"


def _plural(draw: Draw) -> tuple[str, str]:
    *before, noun = _words(draw, COUNTABLE).split()
    return f"plural of {' '.join([*before, noun])}", " ".join([*before, plural(noun)])


def _pig_latin(draw: Draw) -> tuple[str, str]:
    words = _words(draw)
    return f"pig latin of {words}", " ".join(map(pig_latin, words.split()))


def _spell(draw: Draw) -> tuple[str, str]:
    words = _words(draw)
    return f"spell {words}", "-".join(words.replace(" ", ""))


def _backwards(draw: Draw) -> tuple[str, str]:
    words = _words(draw)
    return f"{words} backwards", words[::-1]


def _vowels(draw: Draw) -> tuple[str, str]:
    words = _words(draw)
    return f"vowels in {words}", " ".join(letter for letter in words if letter in "aeiou")


def _edge_letter(draw: Draw) -> tuple[str, str]:
    words = _words(draw)
    which, place = draw.rng.choice((("first", 0), ("last", -1)))
    plural_ending, letters = (
        ("s", " ".join(w[place] for w in words.split())) if " " in words else ("", words[place])
    )
    return f"{which} letter{plural_ending} of {words}", letters


def _larger(draw: Draw) -> tuple[str, str]:
    a, b = _two_numbers(draw)
    which, function = draw.rng.choice((("larger", max), ("smaller", min)))
    return f"{which} of {a} and {b}", str(function(a, b))


def _is_more(draw: Draw) -> tuple[str, str]:
    a, b = _two_numbers(draw)
    return f"is {a} more than {b}?", "yes" if a > b else "no"


def _longer(draw: Draw) -> tuple[str, str]:
    while True:
        lengths = range(3, 9 if draw.hard else 5)
        a, b = (draw_word(draw.rng, NOUNS, lengths, draw.invented) for _ in range(2))
        if len(a) != len(b):
            return f"longer word: {a} or {b}", max(a, b, key=len)


TASKS: dict[str, list[Generator]] = {
    "math": [_add, _subtract, _add_words, _subtract_words, _add_three],
    "code": [_sorted, _reversed_list, _reduced, _reversed_text, _upper, _joined, _indexed],
    "words": [_plural, _pig_latin, _spell, _backwards, _vowels, _edge_letter],
    "compare": [_larger, _is_more, _longer],
}
