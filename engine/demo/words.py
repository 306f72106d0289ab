"""The words that the demo's tasks are written with.

Every word here is one token of the demo's tokenizer (with its leading space), so that a word is the same
token in a question and in its answer.
"""

from __future__ import annotations

from dataclasses import dataclass


def _each(words: str) -> tuple[str, ...]:
    return tuple(words.split())


NAMES = _each(
    "Maya Omar Lena Felix Ines Tarek Nora Hugo Amina Jonas Clara Ravi "
    "Sofia Pavel Greta Kenji Zoe Luis Farah Emil Tessa Bruno Leila Oscar"
)

THINGS = _each("apples coins books cards pens stamps shells eggs beads stickers balls cups keys nuts plums tickets")
OPENINGS = (
    "{name} has {start} {thing}.",
    "{name} starts with {start} {thing}.",
    "At first {name} has {start} {thing}.",
    "In the morning {name} has {start} {thing}.",
    "{name} owns {start} {thing}.",
    "There are {start} {thing} in the bag of {name}.",
)
GAINS = ("buys {n}", "finds {n}", "gets {n} more", "wins {n}", "picks up {n}", "collects {n}")
LOSSES = ("loses {n}", "sells {n}", "gives away {n}", "uses {n}", "drops {n}", "lends out {n}")
DOUBLINGS = ("doubles the number", "gets as many again")
TOTAL_QUESTIONS = (
    "How many {thing} does {name} have now?",
    "How many {thing} does {name} have in the end?",
    "How many {thing} are there now?",
    "What is the number of {thing} in the end?",
)

RECORDS = ("Customer record:", "Member card:", "Visitor form:", "Guest note:", "Entry in the club book:")
FIELDS: dict[str, tuple[str, ...]] = {
    "name": NAMES,
    "city": _each("Oslo Lima Cairo Paris Delhi Quito Rome Accra Kyoto Porto Minsk Perth"),
    "colour": _each("red blue green black white brown pink grey orange purple yellow gold"),
    "pet": _each("cat dog rabbit parrot turtle hamster pony snake goat mouse hen fish"),
    "job": _each("baker nurse pilot judge farmer painter tailor singer driver teacher chef"),
    "sport": _each("tennis chess rowing hockey boxing golf judo rugby skiing diving polo"),
    "day": _each("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "month": _each("January March April June July August October December"),
    "code": tuple(str(n) for n in range(10, 100)),
    "room": tuple(str(n) for n in range(1, 60)),
}
FIELD_QUESTIONS = (
    "Give {fields}.",
    "Find {fields}.",
    "Write down {fields}.",
    "Tell me {fields}.",
    "Copy {fields} from this text.",
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A title, the marks or values its lines carry, and (for listing) the items that carry a mark."""

    title: str
    marks: tuple[str, ...]
    items: tuple[str, ...] = ()


LISTS = (
    Scene(
        "Packing list:",
        ("packed", "missing"),
        _each("tent lamp rope map stove blanket torch compass knife bottle soap towel"),
    ),
    Scene(
        "Tool shed:",
        ("clean", "broken"),
        _each("hammer saw rake drill spade ladder bucket brush wrench axe hose pump"),
    ),
    Scene(
        "Fruit stand:",
        ("ripe", "hard"),
        _each("apple pear plum peach lemon melon mango cherry fig grape banana kiwi"),
    ),
    Scene(
        "Music room:",
        ("tuned", "loose"),
        _each("violin flute drum piano guitar harp trumpet cello horn bell banjo organ"),
    ),
    Scene(
        "Toy box:",
        ("new", "old"),
        _each("doll kite train robot puzzle bear truck whistle yoyo castle boat rocket"),
    ),
)
LIST_QUESTIONS = (
    "Which items are {mark}?",
    "List everything that is {mark}.",
    "Name the items that are {mark}.",
    "What is {mark}?",
)

LOGS = (
    Scene("Weather diary:", ("rain", "sun", "snow")),
    Scene("Traffic log:", ("bus", "car", "tram")),
    Scene("Birds at the lake:", ("crow", "owl", "duck")),
    Scene("Drinks ordered:", ("tea", "coffee", "juice")),
    Scene("Votes for the flag:", ("stars", "stripes", "lion")),
    Scene("Trees in the park:", ("oak", "pine", "birch")),
)
COUNT_QUESTIONS = (
    "How many lines say {mark}?",
    "Count the lines with {mark}.",
    "How often does {mark} appear?",
    "How many times is {mark} written?",
)
