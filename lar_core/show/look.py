"""Where the words look, before anything is trained: one picture, and a heatmap of it for every sentence.

    lar look "pick up the black bowl next to the plate" "pick up the black bowl next to the ramekin"

The heat is the text→image attention of the last layers, on the scale of every picture here (`measure/film.py`). The box is
what the backbone answers when it is asked to `detect` what the sentence wants, where it answers with places, as PaliGemma
does. Pictures are looked at in the backbone's own size, and drawn in SIDE pixels.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from ..data.dataset import channels_first
from ..measure.film import ROUNDS, overlay
from ..measure.maps import maps_in_batches
from ..model.backbone import Backbone, normalise_pixels
from ..model.paligemma import load_backbone
from ..model.places import answers_places, boxes_of
from ..model.policy import Policy, load_policy
from ..model.tiny import find_weights, unheard_words
from ..run.config import PROFILES
from ..run.errors import LarError, reading, say_once
from ..run.files import atomic_path
from ..run.folder import Run
from ..run.runtime import act_precision, device
from ..scene.env import SpatialEnv, tasks_by_instruction
from ..scene.placements import OTHER_SENTENCE, evaluation_scenes
from ..scene.sentences import asked_for
from .figures import TARGET, encoded
from .pictures import grid

SIDE, COLUMNS, LETTERS = 384, 3, 54  # pixels of a panel; panels in a row; of a title's line
SMOOTH = ROUNDS * 9  # for patches that are drawn three times as large as in a video
STRENGTH = 0.5  # of the heat, through which the thing below must be seen
TASK = 5  # where the first sentence names none
LARGE = 2**30  # bytes of weights, from which on they are loaded as profile t4 does
EXAMPLE = 'lar look "pick up the black bowl next to the plate"'


def look(sentences: Sequence[str], *, picture: Path | str | None = None, task: int | None = None,
         placement: str | None = None, scene: int | None = None, run_dir: Path | str | None = None,
         backbone: str = "tabletop") -> np.ndarray:
    """The picture under each sentence, coloured by what that sentence looks at: (h, w, 3) uint8.

    picture: a file; without one, evaluation scene number `scene` of a task and placement (default: those of the first
    sentence, see `choose`). run_dir: of the policy that looks; without one, `backbone` as it is, a name or a folder.
    Raises LarError for no sentence, and for a picture, scene, run or backbone that cannot be had.
    """
    if not sentences:
        raise LarError(f"There is no sentence to look with: say one or several, each in quotation marks: {EXAMPLE}.")
    if picture is not None and (task, placement, scene) != (None, None, None):
        raise LarError("A picture of your own has no task, placement or scene: leave those out, or the picture.")
    policy = None if run_dir is None else load_policy(Run.load(run_dir), device())[0]
    eyes = _load(backbone) if policy is None else policy.backbone
    _say_unheard(eyes, sentences)
    sizes = eyes.image_size, SIDE
    seen, drawn = _own(picture, sizes) if picture is not None else _table(*choose(sentences[0], task, placement),
                                                                          scene or 0, sizes)
    images = np.stack([seen] * len(sentences))
    maps, boxes = _look(eyes, images, sentences) if policy is None else (_maps(policy, images, sentences), {})
    panels = [_boxed(overlay(drawn, saliency, STRENGTH, SMOOTH), boxes.get(sentence))
              for sentence, saliency in zip(sentences, maps)]
    return grid(panels, [textwrap.fill(sentence, LETTERS) for sentence in sentences], min(COLUMNS, len(panels)))


def write_look(path: Path, picture: np.ndarray) -> Path:
    """Write (h, w, 3) uint8 as PNG; returns the whole path."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded(Image.fromarray(picture), format="png"))
    return path.resolve()


