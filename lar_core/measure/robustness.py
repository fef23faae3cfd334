"""Held-out frames, changed in one way: does the saliency still find the named object?

Each split takes Frames and gives Frames; the truth moves along. Sentences are LIBERO's own, changed by words, so that
nothing has to be rendered; pictures are changed by moving pixels. Nothing is random: the same frames give the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..run.settings import BLANK
from .metrics import box_of

GREY = 128
NEW_PAIRS = ("dark dish", "ebony basin", "charcoal cup")  # adjective and noun that no instruction of LIBERO has
OTHER_WORDS = (("pick up", "grab"), ("place it on", "set it down on"), ("the plate", "the dinner plate"))
RELATIONS = (("next to", "beside"), ("between", "in the middle of"), (" on the", " sitting on top of the"),
             (" in the", " inside the"), ("from table center", "at the middle of the table"))


@dataclass(frozen=True)
class Frames:
    """images (B, H, W, 3) uint8; B instructions; named and other, pixels of the two bowls (B, H, W) bool; objects, of all
    that could be named (B, R, H, W) bool, the named one first."""

    images: np.ndarray
    instructions: list[str]
    named: np.ndarray
    other: np.ndarray
    objects: np.ndarray


def paraphrase(frames: Frames) -> Frames:
    """The same request in other words; what names the object stays."""
    return _reworded(frames, lambda sentence, _: _replaced(sentence, OTHER_WORDS))


def new_pairs(frames: Frames) -> Frames:
    """The object by an adjective and a noun that were never trained on."""
    return _reworded(frames, lambda sentence, number: sentence.replace("black bowl", NEW_PAIRS[number % 3]))


def relation(frames: Frames) -> Frames:
    """Only the phrase that names the object, with its relation in other words: "the black bowl beside the ramekin"."""
    def phrase(sentence: str, _: int) -> str:
        found = re.fullmatch("pick up (.+) and place it .+", sentence)
        return _replaced(found[1] if found else sentence, RELATIONS)
    return _reworded(frames, phrase)


def distractors(frames: Frames) -> Frames:
    """The other bowl once more, as far from the named object as its copy fits; both copies count as distractors."""
    images, other, copies = frames.images.copy(), frames.other.copy(), np.zeros_like(frames.other)
    for image, mask, named, added in zip(images, other, frames.named, copies):
        if mask.any():
            down, right = _farthest(mask, named)
            copy = np.roll(mask, (down, right), axis=(0, 1)) & ~named
            image[copy] = np.roll(image, (down, right), axis=(0, 1))[copy]
            mask |= copy
            added |= copy
    copies = copies[:, None]  # (B, 1, H, W): one object more, in front of what it covers
    return replace(frames, images=images, other=other, objects=np.concatenate([frames.objects & ~copies, copies], axis=1))


def occlusion(frames: Frames) -> Frames:
    """The left half of the named object's box in grey; the truth is still the whole object."""
    images = frames.images.copy()
    for image, named in zip(images, frames.named):
        if box := box_of(named):
            left, top, right, bottom = box
            image[top:bottom, left : (left + right + 1) // 2] = GREY
    return replace(frames, images=images)


def blank_image(frames: Frames) -> Frames:
    """Nothing to see: what is left of a score is habit."""
    return replace(frames, images=np.full_like(frames.images, GREY))


def blank_instruction(frames: Frames) -> Frames:
    """Nothing named: what is left of a score is looking at bowls."""
    return _reworded(frames, lambda *_: BLANK)


SPLITS: dict[str, Callable[[Frames], Frames]] = {
    "original": lambda frames: frames, "paraphrase": paraphrase, "new_pairs": new_pairs, "relation": relation,
    "distractors": distractors, "occlusion": occlusion, "blank_image": blank_image,
    "blank_instruction": blank_instruction,
}


def _reworded(frames: Frames, change: Callable[[str, int], str]) -> Frames:
    sentences = [change(sentence, number) for number, sentence in enumerate(frames.instructions)]
    return replace(frames, instructions=sentences)


def _replaced(sentence: str, words: tuple[tuple[str, str], ...]) -> str:
    for old, new in words:
        sentence = sentence.replace(old, new)
    return sentence


def _farthest(mask: np.ndarray, named: np.ndarray) -> tuple[int, int]:
    """By how much (down, right) to move a mask so that all of it stays in the picture, far from what is named."""
    left, top, right, bottom = box_of(mask)
    height, width = mask.shape
    away = box_of(named) or box_of(mask)
    centre = ((away[1] + away[3]) / 2, (away[0] + away[2]) / 2)
    moves = [(down, aside) for down in (-top, 0, height - bottom) for aside in (-left, 0, width - right)]
    def distance(move: tuple[int, int]) -> float:
        return np.hypot((top + bottom) / 2 + move[0] - centre[0], (left + right) / 2 + move[1] - centre[1])
    return max(moves, key=distance)
