"""The questions that are answered from one section of results.json each: the claim, the numbers, what follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .rates import estimate, sample

ZERO, HALF = ({"mean": value, "low": value, "high": value} for value in (0.0, 0.5))


def _area(cause: dict, name: str) -> str:
    return estimate(cause["curves"][name]["deletion"]["area"])


class Question(NamedTuple):
    """A claim on one section of results.json, as a difference of two intervals.

    higher: from the section, the interval that lies above the other one if the claim is true; sentence: the numbers in
    words; meanings: what follows if the claim was detected, if its opposite was, and if neither was.
    """

    topic: str
    higher: Callable[[dict], tuple[dict, dict]]
    sentence: Callable[[dict], str]
    meanings: tuple[str, str, str]


QUESTIONS = {  # by section, a part of it behind a dot
    "action": Question(
        "actions are better than the mean action",
        lambda action: (action["l1_mean_action"], action["l1"]),
        lambda action: (f"The error on held-out demonstrations is {estimate(action['l1'])}, that of always predicting the "
                        f"mean action {estimate(action['l1_mean_action'])} ({sample(action)})."),
        ("It has learned something about acting.",
         "It acts worse than a constant: nothing else in this report is about a policy that works.",
         "Until it beats a constant, nothing else in this report is about a policy that works.")),
    "shortcut": Question(
        "another frame's images make the actions worse",
        lambda probe: (probe["whole"]["shuffled"]["increase"], ZERO),
        lambda probe: (f"With another held-out frame's images the action loss of {estimate(probe['right']['loss'])} "
                       f"{probe['unit']} grows by {estimate(probe['whole']['shuffled']['increase'])}"
                       + ("" if probe["head"] is None else f", and by {estimate(probe['head']['shuffled']['increase'])} "
                          "where only the head's own policy is shown them") + f" ({sample(probe)})."),
        ("The actions depend on the images.", "The right images mislead it.",
         "These frames do not show that the actions need the images.")),
    "denoising": Question(
        "the denoiser needs the backbone's states",
        lambda probe: (probe["increase"], ZERO),
        lambda probe: (f"Told by another frame's states the loss of {estimate(probe['loss'])} grows by "
                       f"{estimate(probe['increase'])} ({sample(probe)}; a denoiser that says nothing has loss 1)."),
        ("What it reconstructs, it reads from the backbone.", "The right states mislead it.",
         "These frames do not show that the region is reconstructed from the backbone's states, without which the loss "
         "cannot teach the backbone anything.")),
    "cause": Question(
        "the actions depend on where the policy looks",
        lambda cause: tuple(cause["curves"][name]["deletion"]["area"] for name in ("model", "centre")),
        lambda cause: ("Hidden block by block, the most salient first, the picture changes the action by "
                       f"{_area(cause, 'model')} {cause['unit']} over the curve; from the centre outwards by "
                       f"{_area(cause, 'centre')}, by chance {_area(cause, 'random')} ({sample(cause)}). "
                       "Saliency's rank correlation with the occlusion map is "
                       f"{estimate(cause['agreement']['model'])}, the centre's {estimate(cause['agreement']['centre'])}."),
        ("What it looks at is more of a reason for its actions than the centre of the image.",
         "The centre of the image is more of a reason for its actions than what it looks at.",
         "These frames do not show that what it looks at is why it acts.")),
    "cause.pixels": Question(
        "without the named bowl the actions change more than without the other one",
        lambda pixels: (pixels["named_gone"]["mm"], pixels["other_gone"]["mm"]),
        lambda pixels: (f"Rendered without the named bowl, the scene changes the commanded motion of a chunk by "
                        f"{estimate(pixels['named_gone']['mm'])} mm, without the other one by "
                        f"{estimate(pixels['other_gone']['mm'])} mm ({pixels['named_gone']['frames']} frames before the "
                        "grasp)."),
        ("It acts because of the bowl that is named.", "It acts because of the other bowl.",
         "These frames do not show which of the two bowls it acts on.")),
    "cause.pixels.swapped": Question(
        "the motion goes to what is named, not to a place",
        lambda swapped: (swapped["followed"], HALF),
        lambda swapped: ("With the two bowls exchanged, each with what it stands on or next to, the motion points to the "
                         f"named one rather than to the other in a share of {estimate(swapped['followed'])} of frames, "
                         f"before the exchange in {estimate(swapped['followed_before'])} ({swapped['frames']} frames)."),
        ("It goes for what the sentence names.", "It goes for the place, whatever the sentence names there.",
         "These frames do not show whether it goes for what is named or for a place.")),
}
