"""What is said of a scene: instructions, `detect`, questions and captions in PaliGemma's forms, by a small grammar.

A bowl is named by its relation ("the black bowl next to the plate"), by its colour where the two differ, or by both; a
bowl in the hand is named by the relation that it had, which no longer fits any other. The benchmark's own wording comes
first in every list. Some forms are kept for measuring: training never sees them, though it sees each of their words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .placements import COOKIES, PLATE, RAMEKIN

COLOURS = ("black", "white", "red", "green", "blue", "yellow", "purple", "orange")
THINGS = ("bowl", "bowl", "cookie box", "ramekin", "plate", "cabinet", "stove")  # as in `env.objects`
CLASSES = ("bowl", "cookie box", "ramekin", "plate", "cabinet", "stove")
RELATIONS = (("between", PLATE), ("next_to", RAMEKIN), ("next_to", COOKIES), ("next_to", PLATE), ("center", "table"),
             ("on", COOKIES), ("on", RAMEKIN), ("fixed", "stove"), ("fixed", "cabinet"), ("fixed", "drawer"), ("free", ""))
FREE = len(RELATIONS) - 1
_NAMES = {RAMEKIN: "ramekin", COOKIES: "cookie box", PLATE: "plate", "stove": "stove", "cabinet": "wooden cabinet"}
_WORDINGS = {"next_to": ("next to the {}", "beside the {}", "near the {}"), "on": ("on the {}", "on top of the {}"),
             "between": ("between the plate and the ramekin", "in between the ramekin and the plate"),
             "free": ("",), "center": ("from table center", "in the center of the table"),
             "drawer": ("in the top drawer of the wooden cabinet", "inside the top drawer of the wooden cabinet")}
_ORDERS = ("pick up {} and place it on {}", "take {} and put it on {}", "move {} onto {}")
_UNHEARD = ("take {} and place it onto {}", "pick up {} , then put it on {}")  # kept for measuring
# What the instructions above, and `detect`, say of the first thing.
_ASKED = re.compile(r"(?:pick up|take|move|detect) (.+?)(?: (?:and place|and put|, then put|onto|;) .*)?")
DESTINATIONS = {4: 0.7, 3: 0.1, 2: 0.1, 6: 0.05, 5: 0.05}  # index in THINGS: how often a bowl is to be put there


@dataclass(frozen=True)
class Facts:
    """What is true of a scene: for either bowl its relation (index in RELATIONS) and colour (index in COLOURS), and the
    colours of cookie box, ramekin and plate, -1 where they have their own."""

    relations: tuple[int, int]
    colours: tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Said:
    """One prompt: its text, the part of it that names each thing, and what PaliGemma would answer.

    spans: (first character, behind the last one, index in THINGS); answer: words, or None where the things' boxes are
    asked for, in the order of the spans.
    """

    text: str
    spans: tuple[tuple[int, int, int], ...]
    answer: str | None = None


def wording(relation: int, rng: np.random.Generator | None = None) -> str:
    """A relation in words; without `rng` as the benchmark has it."""
    kind, reference = RELATIONS[relation]
    ways = _WORDINGS["drawer" if reference == "drawer" else "on" if kind == "fixed" else kind]
    way = ways[0] if rng is None else ways[rng.choice(len(ways), p=_shares(len(ways)))]
    return way.format(_NAMES.get(reference, ""))


def instruct(facts: Facts, bowl: int, rng: np.random.Generator, unheard: bool = False) -> Said:
    """Pick up `bowl` (0 or 1) and place it somewhere. unheard: in a form that is kept for measuring."""
    forms = _UNHEARD if unheard else _ORDERS
    form = forms[rng.choice(len(forms), p=None if unheard else _shares(len(forms)))]
    places = [4] if unheard else list(DESTINATIONS)
    place = int(rng.choice(places, p=None if unheard else list(DESTINATIONS.values())))
    return _fill(form, [(_bowl(facts, bowl, rng), bowl), (_other(facts, place, rng), place)])


def detect(facts: Facts, bowl: int, rng: np.random.Generator) -> Said:
    """PaliGemma's `detect`, of the bowl, of another thing, or of both in either order."""
    place = int(rng.integers(2, len(THINGS)))
    both = [(_bowl(facts, bowl, rng), bowl), (_other(facts, place, rng), place)]
    named = [both[:1], both[1:], both, both[::-1]][rng.choice(4, p=(0.4, 0.3, 0.15, 0.15))]
    return _fill("detect " + " ; ".join("{}" for _ in named), named)


