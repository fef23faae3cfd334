"""PaliGemma's own abilities as a check of loading: one embedded picture whose truth is known, before anything is trained.

It is asked to `detect` and to `segment` a bowl. A wrong prompt, number format or quantisation shows at once: the box lies
elsewhere, or the answer is no place at all. Which of the two bowls it finds is not judged here (`measure/sight.py` does).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch

from ..data.dataset import channels_first
from ..model.backbone import Backbone, normalise_pixels
from ..model.places import LOCS, spoken
from ..scene.env import SpatialEnv
from ..scene.placements import BOWLS, Scene, evaluation_scenes
from ..scene.sentences import asked_for
from .metrics import Truth, auc, box_iou, box_of

TASK, PLACEMENT = 8, "wide"  # one bowl next to the plate, one next to the ramekin
QUESTIONS = ("detect", "segment")
RIGHT = 0.5  # IoU from which on a box is the bowl's, as detection has it
SEEN = 0.6  # AUC from which on saliency is on the bowls; 0.5 is chance
_BOX = re.compile(r"\s*" + r"<loc(\d{4})>" * 4)  # top, left, bottom, right


@dataclass(frozen=True)
class Answer:
    """iou: of the first box with the nearer bowl's; None where the answer begins with no box. strokes: `<seg>` tokens."""

    question: str
    words: str
    iou: float | None
    strokes: int


def ask(eyes: Backbone) -> tuple[list[Answer], float]:
    """The answers to QUESTIONS, and the AUC of the saliency against both bowls' pixels; NaN where it is not finite."""
    scene = evaluation_scenes(TASK, PLACEMENT)[0]
    image, bowls = _picture(scene, eyes.image_size)
    thing = asked_for(scene.instruction)
    with torch.no_grad():
        pixels = normalise_pixels(channels_first(image[None]).to(eyes.vlm.device))
        saliency = eyes.encode(pixels, [scene.instruction]).saliency.float().cpu().numpy()
        said = [spoken(eyes, pixels, f"{verb} {thing}") for verb in QUESTIONS]
    answers = [Answer(f"{verb} {thing}", words, _iou(words, bowls), words.count("<seg"))
               for verb, words in zip(QUESTIONS, said)]
    truth = Truth(bowls.any(axis=0)[None], round(saliency.shape[1] ** 0.5))
    return answers, float(auc(saliency, truth)[0]) if np.isfinite(saliency).all() else np.nan


def verdict(answers: list[Answer], seen: float, base: bool) -> str:
    """What they say of how the weights were loaded. base: of weights that were not tuned to answer, as PaliGemma's -pt-."""
    iou = answers[0].iou
    if np.isnan(seen):
        return "Broken: what it computes is not finite; choose another precision."
    if iou is not None and iou >= RIGHT:
        return "It finds a bowl and says where: prompt, numbers and quantisation are right."
    if not base:
        wrong = "is no place" if iou is None else "lies elsewhere"
        return (f"Broken: it was tuned to say where things are, but its answer {wrong}. Suspect the prompt, the number "
                "format or the quantisation: try another precision, then another folder of weights.")
    if seen >= SEEN:
        return ("A base model, which was not tuned to answer; its saliency lies on the bowls, so it is not broken. "
                "google/paligemma-3b-mix-224 would answer.")
    return ("A base model, which was not tuned to answer, and its saliency does not lie on the bowls either: whether it is "
            "broken, only google/paligemma-3b-mix-224, loaded in the same precision, can tell.")


def _picture(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The scene at rest (size, size, 3), and the pixels of either bowl (2, size, size) bool."""
    env = SpatialEnv(scene.task, image_size=size, wrist_size=0, assets="standin", segmentation=True)
    try:
        seen, _ = env.reset(seed=scene.seed, options={"init_state": scene.init_state})
        labels = [env.objects.index(bowl) + 1 for bowl in BOWLS]
        return seen["agentview_rgb"], np.stack([seen["agentview_segmentation"] == label for label in labels])
    finally:
        env.close()


def _iou(words: str, bowls: np.ndarray) -> float | None:
    """Of the box at the beginning of an answer with the box of the bowl that it fits better."""
    found = _BOX.match(words)
    if found is None:
        return None
    top, left, bottom, right = (int(edge) * bowls.shape[1] / LOCS for edge in found.groups())
    return max(box_iou((left, top, right, bottom), box_of(bowl)) for bowl in bowls)
