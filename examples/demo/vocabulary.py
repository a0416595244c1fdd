"""Common English words for the demo tasks, and invented ones that look like them."""
# ruff: noqa: SIM905

from __future__ import annotations

from random import Random

NOUNS = """
ant arm axe bag ball band bank barn bat bay bean bear bed bee bell belt bench berry bike bird boat bone book
boot bottle bowl box boy branch bread brick bridge brother brush bucket bug bus bush butter button cabin cake
camel camera camp candle candy cap car card carpet carrot cart castle cat cave chain chair chalk cheese cherry
chest chicken church circle city class clock cloud clown coach coast coat coin comb cook corn cottage couch
country cousin cow crab cream crow crown cup curtain daisy dance day desk diary dinner dish doctor dog doll
donkey door dragon dream dress drum duck eagle ear egg elbow engine eye face factory fairy family farm farmer
fence ferry field finger fire fist flag flame floor flower fly forest fork fox frame friend frog fruit game
garden garlic gate ghost giant gift girl glass glove goat grape grass guest guitar hammer hand hat hill hobby
holiday honey horn horse hotel house hut ice island jacket jar jelly jewel joke judge jug juice jungle kettle
key king kitchen kite kitten lady ladder lake lamp lantern leg lemon letter library lid light lily lion lip
lobster lock log lunch machine magnet map market mask match meal melon metal mill mirror monkey monster month
moon mother motor mountain mouth movie museum music nail name napkin neck needle nest net night nose number
nurse nut oak ocean onion orange otter oven owl page paint palace pan panda paper parrot party path paw pea
peach peanut pear pearl pen pencil penny people pepper phone piano picture pie pig pillow pilot pin pirate
planet plant plate pocket poem pond pony pool poppy pot present prince puppet puppy puzzle queen rabbit race
rain rat ribbon ring river road robin robot rock rocket room rope rose rug sailor salad sand sandwich school
seed shark shell ship shirt shoe shop shower sink sister skirt sky snail snake sock sofa song soup spider
spoon spring square squirrel stable stair star station statue stick stone storm story stove street student sun
swan sweater table tail tailor tank tent ticket tiger toast toe tooth towel tower town toy train tray tree
truck trumpet tulip tunnel turkey turtle uncle valley van vase village violin wagon wall walnut watch water
wave whale wheel whistle window wing winter witch wizard worm yard zebra
""".split()

ADJECTIVES = """
big blue bold brave bright brown busy calm clever cold cool cute dark deep dry fast fat fine fresh funny good
gray great green happy hot huge icy kind large lazy light little long loud lucky neat new nice odd old pink
poor pretty proud quick quiet red rich round sad sharp shiny short shy silly slow small smart soft sour spicy
strong sunny sweet tall tame thin tiny warm wet white wild wise yellow young
""".split()

_IRREGULAR = {"people", "tooth"}
COUNTABLE = [noun for noun in NOUNS if noun not in _IRREGULAR]

_OPENINGS = "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sh sk sl sm sp st sw t th tr v w".split()
_VOWELS = "a e i o u ee oa ai ou".split()
_ENDINGS = "b d g k l m n p r t x ch sh ss ck nd nt st y".split()


def draw_word(rng: Random, words: list[str], lengths: range, invented: float = 0.0) -> str:
    """A word whose length lies in `lengths`: from `words`, or, with probability `invented`, made up."""
    make_one_up = rng.random() < invented
    while True:
        word = invent_word(rng, rng.choice((1, 1, 2, 3))) if make_one_up else rng.choice(words)
        if len(word) in lengths:
            return word


def invent_word(rng: Random, syllables: int) -> str:
    """A pronounceable word of one to three syllables that is probably not English."""
    opening = "" if rng.random() < 0.15 else rng.choice(_OPENINGS)
    middle = [rng.choice(_VOWELS) + rng.choice(_OPENINGS) for _ in range(syllables - 1)]
    return opening + "".join(middle) + rng.choice(_VOWELS) + rng.choice(_ENDINGS)


def plural(noun: str) -> str:
    """The regular English plural."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def pig_latin(word: str) -> str:
    """The word with its opening consonants moved behind it and `ay` added; `way` after a vowel."""
    cut = 0
    while cut < len(word) and word[cut] not in "aeiou" and not (word[cut] == "y" and cut):
        cut += 2 if word[cut : cut + 2] == "qu" else 1
    return word[cut:] + word[:cut] + ("ay" if cut else "way")