def question(facts: Facts, bowl: int, rng: np.random.Generator) -> Said:
    """PaliGemma's `answer en`: of what colour, or where, a bowl is; a caption of both where neither can be asked."""
    colour, where = COLOURS[facts.colours[bowl]], wording(facts.relations[bowl])
    if facts.relations[bowl] != FREE and rng.random() < 0.6:
        return _fill("answer en what color is {} ?", [(f"the bowl {wording(facts.relations[bowl], rng)}", bowl)], colour)
    if _different(facts) and facts.relations[bowl] != FREE:
        return _fill("answer en where is {} ?", [(f"the {colour} bowl", bowl)], where)
    both = " and ".join(f"the {COLOURS[facts.colours[one]]} bowl {wording(facts.relations[one])}".strip() for one in (0, 1))
    return _fill("caption en", [], both)


def nameable(facts: Facts) -> list[int]:
    """The bowls that words can tell from the other one."""
    return [bowl for bowl in (0, 1) if _different(facts) or facts.relations[bowl] != FREE]


def asked_for(sentence: str) -> str | None:
    """What an instruction wants to be picked up: "the black bowl next to the plate"; None where it is of another form."""
    found = _ASKED.fullmatch(sentence)
    return found and found[1]


def vocabulary() -> list[str]:
    """Sentences that have every word of the grammar, for a tokenizer to learn."""
    things = [f"the {colour} {name}" for colour in COLOURS for name in (*THINGS, "wooden cabinet")]
    where = [way.format(name) for ways in _WORDINGS.values() for way in ways for name in _NAMES.values()]
    forms = [*_ORDERS, *_UNHEARD, "detect {} ; {}", "answer en what color is {} ?", "answer en where is {} ?", "caption en"]
    return [form.format(thing, thing) for form in forms for thing in things] + where


def _bowl(facts: Facts, bowl: int, rng: np.random.Generator) -> str:
    colour, relation = COLOURS[facts.colours[bowl]], facts.relations[bowl]
    by_colour = _different(facts) and (relation == FREE or rng.random() < 0.25)
    colour = f"{colour} " if by_colour or rng.random() < 0.85 else ""
    return f"the {colour}bowl" + ("" if by_colour else f" {wording(relation, rng)}")


def _other(facts: Facts, thing: int, rng: np.random.Generator) -> str:
    colour = facts.colours[thing] if thing < len(facts.colours) else -1
    named = f"{COLOURS[colour]} " if colour >= 0 and rng.random() < 0.5 else ""
    return f"the {named}{'wooden ' if THINGS[thing] == 'cabinet' and rng.random() < 0.5 else ''}{THINGS[thing]}"


def _different(facts: Facts) -> bool:
    return facts.colours[0] != facts.colours[1]


def _shares(ways: int) -> list[float]:
    """The first way in more than half of the cases."""
    return [1.0] if ways == 1 else [0.6, *[0.4 / (ways - 1)] * (ways - 1)]


def _fill(form: str, named: Sequence[tuple[str, int]], answer: str | None = None) -> Said:
    text, spans = "", []
    for before, (phrase, thing) in zip(form.split("{}"), named):
        text += before
        spans.append((len(text), len(text) + len(phrase), thing))
        text += phrase
    return Said(text + form.split("{}")[-1], tuple(spans), answer)