def choose(sentence: str, task: int | None = None, placement: str | None = None) -> tuple[int, str]:
    """Task and placement to look at: the task whose instruction alone begins with the sentence, else TASK; a scene in which
    a sentence names either bowl, where the task has one."""
    if task is None:
        begun = [number for words, number in tasks_by_instruction().items() if words.startswith(sentence.strip())]
        task = begun[0] if len(begun) == 1 else TASK
    return task, placement or ("counterfactual" if task in OTHER_SENTENCE else "wide")


def _load(name: str) -> Backbone:
    """A backbone to look with, as it is: small ones in fp32, PaliGemma in the numbers that profile t4 acts in here."""
    if name == "scratch":
        raise LarError("An untrained backbone looks nowhere in particular: choose tabletop, a folder or a hub id.")
    folder = find_weights(name)
    large = sum(file.stat().st_size for file in folder.glob("*.safetensors")) > LARGE
    precision = act_precision("auto", PROFILES["t4"].precision, device()) if large else "fp32"
    return load_backbone(folder, precision=precision, device=device()).eval()


def _say_unheard(eyes: Backbone, sentences: Sequence[str]) -> None:
    words = dict.fromkeys(word for words in sentences for word in unheard_words(eyes.processor.tokenizer, words))
    if words:
        say_once(f"This miniature has never heard {', '.join(map(repr, words))}: it knows the words of the table's grammar "
                 "(lar_core/scene/sentences.py), in small letters, and what else is in a sentence means nothing to it.")


def _table(task: int, placement: str, number: int, sizes: Sequence[int]) -> list[np.ndarray]:
    """A stored evaluation scene at rest, from the agentview, in several sizes (h, h, 3)."""
    scenes = evaluation_scenes(task, placement)
    if not 0 <= number < len(scenes):
        raise LarError(f"There is no scene {number}: task {task} has {placement} scenes 0 to {len(scenes) - 1}.")
    env = SpatialEnv(task, image_size=max(sizes), wrist_size=0)
    try:
        env.reset(seed=scenes[number].seed, options={"init_state": scenes[number].init_state})
        return [env.render_camera("agentview", size) for size in sizes]
    finally:
        env.close()


def _own(path: Path | str, sizes: Sequence[int]) -> list[np.ndarray]:
    """A picture from a file in several sizes (h, h, 3): pressed into a square, as PaliGemma's processor does."""
    with reading(path, "choose a picture such as a JPEG or PNG", OSError, ValueError, SyntaxError,
                 Image.DecompressionBombError, path=path):
        picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    return [np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)) for size in sizes]


def _maps(policy: Policy, images: np.ndarray, sentences: Sequence[str]) -> np.ndarray:
    """Maps (B, P) of a trained policy, by its own aggregation."""
    own = policy.condition.aggregation
    return maps_in_batches(policy, images, list(sentences), [own])[own]


@torch.no_grad()
def _look(eyes: Backbone, images: np.ndarray, sentences: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Maps (B, P), and by sentence the box (4,) that is answered, (top, left, bottom, right) as shares of the picture."""
    pixels = normalise_pixels(channels_first(images).to(eyes.vlm.device))
    maps = eyes.encode(pixels, list(sentences)).saliency.float().cpu().numpy()
    asked = {sentence: f"detect {thing}" for sentence in sentences if (thing := asked_for(sentence))}
    if not asked:
        return maps, {}
    questions, shown = list(asked.values()), pixels[: len(asked)]  # every row is the same picture
    boxes, placed = boxes_of(eyes, shown, questions) / eyes.image_size, answers_places(eyes, shown, questions)
    return maps, {sentence: box for sentence, box, says in zip(asked, boxes.cpu().numpy(), placed.tolist()) if says}


def _boxed(panel: np.ndarray, box: np.ndarray | None) -> np.ndarray:
    """Draw the answered box over a dark rim, which shows on light ground too."""
    if box is None:
        return panel
    image, (top, left, bottom, right) = Image.fromarray(panel), SIDE * box
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="#14171b", width=4)
    draw.rectangle((left, top, right, bottom), outline=TARGET, width=2)
    return np.asarray(image)
